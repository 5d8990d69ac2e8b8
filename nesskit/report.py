"""One self-contained HTML page about a run or about several side by side, and the one picture of a demo.

The page asks for nothing from outside: style sheet and figures (SVG) lie inside of it. The same runs give the same
bytes. What it says in words is made from the numbers alone.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

import nesskit
from nesskit import metrics, plots
from nesskit.benchmarks import is_reduced, remarks
from nesskit.comparison import Comparison, Estimate, Failure, size_text
from nesskit.errors import NesskitError
from nesskit.records import Run
from nesskit.settings import flatten
from nesskit.spectrum import LayerProfile

Runs = Run | Sequence[Run] | Comparison
Groups = dict[str, list[Run]]  # label of a method → its runs, one a seed

# Colours of text and axes become those of the page, which knows whether it is light or dark.
_PAGE_COLOURS = {plots.INK: "var(--ink)", plots.MUTED: "var(--muted)", plots.GRID: "var(--line)"}


@dataclass(frozen=True)
class Picture:
    """A figure of the page: its drawing, what a screen reader says, and a caption."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class Table:
    """A table of the page; the first cell of every row is the row's header."""

    header: list[str]
    rows: list[list[str]]
    caption: str
    numeric: bool = False


def write_report(runs: Runs, path: Path | str, title: str | None = None) -> Path:
    """Write the page about ``runs``; what was at ``path`` stays whole until the new page is.

    Args:
        runs: a run, several, or a comparison. Runs that are not finished are shown as far as they got, and marked.
        path: the HTML file; its folder is made.
        title: headline of the page; by default methods and benchmark.

    Returns:
        ``path``.

    Raises:
        NesskitError: there is no run, or the file cannot be written.
    """
    comparison = _comparison(runs)
    page = _template().render(_contents(comparison, title))
    return _write(Path(path), page.encode())


def report_figure(runs: Runs) -> Figure:
    """The result in one picture: accuracy over time, and the accuracy matrices of up to two methods.

    Of the methods that learn one task after another, fine-tuning and NESS are preferred; matrices are means over seeds.
    """
    groups = _groups(_comparison(runs))
    shown = _shown_methods(groups)
    with plots.style():
        figure = Figure(figsize=(5.0 + 4.1 * len(shown), 4.4), layout="constrained")
        axes = figure.subplots(1, 1 + len(shown), width_ratios=[1.15, *([1.0] * len(shown))], squeeze=False)[0]
        plots.plot_accuracy_over_time(groups, axes[0])
        axes[0].set_title("accuracy after each task")
        for ax, label in zip(axes[1:], shown, strict=True):
            matrix = plots.mean_matrix(groups[label])
            explained = plots.legend_fits(len(matrix)) or ax is axes[-1]
            plots.plot_accuracy_matrix(matrix, ax=ax, title=_matrix_title(label, groups[label]), legend=explained)
    return figure


def save_picture(runs: Runs, path: Path | str) -> Path:
    """Write :func:`report_figure` to ``path`` (png, svg or pdf, by its ending); the folder is made.

    Raises:
        NesskitError: there is no run, another ending, or the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    if kind not in ("png", "svg", "pdf"):
        raise NesskitError(f"cannot write a picture to {path}: let its name end in .png, .svg or .pdf")
    buffer = io.BytesIO()
    with plots.style():
        report_figure(runs).savefig(buffer, format=kind)
    return _write(path, buffer.getvalue())


def _comparison(runs: Runs) -> Comparison:
    if isinstance(runs, Comparison):
        return runs
    return Comparison.of([runs] if isinstance(runs, Run) else list(runs))


def _groups(comparison: Comparison) -> Groups:
    return {label: list(by_seed.values()) for label, by_seed in comparison.groups.items()}


def _write(path: Path, content: bytes) -> Path:
    """A whole file beside its place, then renamed onto it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise NesskitError(f"cannot write {path}: {error.strerror}") from error
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nesskit"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def _contents(comparison: Comparison, title: str | None) -> dict[str, Any]:
    """Everything that the template shows."""
    groups = _groups(comparison)
    single = comparison.runs[0] if len(comparison.runs) == 1 else None
    measured = {label: runs for label, runs in groups.items() if any(run.tasks_done for run in runs)}
    over_time = any(run.tasks_done > 1 for run in comparison.runs)
    return {
        "version": nesskit.__version__,
        "title": title or _title(groups),
        "subtitle": _subtitle(comparison),
        "reading": _reading(comparison),
        "caveats": [*_failures(comparison.failures), *_caveats(groups)],
        "measures": _measures(single) if single else [],
        "comparison": None if single else _comparison_table(comparison),
        "over_time": _over_time(measured) if over_time else None,
        "final": _final(measured) if measured and not single else None,
        "matrices": [_matrix(label, runs) for label, runs in measured.items()],
        "matrix_width": f"{max(5 * _matrix_size(len(run.tasks))[0] for run in comparison.runs):.0f}",
        "training": _training(single) if single and single.history else None,
        "free_ranks": [_free_ranks(label, run) for label, run in _first_profiled(groups)],
        "memory": _memory_table(groups),
        "runs": _runs_table(groups),
        "provenance": [
            *_value_tables({plots.display_name(k): flatten(runs[0].config) for k, runs in groups.items()}, "Settings"),
            *_value_tables(_columns(groups, lambda run: run.environment), "Machine and versions"),
            *_value_tables(_columns(groups, lambda run: run.data), "SHA-256 of the data"),
        ],
    }


