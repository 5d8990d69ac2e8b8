"""Interference against plasticity, and the stability bound beside what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from nesskit.analysis import Frontier, InterferenceCurve, LayerPoint, NetworkCurves, NetworkPoint, StabilityBound
from nesskit.errors import NesskitError
from nesskit.plots.drawing import (
    BLUE,
    GREEN,
    INK,
    SKY,
    VERMILLION,
    Array,
    grid_of_axes,
    legend_above,
    log_scale,
    name_ticks,
    new_axes,
    plain,
    series_looks,
    style,
    tidy,
)
from nesskit.spectra.filters import Filter

Point = LayerPoint | NetworkPoint


def plot_interference(
    curve: InterferenceCurve, ax: Axes | None = None, rank: int | None = None, title: str = ""
) -> Axes:
    """Interference and energy kept by rank, each as a share of what the unrestricted update has.

    Args:
        curve: of one layer.
        ax: where to draw.
        rank: draws a line at this rank.
        title: of the axes.
    """
    with style():
        ax = new_axes((5.6, 3.4)) if ax is None else ax
        tidy(ax)
        energy, cost, knee = 100 * curve.energy_share, 100 * curve.interference_share, curve.knee
        whole = curve.relative_interference[-1]
        size = "" if np.isnan(whole) else f" (100 % = {whole:.2g} ‖W I‖)"
        ax.plot(curve.ranks, energy, color=GREEN, label="energy kept ‖ΔW‖²", gid="energy")
        ax.plot(curve.ranks, cost, color=VERMILLION, linestyle="--", label=f"interference ‖ΔW I‖{size}", gid="cost")
        gap: dict[str, Any] = {"color": INK, "linewidth": 0.8, "marker": "D", "markersize": 4}
        ax.plot([knee, knee], [energy[knee], cost[knee]], label=f"knee, r = {knee}", gid="knee", **gap)
        if rank is not None:
            ax.axvline(rank, color=BLUE, linewidth=1.2, zorder=1, label=f"r = {rank}", gid="rank")
        ax.set_ylim(-2, 104)
        ax.set_xlim(0, curve.dimension)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.set_xlabel("rank r: directions of smallest σ")
        ax.set_ylabel("share of the whole update (%)")
        legend_above(ax, title=title)
    return ax


def describe_interference(curve: InterferenceCurve, rank: int | None = None) -> str:
    """Interference and energy at one rank, by default the knee, in words, as alternative text."""
    if not curve.energy_kept[-1]:
        return "The update is zero: there is nothing to keep and nothing moves."
    at = curve.knee if rank is None else rank
    what = "The knee lies at rank" if rank is None else "At rank"
    text = f"{what} {at} of {curve.dimension}: {curve.energy_share[at]:.0%} of the update's energy is kept"
    text += f" for {np.nan_to_num(curve.interference_share[at]):.0%} of its interference"
    known = not np.isnan(curve.relative_interference[at])
    return text + (f", {curve.relative_interference[at]:.2g} of the size of the old outputs." if known else ".")


def plot_frontier(
    frontiers: Frontier | Mapping[str, Frontier],
    ax: Axes | None = None,
    points: Sequence[Point] = (),
    log: bool = False,
    title: str = "",
) -> Axes:
    """What an update costs over what is left of it: good is below and to the right. Diamonds mark knees.

    Args:
        frontiers: one, or several by label: layers, or a network under several rules. The cost is the relative change
            of old outputs if their size is known, else a share of the whole update's interference.
        ax: where to draw.
        points: circles, such as where a threshold stands now; only where the size of the old outputs is known.
        log: whether the cost is drawn on a logarithmic scale.
        title: of the axes.
    """
    several = frontiers if isinstance(frontiers, Mapping) else {"": frontiers}
    relative = all(np.isfinite(frontier.relative_interference).all() for frontier in several.values())
    with style():
        ax = new_axes((4.8, 3.6)) if ax is None else ax
        tidy(ax)
        for (label, frontier), (colour, line) in zip(several.items(), series_looks(len(several)), strict=True):
            x, y, knee = 100 * frontier.energy_share, 100 * _cost(frontier, relative), frontier.knee
            ax.plot(x, y, color=colour, linestyle=line, linewidth=1.8, label=plain(label) or None, gid="frontier")
            mark: dict[str, Any] = {"marker": "D", "markersize": 7, "markeredgecolor": "white", "zorder": 3}
            ax.plot(x[knee], y[knee], color=colour, gid="knee", **mark)
        for point in points if relative else ():
            where = 100 * point.energy_share, 100 * point.relative_interference
            ring: dict[str, Any] = {"markersize": 10, "markerfacecolor": "none", "markeredgewidth": 2, "zorder": 4}
            ax.plot(*where, marker="o", color=INK, gid="point", **ring)
        if log:
            ax.set_ylim(1e-4 * ax.get_ylim()[1])  # what is less than that does not matter any more
            log_scale(ax)
        ax.set_xlim(-2, 102)
        ax.set_xlabel("energy of the update that is kept (%)")
        ax.set_ylabel("change of old outputs (%)" if relative else "interference (% of the whole update's)")
        legend_above(ax, columns=2, title=title)
    return ax


def plot_layer_frontiers(curves: NetworkCurves, rules: Sequence[Filter] = (), log: bool = False) -> list[Axes]:
    """The frontiers of all layers as small multiples, in a figure of their own; a circle where each rule stands."""
    stands = [curves.at(rule).layers for rule in rules]
    with style():
        axes = grid_of_axes(len(curves.layers), (2.9, 2.5))
        for number, (ax, curve) in enumerate(zip(axes, curves.layers, strict=True)):
            plot_frontier(curve, ax, [layers[number] for layers in stands], log, title=curve.profile.layer)
            ax.set_xlabel("energy kept (%)")
            ax.set_ylabel("change of outputs (%)")
    return axes


def describe_frontier(frontier: Frontier) -> str:
    """The knee of a frontier in words, as alternative text."""
    if not frontier.energy_kept[-1]:
        return "The update is zero: there is nothing to keep and nothing moves."
    knee, relative = frontier.knee, frontier.relative_interference
    text = f"At the knee {frontier.energy_share[knee]:.0%} of the update's energy is kept"
    if np.isnan(relative).any():
        return f"{text} for {np.nan_to_num(frontier.interference_share[knee]):.0%} of its interference."
    text += f" and old outputs change by {relative[knee]:.2g} of their size"
    return f"{text}; the whole update would change them by {relative[-1]:.2g}."


def plot_stability(bounds: Sequence[StabilityBound], ax: Axes | None = None) -> Axes:
    """Eq. 7 beside what was measured, on a logarithmic scale: the bound, the worst and the mean old input.

    Where only profiles are known the root mean square stands beside its own bound.

    Args:
        bounds: one a column: layers, tasks, or both.
        ax: where to draw.

    Raises:
        NesskitError: there is no bound.
    """
    if not bounds:
        raise NesskitError("there is no bound to draw: make some with stability_bound or stability_of_profile")
    x = np.arange(float(len(bounds)))
    with style():
        ax = new_axes((max(4.6, 1.8 + 0.55 * len(bounds)), 3.8)) if ax is None else ax
        tidy(ax)
        single = not np.isnan([b.worst for b in bounds]).any()
        high = [b.bound if single else b.rms_bound for b in bounds]
        low = [b.worst if single else b.rms for b in bounds]
        ax.vlines(x, _positive(low), _positive(high), color=INK, linewidth=0.8, zorder=2)
        name = "bound σⱼ ‖V‖₂ (Eq. 7)" if single else "bound σⱼ ‖V‖ / √N"
        ax.plot(x, _positive(high), "_", color=INK, markersize=16, markeredgewidth=2.4, label=name)
        if single:
            ax.plot(x, _positive(low), "o", color=VERMILLION, markersize=6, label="worst old input")
            ax.plot(x, _positive([b.mean for b in bounds]), "s", color=BLUE, markersize=5, label="mean old input")
        else:
            ax.plot(x, _positive(low), "o", color=SKY, markersize=6, label="root mean square of old inputs")
        for place, top, bottom in zip(x, high, low, strict=True):
            if bottom > 0:
                middle = (top * bottom) ** 0.5
                ax.annotate(f"{top / bottom:.2g}×", (place, middle), (9, 0), textcoords="offset points", fontsize=8)
        name_ticks(ax, _bound_names(bounds))
        ax.set_xlim(-0.6, len(bounds) - 0.2)
        ax.set_ylabel("change of an old output ‖ΔW x‖")
        log_scale(ax)
        legend_above(ax)
    return ax


def describe_stability(bounds: Sequence[StabilityBound]) -> str:
    """How far measured changes lie under the bound, in words, as alternative text."""
    parts = []
    for name, bound in zip(_bound_names(bounds), bounds, strict=True):
        slack = bound.rms_slack if np.isnan(bound.worst) else bound.slack
        what = "root mean square" if np.isnan(bound.worst) else "worst input"
        parts.append(f"{name}: nothing moves" if np.isnan(slack) else f"{name}: bound {slack:.2g} times the {what}")
    return f"Stability bound and measured changes of old outputs. {'; '.join(parts)}."


def _cost(frontier: Frontier, relative: bool) -> Array:
    return frontier.relative_interference if relative else frontier.interference_share


def _positive(values: Sequence[float]) -> Array:
    """NaN in place of what a logarithmic axis cannot show."""
    array = np.asarray(values, dtype=np.float64)
    return np.where(array > 0, array, np.nan)


def _bound_names(bounds: Sequence[StabilityBound]) -> list[str]:
    """Layer, task, or both: whatever tells the columns apart."""
    layers, tasks = ({getattr(b, key) for b in bounds} for key in ("layer", "task"))
    if len(tasks) == 1:
        return [b.layer for b in bounds]
    return [f"task {b.task + 1}" if len(layers) == 1 else f"{b.layer}, task {b.task + 1}" for b in bounds]
