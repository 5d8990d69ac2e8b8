"""The figures of the page: SVG that lies inside it, takes its colours, and speaks to a screen reader."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from nesskit import plots
from nesskit.report.groups import Groups, all_joint, mark
from nesskit.report.tables import Table
from nesskit.runs import metrics
from nesskit.runs.comparison import Estimate
from nesskit.runs.record import Run
from nesskit.spectra.profile import LayerProfile

# Colours of text and axes become those of the page, which knows whether it is light or dark.
_PAGE_COLOURS = {plots.INK: "var(--ink)", plots.MUTED: "var(--muted)", plots.GRID: "var(--line)"}


@dataclass(frozen=True)
class Picture:
    """A figure of the page: its drawing, what a screen reader says, and a caption."""

    svg: Markup
    caption: str


def matrix_title(label: str, runs: list[Run]) -> str:
    """Method, what its numbers lack, over how many seeds the mean is, and ACC and BWT."""
    mean_of = f", mean of {len(runs)} seeds" if len(runs) > 1 else ""
    return f"{plots.display_name(label)}{mark(runs)}{mean_of}\n{plots.measures_text(plots.mean_matrix(runs))}"


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


def accuracy_over_time(groups: Groups) -> Picture:
    """Mean accuracy over the tasks learned so far, a line a method."""
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
    if all_joint(runs):
        return f"is level at {last:.1f} %"
    first = Estimate.of([float(run.accuracy[0, 0]) for run in runs]).mean
    return f"goes from {first:.1f} % to {last:.1f} %"


def final_accuracy(groups: Groups) -> Picture:
    """Accuracy of every task at the end, a line a method."""
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


def matrix_size(tasks: int) -> tuple[float, float]:
    """Width and height in inches, so that a cell holds its number and the legend has its place."""
    side = float(np.clip(1.5 + 0.34 * tasks, 3.3, 8.6))
    return side + (0.0 if plots.legend_fits(tasks) else 1.6), side


def accuracy_matrix(label: str, runs: list[Run]) -> Picture:
    """The accuracy matrix of one method, the mean over its seeds."""
    matrix = plots.mean_matrix(runs)
    figure = _new_figure(*matrix_size(len(matrix)))
    tasks = runs[0].tasks
    names = plots.short_names(tasks)
    plots.plot_accuracy_matrix(matrix, names, figure.subplots(), title=matrix_title(label, runs))
    caption = (
        f"{plots.display_name(label)}: accuracy in percent on each task (column) after each task learned (row)"
        + (f", mean of {len(runs)} seeds." if len(runs) > 1 else ".")
    )
    return _picture(figure, f"{plots.display_name(label)}. {plots.describe_accuracy_matrix(matrix, tasks)}", caption)


def training_course(run: Run) -> Picture:
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


def first_profiled(groups: Groups) -> list[tuple[str, Run]]:
    """Of every method the first run that has measured its layers."""
    found = ((label, next((run for run in runs if run.profiles), None)) for label, runs in groups.items())
    return [(label, run) for label, run in found if run is not None]


def free_ranks(label: str, run: Run) -> tuple[Picture, Table]:
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