# --- words ----------------------------------------------------------------------------------------------------------


MANY = 5  # methods; of more a page tells in words only what stands out, and its table all


def _title(groups: Groups) -> str:
    names = [plots.display_name(label) for label in groups]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    listed = f"{len(names)} methods" if len(names) > MANY else listed
    return f"{_capitalised(listed)} on {' and '.join(_benchmarks(groups))}"


def _benchmarks(groups: Groups) -> list[str]:
    return list(dict.fromkeys(_benchmark(run) for runs in groups.values() for run in runs))


def _benchmark(run: Run) -> str:
    return str(run.config.get("benchmark") or run.config.get("stream") or "an unnamed stream")


def _subtitle(comparison: Comparison) -> str:
    """Tasks, seeds and presets in a line."""
    runs = comparison.runs
    counts = sorted({len(run.tasks) for run in runs})
    seeds = sorted({int(run.config["seed"]) for run in runs})
    presets = sorted({str(run.config["preset"]) for run in runs if run.config.get("preset")})
    parts = [
        f"{' or '.join(map(str, counts))} {'task' if counts == [1] else 'tasks'}",
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}",
        *([f"preset {', '.join(presets)}"] if presets else []),
    ]
    return " · ".join(parts)


def _reading(comparison: Comparison) -> str:
    """The result in plain sentences, from nothing but the numbers."""
    groups = _groups(comparison)
    sentences = [_sentence(label, comparison) for label in _told(comparison)]
    if len(groups) > MANY:
        sentences.append(f"The table has all {len(groups)} methods.")
    if len(comparison.runs) == 1:
        run = comparison.runs[0]
        sentences.append(plots.describe_worst_task(run.accuracy, run.tasks))
    if any(len(runs) > 1 for runs in groups.values()):
        sentences.append("These are means over seeds.")
    return " ".join(sentence for sentence in sentences if sentence)


def _told(comparison: Comparison) -> list[str]:
    """The labels that the page tells of in words: of many the reference, the highest and the lowest."""
    if len(comparison.groups) <= MANY:
        return list(comparison.groups)
    ended = [row for row in comparison.rows() if not np.isnan(row.average_accuracy.mean)]
    ended.sort(key=lambda row: row.average_accuracy.mean)
    told = {comparison.reference, *(row.label for row in (*ended[:1], *ended[-1:]))}
    return [label for label in comparison.groups if label in told]


def _sentence(label: str, comparison: Comparison) -> str:
    """How one method ended, how far that is from the reference, and what it lost on the way."""
    runs = list(comparison.groups[label].values())
    average = Estimate.of([run.average_accuracy for run in runs]).mean
    transfer = Estimate.of([run.backward_transfer for run in runs]).mean
    name = _capitalised(plots.display_name(label))
    if np.isnan(average):
        return f"{name} has no result yet." if len(runs) == 1 else f"{name} has no result for some seeds yet."
    if _all_joint(runs):
        return f"{name}, which sees all tasks at once, reaches {average:.1f} %."
    done, count = min(run.tasks_done for run in runs), len(runs[0].tasks)
    verb = "ends at" if all(run.finished for run in runs) else f"stands, after {done} of {count} tasks, at"
    first = label == next(iter(comparison.groups))
    over = (f" on average over {done} tasks" if done > 1 else " on its only task") if first else ""
    distance = _distance(label, comparison)
    lost = "" if np.isnan(transfer) else f"{',' if distance else ''} and {_lost(transfer)}"
    return f"{name} {verb} {average:.1f} %{over}{distance}{lost}."


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lost(transfer: float) -> str:
    if abs(transfer) < 0.05:  # what one decimal shows as zero
        return "neither lost nor gained on earlier tasks"
    return f"{'lost' if transfer < 0 else 'gained'} {abs(transfer):.1f} points on earlier tasks"


