"""The tables of the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nesskit import plots
from nesskit.experiments.remarks import remarks
from nesskit.report.groups import Groups, all_joint, groups_of, mark
from nesskit.runs import metrics
from nesskit.runs.comparison import Comparison, size_text
from nesskit.runs.record import Run


@dataclass(frozen=True)
class Table:
    """A table of the page; the first cell of every row is the row's header."""

    header: list[str]
    rows: list[list[str]]
    caption: str
    numeric: bool = False


def measures_of(run: Run) -> list[tuple[str, str]]:
    """The measures of a single run, large on top of the page."""
    measures = metrics.summary(run.accuracy)
    return [
        ("ACC, %", _number(measures["average_accuracy"])),
        ("BWT, points", _number(measures["backward_transfer"]).replace("-", "−")),
        ("accuracy when learned, %", _number(measures["learning_accuracy"])),
        ("forgetting, points", _number(measures["forgetting"])),
        *([("similarity kept", _number(run.finally_kept_similarity))] if run.kept_similarity else []),
        ("tasks learned", f"{run.tasks_done} of {len(run.tasks)}"),
        ("seconds", f"{run.seconds:.1f}"),
    ]


def comparison_table(comparison: Comparison) -> Table:
    """Methods in rows: what ``Comparison.table`` says, in words of the page."""
    reference = plots.display_name(comparison.reference)
    names, rows = comparison.table()
    in_words = {
        "ACC %": "ACC, %",
        "BWT %": "BWT, points",
        f"ACC - {comparison.reference}": f"ACC − {reference}",
        f"BWT - {comparison.reference}": f"BWT − {reference}",
        "ACC %, task named": "ACC, %, task named",
        "memory": "memory kept",
    }
    header = [in_words.get(name, name) for name in names]
    groups = groups_of(comparison)
    cells = [
        [
            plots.display_name(label) + mark(groups.get(label, [])),
            *("reference" if cell == "" else cell for cell in rest),
        ]
        for label, *rest in rows
    ]
    caption = (
        f"Mean ± standard deviation over seeds (n − 1); differences to {reference} are paired by seed; –: not defined. "
        "Private numbers are what a task has for itself beside its head."
    )
    if "kept similarity" in header:
        caption += (
            " Kept similarity is Spearman's correlation of the similarities of held-out inputs before the first task "
            "and after the last."
        )
    return Table(header, cells, caption, numeric=True)


def memory_table(groups: Groups) -> Table | None:
    """What each method keeps between tasks; None before anything was learned."""
    rows = []
    for label, runs in groups.items():
        if all_joint(runs):
            rows.append([plots.display_name(label), "the data of all tasks, at once", "–"])
        elif runs[0].tasks_done:
            kept = {name: size for name, size in runs[0].memory.items() if size} or {"nothing": 0}
            rows += [[plots.display_name(label), name, size_text(size)] for name, size in kept.items()]
    caption = "What is kept from task to task beside the network."
    return Table(["method", "what", "size"], rows, caption) if rows else None


def runs_table(groups: Groups) -> Table:
    """A row for every run."""
    rows = [
        [
            plots.display_name(label),
            str(run.config["seed"]),
            _number(run.average_accuracy),
            _number(run.backward_transfer),
            f"{run.tasks_done} of {len(run.tasks)}",
            f"{run.seconds:.1f}",
            "; ".join((["finished"] if run.finished else []) + remarks(run)),
        ]
        for label, runs in groups.items()
        for run in runs
    ]
    return Table(["method", "seed", "ACC, %", "BWT, points", "tasks", "seconds", "status"], rows, "Every run.", True)


def value_tables(columns: Mapping[str, Mapping[str, Any]], caption: str) -> list[Table]:
    """Values by name: those that all columns share in one table, those that differ beside each other in a second."""
    keys = list(dict.fromkeys(key for values in columns.values() for key in values))
    texts = {key: [_text(values[key]) if key in values else "" for values in columns.values()] for key in keys}
    shared = [[key, cells[0]] for key, cells in texts.items() if len(set(cells)) == 1]
    differing = [[key, *cells] for key, cells in texts.items() if len(set(cells)) > 1]
    tables = [Table(["name", "value"], shared, caption)] if shared else []
    if differing:
        tables.append(Table(["name", *columns], differing, f"{caption}: what differs"))
    return tables


def columns(groups: Groups, values_of: Callable[[Run], Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """One column for every set of values that occurs, named after the first run that has it."""
    columns: dict[str, Mapping[str, Any]] = {}
    for label, runs in groups.items():
        for run in runs:
            values = values_of(run)
            if values and values not in columns.values():
                columns[f"{plots.display_name(label)}, seed {run.config['seed']}"] = values
    return columns


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"


def _text(value: Any) -> str:
    """A setting as a person would write it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "–"
    return str(value)
