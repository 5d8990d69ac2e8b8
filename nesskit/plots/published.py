"""Published results as figures: what a table of means and deviations looks like, and our runs beside a line of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from nesskit.errors import NesskitError
from nesskit.plots.drawing import BLUE, GREY, INK, MUTED, plain, style, tidy
from nesskit.runs.comparison import Estimate
from nesskit.runs.record import Run


class PublishedLine(Protocol):
    """What :func:`nesskit.report.results_table.published` gives: a method's mean and standard deviation, in percent."""

    @property
    def label(self) -> str:
        """How the table calls the method."""

    @property
    def method(self) -> str:
        """Its name in nesskit."""

    @property
    def accuracy(self) -> tuple[float, float]:
        """ACC, mean and standard deviation."""

    @property
    def transfer(self) -> tuple[float, float]:
        """BWT, mean and standard deviation."""


def plot_published(lines: Sequence[PublishedLine], highlight: str = "ness", whole: bool = False) -> Figure:
    """ACC and BWT of every line, mean ± one standard deviation, the highest ACC on top.

    Args:
        lines: of one benchmark.
        highlight: the method that is drawn in colour.
        whole: whether a BWT far below the others is shown too; otherwise an arrow with its value stands at the edge.

    Raises:
        NesskitError: there is no line.
    """
    if not lines:
        raise NesskitError("there is no published result to draw")
    ordered = sorted(lines, key=lambda line: line.accuracy[0])
    with style():
        figure, axes = plt.subplots(
            1, 2, figsize=(8.6, 0.9 + 0.3 * len(ordered)), sharey=True, layout="constrained", squeeze=True
        )
        accuracy, transfer = axes
        low = min(line.transfer[0] for line in ordered) if whole else -6.0
        for y, line in enumerate(ordered):
            ours = line.method == highlight
            colour, size = (BLUE, 7.0) if ours else (GREY, 5.5)
            marker = "D" if ours else "o"
            for ax, (mean, std) in ((accuracy, line.accuracy), (transfer, line.transfer)):
                if ax is transfer and mean + std < low:
                    ax.annotate(
                        f"◂ {mean:g}", (0, y), xycoords=("axes fraction", "data"), xytext=(3, 0),
                        textcoords="offset points", va="center", fontsize=9, color=INK,
                    )  # fmt: skip
                    continue
                ax.errorbar(mean, y, xerr=std, fmt=marker, color=colour, markersize=size, elinewidth=1.6, zorder=3)
        for ax in axes:
            tidy(ax)
            ax.grid(axis="x")
            ax.margins(y=0.06)
        accuracy.set_yticks(range(len(ordered)), [plain(line.label) for line in ordered])
        accuracy.tick_params(axis="y", labelcolor=INK, length=0)
        transfer.axvline(0, color=INK, linewidth=0.8, zorder=1)
        if not whole:
            transfer.set_xlim(left=low)
        accuracy.set_xlabel("average accuracy ACC (%)")
        transfer.set_xlabel("backward transfer BWT (points)")
    return figure


def describe_published(lines: Sequence[PublishedLine], highlight: str = "ness") -> str:
    """The figure in words, as alternative text."""
    if not lines:
        raise NesskitError("there is no published result to describe")
    ordered = sorted(lines, key=lambda line: -line.accuracy[0])
    ranks = [place for place, line in enumerate(ordered, 1) if line.method == highlight]
    best, last = ordered[0], ordered[-1]
    text = f"{len(ordered)} published results, sorted by ACC: from {best.label} with {best.accuracy[0]:g} % "
    text += f"down to {last.label} with {last.accuracy[0]:g} %."
    places = " and ".join(str(place) for place in ranks)
    return text + (f" {highlight.upper()} stands at place {places}." if ranks else "")


def plot_beside_published(runs: Sequence[Run], line: PublishedLine) -> Figure:
    """ACC and BWT of our runs beside those of a published line: mean ± one standard deviation each, a dot a seed.

    Raises:
        NesskitError: there is no run.
    """
    ours = _measures(runs)
    with style():
        figure, axes = plt.subplots(1, 2, figsize=(8.6, 1.9), sharey=True, layout="constrained", squeeze=True)
        for ax, values, theirs in zip(axes, ours, (line.accuracy, line.transfer), strict=True):
            tidy(ax)
            ax.grid(axis="x")
            estimate = Estimate.of(values)
            ax.errorbar(theirs[0], 1, xerr=theirs[1], fmt="o", color=GREY, markersize=6, elinewidth=1.6)
            ax.errorbar(estimate.mean, 0, xerr=estimate.std, fmt="D", color=BLUE, markersize=7, elinewidth=1.6)
            ax.plot(values, [-0.45] * len(values), "|", color=BLUE, markersize=9, markeredgewidth=1.4)
            ax.margins(x=0.12)
        axes[0].set_yticks([1, 0, -0.45], ["published", "ours", "seed by seed"])
        axes[0].set_ylim(-0.9, 1.5)
        axes[0].tick_params(axis="y", labelcolor=INK, length=0)
        axes[0].set_xlabel("average accuracy ACC (%)")
        axes[1].axvline(0, color=MUTED, linewidth=0.8, zorder=1)
        axes[1].set_xlabel("backward transfer BWT (points)")
    return figure


def describe_beside_published(runs: Sequence[Run], line: PublishedLine) -> str:
    """The figure in words, as alternative text."""
    theirs = (line.accuracy, line.transfer)
    parts = [_against(*each) for each in zip(("ACC", "BWT"), _measures(runs), theirs, strict=True)]
    seeds = "one seed" if len(runs) == 1 else f"{len(runs)} seeds"
    return f"{line.label}, our {seeds} beside the published line: {'; '.join(parts)}."


def _against(name: str, values: Sequence[float], theirs: tuple[float, float]) -> str:
    """``ACC 71.54 ± 0.37 against 72.46 ± 0.26, 3.6 published deviations below``."""
    ours, (mean, std) = Estimate.of(values), theirs
    text = f"{name} {ours} against {mean:.2f} ± {std:.2f}"
    if not std:
        return text
    return f"{text}, {abs(ours.mean - mean) / std:.1f} published deviations {'below' if ours.mean < mean else 'above'}"


def _measures(runs: Sequence[Run]) -> tuple[list[float], list[float]]:
    """ACC and BWT, a value a run."""
    if not runs:
        raise NesskitError("there is no run to put beside the published line")
    return [run.average_accuracy for run in runs], [run.backward_transfer for run in runs]