def _distance(label: str, comparison: Comparison) -> str:
    """How far above or below the reference, if both are finished; differences are paired by seed."""
    runs = [*comparison.groups[label].values(), *comparison.groups[comparison.reference].values()]
    difference = next(row for row in comparison.rows() if row.label == label).accuracy_difference.mean
    if label == comparison.reference or np.isnan(difference) or not all(run.finished for run in runs):
        return ""
    if abs(difference) < 0.05:
        return f", level with {plots.display_name(comparison.reference)}"
    where = "above" if difference > 0 else "below"
    return f", {abs(difference):.1f} points {where} {plots.display_name(comparison.reference)}"


def _failures(failures: Sequence[Failure]) -> list[str]:
    return [f"{plots.display_name(f.method)}, seed {f.seed}, failed: {f.reason}." for f in failures]


def _caveats(groups: Groups) -> list[str]:
    """What a reader must know before the numbers: unfinished or reduced runs, and runs that do not belong together."""
    seeds: dict[tuple[str, str], list[str]] = {}  # a remark that holds for several seeds is said once
    for label, runs in groups.items():
        for run in runs:
            for remark in remarks(run):
                seeds.setdefault((label, remark), []).append(str(run.config["seed"]))
    caveats = [
        f"{plots.display_name(label)}, {'seed' if len(who) == 1 else 'seeds'} {', '.join(who)}: {remark}."
        for (label, remark), who in seeds.items()
    ]
    if len(_benchmarks(groups)) > 1:
        caveats.append("These runs are of different benchmarks: their accuracies do not compare.")
    if len({run.tasks_done for runs in groups.values() for run in runs}) > 1:
        caveats.append("These runs got differently far: their averages are over different numbers of tasks.")
    return caveats


def _mark(runs: list[Run]) -> str:
    """What must stand behind a method's name wherever its numbers stand."""
    if not all(run.finished for run in runs):
        return " (unfinished)"
    return " (reduced)" if any(is_reduced(run) for run in runs) else ""


# --- figures --------------------------------------------------------------------------------------------------------


def _shown_methods(groups: Groups) -> list[str]:
    """Up to two labels for the matrices of the one picture: fine-tuning and NESS before others, joint training last."""
    liked = {"finetune": 0, "ness": 1}
    order = sorted(groups, key=lambda label: (_all_joint(groups[label]), liked.get(label.partition(" ")[0], 2)))
    sequential = [label for label in order if not _all_joint(groups[label])]
    return (sequential or order)[:2]


def _all_joint(runs: list[Run]) -> bool:
    return all(plots.is_joint(run.accuracy) for run in runs)


def _matrix_title(label: str, runs: list[Run]) -> str:
    mean_of = f", mean of {len(runs)} seeds" if len(runs) > 1 else ""
    return f"{plots.display_name(label)}{_mark(runs)}{mean_of}\n{plots.measures_text(plots.mean_matrix(runs))}"


def _new_figure(width: float, height: float) -> Figure:
    """A figure that pyplot does not know, so that none is left open."""
    with plots.style():
        return Figure(figsize=(width, height), layout="constrained")


def _picture(figure: Figure, alternative: str, caption: str) -> Picture:
    """The figure as SVG that lies inside the page, takes the page's colours, and speaks."""
    buffer = io.StringIO()
    # Text stays text (searchable, in the page's font); a fixed salt makes the same figure the same bytes.
    salt = re.sub(r"\W+", "-", caption)
    with plots.style(), mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return Picture(_inline(buffer.getvalue(), alternative), caption)


