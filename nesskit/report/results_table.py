"""Our recorded runs beside the published figures."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nesskit.errors import NesskitError
from nesskit.experiments.configure import get_benchmark
from nesskit.experiments.remarks import complete, is_reduced, preset_of, remarks
from nesskit.runs.comparison import Estimate, count_text, size_text
from nesskit.runs.record import Run

HEADER = [
    "method", "ours: ACC / BWT %", "published: ACC / BWT %", "difference, in published std",
    "private numbers a task", "trained numbers a task", "kept similarity",
    "seeds", "epochs a task", "seconds", "memory", "device", "commit", "remarks",
]  # fmt: skip
OF_PRETRAINED = ("trained numbers a task", "kept similarity")  # left out where no run has measured what it kept


@dataclass(frozen=True)
class Published:
    """One published line: mean and standard deviation over five seeds, in percent.

    ``method`` and ``presets`` say which of our runs belong beside it; without presets, none does yet.
    """

    label: str
    method: str
    accuracy: tuple[float, float]
    transfer: tuple[float, float]
    presets: tuple[str, ...] = ()
    note: str = ""


def published(benchmark: str) -> list[Published]:
    """The published results on ``benchmark`` (paper, Table 1); empty where nobody published any."""
    content = tomllib.loads(Path(__file__).with_name("published.toml").read_text(encoding="utf-8"))
    return [
        Published(**{**line, **{key: tuple(line.get(key, ())) for key in ("accuracy", "transfer", "presets")}})
        for line in content.get(benchmark, [])
    ]


def split_whole(runs: Sequence[Run]) -> tuple[list[Run], list[Run]]:
    """Runs of a whole benchmark with the settings of a preset, and those that are reduced or changed."""
    whole: list[Run] = []
    others: list[Run] = []
    for run in runs:
        (others if remarks(run) else whole).append(run)
    return whole, others


def result_table(benchmark: str, runs: Sequence[Run]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: published lines with the runs that belong beside them, then our other runs, whole ones first.

    Every set of settings has a row of its own that names its preset, and so its protocol. A difference stands only
    where the runs are the whole benchmark with the preset's own settings: a reduced or changed run is no reproduction,
    and its row says in what.

    Private numbers are what a task has for itself beside its head, seconds are those of a run, and memory is what the
    method keeps between tasks. Where a run has measured how much of pretrained similarity it kept, that stands there
    too, with the numbers that a task trains.

    Raises:
        UnknownNameError: no benchmark of that name.
        NesskitError: a run belongs to another benchmark.
    """
    get_benchmark(benchmark)
    for run in runs:
        if run.config["benchmark"] != benchmark:
            raise NesskitError(f"a run of {run.config['benchmark']} has no place in the table of {benchmark}")
    groups, rows = _groups(runs), []
    for line in published(benchmark):
        beside = [group for group in groups if group.is_of(line)]
        rows += [_row(group, line) for group in beside] or [_row(None, line)]
        groups = [group for group in groups if group not in beside]
    rows += [_row(group, None) for group in sorted(groups, key=lambda group: bool(group.remarks))]
    kept = any(run.kept_similarity for run in runs)
    shown = [place for place, name in enumerate(HEADER) if kept or name not in OF_PRETRAINED]
    return [HEADER[place] for place in shown], [[row[place] for place in shown] for row in rows]


@dataclass(frozen=True, eq=False)
class _Group:
    """Runs that differ in nothing but their seed, and are equally complete; what is said of one is true of all."""

    runs: list[Run]
    preset: str
    remarks: list[str]
    reduced: bool

    def is_of(self, line: Published) -> bool:
        """Whether these runs belong beside the published line."""
        return not self.remarks and self.runs[0].config["method"] == line.method and self.preset in line.presets


def _groups(runs: Sequence[Run]) -> list[_Group]:
    groups: dict[str, _Group] = {}
    for run in runs:
        found, preset = remarks(run), preset_of(run)
        key = str([{**complete(run.config), "seed": None, "preset": preset}, found])
        if key not in groups:
            groups[key] = _Group([], preset, found, is_reduced(run))
        groups[key].runs.append(run)
    return list(groups.values())


def _row(group: _Group | None, line: Published | None) -> list[str]:
    runs = group.runs if group else []
    accuracy = Estimate.of([run.average_accuracy for run in runs])
    transfer = Estimate.of([run.backward_transfer for run in runs])
    return [
        _label(group, line),
        f"{accuracy} / {transfer}" if runs else "–",
        f"{_mean_std(line.accuracy)} / {_mean_std(line.transfer)}" if line else "–",
        _difference(accuracy, transfer, line) if runs and line else "–",
        count_text(Estimate.of([run.private_numbers for run in runs]).mean) if runs else "",
        count_text(Estimate.of([run.mean_trained_numbers for run in runs]).mean) if runs else "",
        str(Estimate.of([run.finally_kept_similarity for run in runs])) if runs else "",
        ", ".join(str(run.config["seed"]) for run in runs),
        _epochs(runs),
        f"{Estimate.of([run.seconds for run in runs]).mean:.1f}" if runs else "",
        size_text(Estimate.of([sum(run.memory.values()) for run in runs]).mean) if runs else "",
        _common(runs, "device"),
        _common(runs, "commit"),
        "; ".join(_remarks(group, line)),
    ]


def _label(group: _Group | None, line: Published | None) -> str:
    """The published name, or that of the method, and behind it the protocol of our runs."""
    if group is None:
        return line.label if line else ""
    name = line.label if line else group.runs[0].config["method"]
    return f"{name} ({group.preset}{', reduced' if group.reduced else ''})"


def _remarks(group: _Group | None, line: Published | None) -> list[str]:
    found = group.remarks if group else []
    if group and group.reduced:
        found = ["not a reproduction", *found]
    return found + ([line.note] if line and line.note else [])


def _difference(accuracy: Estimate, transfer: Estimate, line: Published) -> str:
    def in_std(ours: Estimate, theirs: tuple[float, float]) -> str:
        mean, std = theirs
        return f"{(ours.mean - mean) / std:+.1f}" if std else "–"

    return f"{in_std(accuracy, line.accuracy)} / {in_std(transfer, line.transfer)}"


def _epochs(runs: Sequence[Run]) -> str:
    """Epochs that the tasks were trained for, and at most could be."""
    trained = [count for run in runs for count in run.epochs_per_task if count]
    if not trained:
        return ""
    most = runs[0].config["training"]["epochs"]
    span = f"{min(trained)}" if min(trained) == max(trained) else f"{min(trained)} to {max(trained)}"
    return span if span == str(most) else f"{span} (at most {most})"


def _common(runs: Sequence[Run], key: str) -> str:
    return ", ".join(sorted({str(run.environment[key]) for run in runs}))


def _mean_std(values: tuple[Any, Any]) -> str:
    return f"{values[0]:.2f} ± {values[1]:.2f}"
