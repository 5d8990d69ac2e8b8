"""Methods beside each other: what they reach, what they forget, and what they cost."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from nesskit.errors import NesskitError
from nesskit.plots.accuracy import Results, is_joint, matrices_of
from nesskit.plots.drawing import INK, MUTED, Array, legend_right, new_axes, plain, series_looks, style, tidy
from nesskit.plots.looks import METHOD_LOOKS, Look, display_name, method_looks
from nesskit.runs import metrics
from nesskit.runs.comparison import Estimate, count_text, size_text
from nesskit.runs.record import Run

POINTS = (-50, -20, -10, -5, -2, -1, 0, 1, 2, 5)  # of backward transfer, where the axis has ticks


def plot_tradeoff(runs: Mapping[str, Results], ax: Axes | None = None) -> Axes:
    """ACC over BWT, a dot a method with one standard deviation over seeds (n - 1); joint training is a dashed line.

    Up is better, and so is right. BWT is linear between -1 and 1 and logarithmic beyond, so that methods that forget
    next to nothing can be told apart beside those that forget almost all.

    Args:
        runs: label (a method's name, settings may follow) → one run, the runs of several seeds, or their matrices.
        ax: where to draw.
    """
    looks = method_looks(runs)
    with style():
        ax = new_axes((7.2, 4.0)) if ax is None else ax
        tidy(ax)
        for label, results in runs.items():
            _draw_method(ax, display_name(label), looks[label], matrices_of(results))
        ax.set_xscale("symlog", linthresh=1, linscale=0.7)
        ax.set_xlim(right=max(1.0, ax.get_xlim()[1]))
        ax.xaxis.set_major_locator(FixedLocator(POINTS))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}".replace("-", "−")))
        ax.set_xlabel("BWT (points)")
        ax.set_ylabel("ACC (%)")
        legend_right(ax)
    return ax


def _draw_method(ax: Axes, name: str, look: Look, matrices: Array) -> None:
    accuracy = np.array([metrics.average_accuracy(matrix) for matrix in matrices])
    if all(is_joint(matrix) for matrix in matrices):
        ax.axhline(accuracy.mean(), linestyle="--", color=look.colour, linewidth=1.4, label=plain(name), gid="joint")
        return
    transfer = np.array([metrics.backward_transfer(matrix) for matrix in matrices])
    spread = [values.std(ddof=1) if len(matrices) > 1 else 0.0 for values in (transfer, accuracy)]
    ax.errorbar(
        transfer.mean(), accuracy.mean(), xerr=spread[0], yerr=spread[1], fmt=look.marker, color=look.colour,
        markersize=7, markeredgewidth=1.5, elinewidth=1.0, label=plain(name),
        markerfacecolor=look.colour if look.line == "-" else "white", markeredgecolor=look.colour,
    )  # fmt: skip


def plot_costs(runs: Mapping[str, Sequence[Run]], axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Seconds of a run, and what the method keeps between tasks at its end: means over seeds, one bar a method.

    Args:
        runs: label (a method's name, settings may follow) → its runs.
        axes: the two axes to draw on.

    Raises:
        NesskitError: there is no run.
    """
    if not any(runs.values()):
        raise NesskitError("there is no run whose costs could be drawn")
    seconds = [float(np.mean([run.seconds for run in same])) for same in runs.values()]
    kept = [float(np.mean([sum(run.memory.values()) for run in same])) for same in runs.values()]
    with style():
        if axes is None:
            size = (8.0, 0.7 + 0.27 * len(runs))
            axes = list(plt.subplots(1, 2, figsize=size, layout="constrained", sharey=True)[1])
        _bars(axes[0], runs, seconds, [f"{value:.1f} s" for value in seconds])
        axes[0].set_xlabel("seconds a run")
        _bars(axes[1], runs, kept, [size_text(value) if value else "nothing" for value in kept])
        axes[1].set_xlabel("kept at the end")
        axes[1].xaxis.set_major_locator(MaxNLocator(3))
        axes[1].xaxis.set_major_formatter(FuncFormatter(lambda value, _: size_text(value)))
    return list(axes)


def _bars(ax: Axes, labels: Mapping[str, object], values: Sequence[float], texts: Sequence[str]) -> None:
    tidy(ax)
    ax.grid(False)
    looks, places = method_looks(labels), range(len(labels))
    ax.barh(places, values, color=[looks[label].colour for label in labels], height=0.62)
    for place, value, text in zip(places, values, texts, strict=True):
        ax.annotate(text, (value, place), (4, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
    ax.set_yticks(places, [plain(display_name(label)) for label in labels])
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.margins(x=0.2)
    ax.tick_params(axis="y", length=0, labelcolor=INK)
    ax.tick_params(axis="x", labelcolor=MUTED)


def plot_private_numbers(ways: Mapping[str, Mapping[float, Sequence[float]]], ax: Axes | None = None) -> Axes:
    """ACC over how many numbers a task has for itself, a line for each way to spend them.

    Marks are means over seeds, bars ± one standard deviation (n - 1; none for a single seed). The axis begins with
    nothing: it is linear up to ten numbers and logarithmic beyond.

    Args:
        ways: label (a method's name, settings may follow, or any other) → private numbers of a task → ACC of each seed,
            in percent.
        ax: where to draw.

    Raises:
        NesskitError: a way has no accuracy.
    """
    if not ways or not all(points and all(points.values()) for points in ways.values()):
        raise NesskitError("there is no accuracy to draw: give at least one for every way and number")
    looks = _looks_of_ways(ways)
    with style():
        ax = new_axes((7.6, 4.0)) if ax is None else ax
        tidy(ax)
        for label, points in ways.items():
            numbers = sorted(points)
            estimates = [Estimate.of(points[number]) for number in numbers]
            ax.errorbar(
                numbers, [estimate.mean for estimate in estimates],
                yerr=[0.0 if np.isnan(estimate.std) else estimate.std for estimate in estimates],
                color=looks[label].colour, linestyle=looks[label].line, marker=looks[label].marker,
                linewidth=1.6, elinewidth=1.0, label=plain(display_name(label)), gid=f"way {label}",
            )  # fmt: skip
        ax.set_xscale("symlog", linthresh=10, linscale=0.5)
        ax.set_xlim(left=-2)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count_text(value)))
        ax.set_xlabel("numbers that a task has for itself")
        ax.set_ylabel("ACC (%)")
        legend_right(ax)
    return ax


def _looks_of_ways(labels: Mapping[str, object]) -> dict[str, Look]:
    """The fixed looks of methods, and looks of a series for whatever else."""
    methods = method_looks(label for label in labels if label.partition(" ")[0] in METHOD_LOOKS)
    others = [label for label in labels if label not in methods]
    series = zip(others, series_looks(len(others)), itertools.cycle("osD^vPX"), strict=False)
    return methods | {label: Look(colour, line, marker) for label, (colour, line), marker in series}