def _inline(svg: str, alternative: str) -> Markup:
    """An SVG file of matplotlib as an element of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = svg.replace("<g id=", "<g data-part=")  # ids of groups repeat from figure to figure; nothing refers to them
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for colour, variable in _PAGE_COLOURS.items():
        svg = svg.replace(colour, variable)
    width = re.search(r'width="([\d.]+)pt"', svg)
    smallest = (
        0.55 * float(width.group(1)) if width else 0
    )  # on a narrow screen it scrolls rather than become illegible
    start = Markup('<svg role="img" aria-label="{}" style="min-width: {}pt"').format(alternative, f"{smallest:.0f}")
    return Markup(svg.replace("<svg", start, 1))  # matplotlib has escaped every text in it


def _over_time(groups: Groups) -> Picture:
    figure = _new_figure(7.2, 3.7)
    plots.plot_accuracy_over_time(groups, figure.subplots())
    several = any(len(runs) > 1 for runs in groups.values())
    caption = "Mean test accuracy over the tasks learned so far, after each task." + (
        " Lines are means over seeds, bands ± one standard deviation." if several else ""
    )
    ends = [f"{plots.display_name(label)} {_ends(runs)}" for label, runs in groups.items()]
    return _picture(figure, f"Accuracy after each task: {'; '.join(ends)}.", caption)


def _ends(runs: list[Run]) -> str:
    """How a line begins and ends, in words."""
    last = Estimate.of([run.average_accuracy for run in runs]).mean
    if np.isnan(last):
        return "has no result yet"
    if _all_joint(runs):
        return f"is level at {last:.1f} %"
    first = Estimate.of([float(run.accuracy[0, 0]) for run in runs]).mean
    return f"goes from {first:.1f} % to {last:.1f} %"


def _final(groups: Groups) -> Picture:
    longest = max((run.tasks for runs in groups.values() for run in runs), key=len)
    figure = _new_figure(7.2, 3.4)
    plots.plot_final_accuracy(groups, figure.subplots(), tasks=plots.short_names(longest))
    alternative = "; ".join(f"{plots.display_name(label)} {_range_of_tasks(runs)}" for label, runs in groups.items())
    spread = " Lines are ± one standard deviation over seeds." if any(len(r) > 1 for r in groups.values()) else ""
    return _picture(
        figure, f"Final accuracy of each task: {alternative}.", f"Test accuracy on each task at the end.{spread}"
    )


def _range_of_tasks(runs: list[Run]) -> str:
    finals = metrics.final_accuracy(plots.mean_matrix(runs))
    finite = finals[~np.isnan(finals)]
    return f"from {finite.min():.1f} % to {finite.max():.1f} %" if len(finite) else "without a result"


def _matrix_size(tasks: int) -> tuple[float, float]:
    """Width and height in inches, so that a cell holds its number and the legend has its place."""
    side = float(np.clip(1.5 + 0.34 * tasks, 3.3, 8.6))
    return side + (0.0 if plots.legend_fits(tasks) else 1.6), side


def _matrix(label: str, runs: list[Run]) -> Picture:
    matrix = plots.mean_matrix(runs)
    figure = _new_figure(*_matrix_size(len(matrix)))
    tasks = runs[0].tasks
    names = plots.short_names(tasks)
    plots.plot_accuracy_matrix(matrix, names, figure.subplots(), title=_matrix_title(label, runs))
    caption = (
        f"{plots.display_name(label)}: accuracy in percent on each task (column) after each task learned (row)"
        + (f", mean of {len(runs)} seeds." if len(runs) > 1 else ".")
    )
    return _picture(figure, f"{plots.display_name(label)}. {plots.describe_accuracy_matrix(matrix, tasks)}", caption)


def _training(run: Run) -> Picture:
    """Loss, and the learning rate where it changed."""
    rates = sorted({epoch.lr for epoch in run.history})
    changes = len(rates) > 1
    figure = _new_figure(7.2, 4.2 if changes else 3.1)
    if changes:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1])
        plots.plot_learning_rate(run.history, lower)
        plots.plot_loss(run.history, upper)
        upper.set_xlabel("")
    else:
        plots.plot_loss(run.history, figure.subplots())
    first, last = run.history[0].train_loss, run.history[-1].train_loss
    rate = f"from {rates[-1]:g} down to {rates[0]:g}" if changes else f"{rates[0]:g} throughout"
    alternative = f"Training loss over {len(run.history)} epochs: {first:.3g} in the first, {last:.3g} in the last."
    return _picture(figure, alternative, f"Mean training loss of every epoch; the learning rate is {rate}.")


def _first_profiled(groups: Groups) -> list[tuple[str, Run]]:
    """Of every method the first run that has measured its layers."""
    found = ((label, next((run for run in runs if run.profiles), None)) for label, runs in groups.items())
    return [(label, run) for label, run in found if run is not None]


def _free_ranks(label: str, run: Run) -> tuple[Picture, Table]:
    """What each layer left free for each task, as a figure and as a table."""
    layers = list(dict.fromkeys(profile.layer for profile in run.profiles))
    tasks = sorted({profile.task for profile in run.profiles})
    figure = _new_figure(min(9.0, 2.2 + 0.62 * len(tasks)), 1.0 + 0.36 * len(layers))
    plots.plot_free_rank(run.profiles, figure.subplots())
    who = f"{plots.display_name(label)}, seed {run.config['seed']}"
    table = Table(
        ["layer", "d", *(f"task {task + 1}" for task in tasks)],
        [_rank_row(layer, [p for p in run.profiles if p.layer == layer], tasks) for layer in layers],
        f"{who}: r, and its share of the layer's d directions.",
        numeric=True,
    )
    last = [p for p in run.profiles if p.task == tasks[-1]]
    shares = ", ".join(f"{p.layer} {p.rank} of {len(p.sigma_squared)}" for p in last)
    alternative = f"Free rank of {len(layers)} layers. For task {tasks[-1] + 1}: {shares}."
    caption = f"{who}: rank r of the free subspace of each layer for each task; the deeper the blue, the greater r / d."
    return _picture(figure, alternative, caption), table


def _rank_row(layer: str, profiles: list[LayerProfile], tasks: list[int]) -> list[str]:
    dimension = len(profiles[0].sigma_squared)
    ranks = {profile.task: profile.rank for profile in profiles}
    cells = [f"{ranks[task]} ({ranks[task] / dimension:.0%})" if task in ranks else "" for task in tasks]
    return [layer, str(dimension), *cells]


# --- tables ---------------------------------------------------------------------------------------------------------


def _measures(run: Run) -> list[tuple[str, str]]:
    """The measures of a single run, large on top of the page."""
    measures = metrics.summary(run.accuracy)
    return [
        ("ACC, %", _number(measures["average_accuracy"])),
        ("BWT, points", _number(measures["backward_transfer"]).replace("-", "−")),
        ("accuracy when learned, %", _number(measures["learning_accuracy"])),
        ("forgetting, points", _number(measures["forgetting"])),
        ("tasks learned", f"{run.tasks_done} of {len(run.tasks)}"),
        ("seconds", f"{run.seconds:.1f}"),
    ]


def _comparison_table(comparison: Comparison) -> Table:
    """Methods in rows: what ``Comparison.table`` says, in words of the page."""
    reference = plots.display_name(comparison.reference)
    _, rows = comparison.table()
    header = [
        "method",
        "seeds",
        "ACC, %",
        "BWT, points",
        f"ACC − {reference}",
        f"BWT − {reference}",
        "seconds",
        "memory kept",
    ]
    groups = _groups(comparison)
    cells = [
        [
            plots.display_name(label) + _mark(groups.get(label, [])),
            *("reference" if cell == "" else cell for cell in rest),
        ]
        for label, *rest in rows
    ]
    caption = (
        f"Mean ± standard deviation over seeds (n − 1); differences to {reference} are paired by seed; –: not defined."
    )
    return Table(header, cells, caption, numeric=True)


def _memory_table(groups: Groups) -> Table | None:
    """What each method keeps between tasks; None before anything was learned."""
    rows = []
    for label, runs in groups.items():
        if _all_joint(runs):
            rows.append([plots.display_name(label), "the data of all tasks, at once", "–"])
        elif runs[0].tasks_done:
            kept = {name: size for name, size in runs[0].memory.items() if size} or {"nothing": 0}
            rows += [[plots.display_name(label), name, size_text(size)] for name, size in kept.items()]
    caption = "What is kept from task to task beside the network."
    return Table(["method", "what", "size"], rows, caption) if rows else None


def _runs_table(groups: Groups) -> Table:
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


def _value_tables(columns: Mapping[str, Mapping[str, Any]], caption: str) -> list[Table]:
    """Values by name: those that all columns share in one table, those that differ beside each other in a second."""
    keys = list(dict.fromkeys(key for values in columns.values() for key in values))
    texts = {key: [_text(values[key]) if key in values else "" for values in columns.values()] for key in keys}
    shared = [[key, cells[0]] for key, cells in texts.items() if len(set(cells)) == 1]
    differing = [[key, *cells] for key, cells in texts.items() if len(set(cells)) > 1]
    tables = [Table(["name", "value"], shared, caption)] if shared else []
    if differing:
        tables.append(Table(["name", *columns], differing, f"{caption}: what differs"))
    return tables


def _columns(groups: Groups, values_of: Callable[[Run], Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
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
