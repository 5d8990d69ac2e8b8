"""Spectra of layer inputs, where filters cut them, and the subspaces that are left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from nesskit.analysis import LayerCurve, NullSpaceHistory, SubspaceOverlap, effective_rank
from nesskit.analysis.checks import as_singular_values, check_profiles
from nesskit.analysis.spectra import ROUND_OFF, OwnCoordinates, Source
from nesskit.plots.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    VERMILLION,
    Array,
    grid_of_axes,
    legend_above,
    log_scale,
    new_axes,
    plain,
    series_looks,
    style,
    tidy,
)
from nesskit.spectra.filters import HardFilter, Threshold
from nesskit.spectra.profile import LayerProfile

RULE_LOOKS = {  # name of a filter → colour and line style, the same in every figure
    "frobenius": (BLUE, "-"),
    "nuclear": (VERMILLION, "--"),
    "relative": (GREEN, "-."),
    "energy": (PURPLE, ":"),
    "rank": (GREY, "-"),
    "budget": (ORANGE, "--"),
    "soft": (PURPLE, "-"),
}
_RULE_NAMES = {"frobenius": "Frobenius ε = ", "nuclear": "nuclear ε = ", "relative": "relative ε = ", "rank": "rank "}

_FLOOR = ROUND_OFF / 10  # of σ₁: zeros, which have no logarithm, are drawn here, inside the band of round-off


def plot_spectrum(
    source: Source, rules: Sequence[HardFilter] = (), ax: Axes | None = None, title: str | None = None
) -> Axes:
    """σ_i by index on a logarithmic scale, and what each rule leaves free: everything to the right of its line.

    What the first rule frees is shaded, and thresholds show at which σ they cut. Below 1e-7 σ₁ lies round-off: an exact
    null space looks like that.

    Args:
        source: a spectrum, a moment, a layer profile, or singular values (d,).
        rules: hard filters; one that needs a probe needs a layer profile.
        ax: where to draw.
        title: of the axes; by default the layer of a profile.

    Raises:
        SpectrumError: the spectrum is empty, or a rule needs more than ``source`` holds.
    """
    values = as_singular_values(source)
    title = source.layer if title is None and isinstance(source, LayerProfile) else title
    with style():
        ax = new_axes((5.6, 3.4)) if ax is None else ax
        tidy(ax)
        _draw_singular_values(ax, values)
        for number, rule in enumerate(rules):
            _draw_cut(ax, source, rule, shaded=number == 0)
        ax.set_xlabel("direction i")
        ax.set_ylabel("singular value σ")
        legend_above(ax, title=title or "")
    return ax


def plot_layer_spectra(profiles: Sequence[LayerProfile], rules: Sequence[HardFilter] = ()) -> list[Axes]:
    """The spectra of all layers as small multiples, in a figure of their own: the same rule cuts each elsewhere.

    Over each stands its layer, and how many of its directions each rule frees.

    Raises:
        NesskitError: there is no profile.
    """
    with style():
        axes = grid_of_axes(len(check_profiles(profiles)), (2.9, 2.6))
        for ax, profile in zip(axes, profiles, strict=True):
            plot_spectrum(profile, rules, ax)
            ranks = " and ".join(str(_null_rank(profile, rule)) for rule in rules)
            freed = f", r = {ranks} of {len(profile.sigma_squared)}" if rules else ""
            ax.set_title(plain(profile.layer + freed), loc="left", color=INK, fontsize=10, pad=6)
        _share_legend(axes)
    return axes


def describe_spectrum(source: Source, rules: Sequence[HardFilter] = ()) -> str:
    """A spectrum in words, as alternative text: how far it falls, and what each rule frees."""
    values = as_singular_values(source)
    where = f" of layer {source.layer}" if isinstance(source, LayerProfile) else ""
    zeros = int((values <= ROUND_OFF * values[0]).sum())
    text = f"Singular values{where}: {len(values)} directions, from {values[0]:.3g} down to {values[-1]:.3g}"
    text += f" ({zeros} at or under round-off)" if zeros else ""
    text += f"; effective rank {effective_rank(values):.1f}."
    freed = [f"{rule_name(rule)} frees {_null_rank(source, rule)}" for rule in rules]
    return text + (f" {'; '.join(freed)}." if freed else "")


def rule_name(rule: HardFilter) -> str:
    """How a filter is written in a figure: ``frobenius:0.02`` becomes Frobenius ε = 0.02."""
    name, _, values = str(rule).partition(":")
    return _RULE_NAMES.get(name, f"{name} ") + values


def _draw_singular_values(ax: Axes, values: Array) -> None:
    d, top = len(values), values[0] or 1.0
    marker = "o" if d <= 80 else ""
    drawn = np.maximum(values, _FLOOR * top)
    ax.plot(np.arange(1, d + 1), drawn, color=INK, linewidth=1.4, marker=marker, markersize=3, zorder=3, gid="spectrum")
    if drawn[-1] <= ROUND_OFF * top:
        ax.axhspan(_FLOOR * top / 3, ROUND_OFF * top, color=GREY, alpha=0.15, linewidth=0, zorder=0)
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (3, -2), "va": "top"}
        ax.annotate("round-off", (0, ROUND_OFF * top), textcoords="offset points", fontsize=8, color=MUTED, **place)
        ax.set_ylim(_FLOOR * top / 3, 3 * top)
    log_scale(ax)
    ax.set_xlim(0.5, d + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))


def _draw_cut(ax: Axes, source: Source, rule: HardFilter, shaded: bool) -> None:
    """A line where the free directions begin, and for a threshold one at its height."""
    values = as_singular_values(source)
    d, rank = len(values), _null_rank(source, rule)
    colour, line = RULE_LOOKS.get(rule.name, (GREY, "-"))
    name = plain(f"{rule_name(rule)}: r = {rank} of {d}")
    edge = d - rank + 0.5
    ax.axvline(edge, color=colour, linestyle=line, linewidth=1.6, zorder=2, label=name, gid=f"cut {rule.name}")
    if shaded:
        ax.axvspan(edge, d + 0.5, color=colour, alpha=0.12, linewidth=0, zorder=1, gid="null space")
    if isinstance(rule, Threshold):
        cut = rule.cut(OwnCoordinates(values))
        ax.axhline(cut, color=colour, linestyle=line, linewidth=0.9, zorder=2, gid=f"height {rule.name}")


def _share_legend(axes: Sequence[Axes]) -> None:
    """One legend over all axes in place of one in each."""
    for ax in axes:
        legend = ax.get_legend()
        if legend is not None:
            legend.remove()
    lines = [line for line in axes[0].get_lines() if str(line.get_gid()).startswith("cut")]
    names = [str(line.get_label()).partition(":")[0] for line in lines]
    if lines:
        axes[0].figure.legend(lines, names, loc="outside upper left", ncols=len(lines))


def _null_rank(source: Source, rule: HardFilter) -> int:
    if isinstance(source, LayerProfile):
        return LayerCurve.of(source).null_rank(rule)
    return rule.null_rank(OwnCoordinates(as_singular_values(source)))


def plot_principal_angles(overlaps: Mapping[str, SubspaceOverlap], ax: Axes | None = None) -> Axes:
    """Principal angles in ascending order: 0° for a direction that both spaces share, 90° for one that only one has.

    Args:
        overlaps: label → two subspaces, for example ``tasks 1 and 2``.
        ax: where to draw.
    """
    with style():
        ax = new_axes((5.6, 3.4)) if ax is None else ax
        tidy(ax)
        looks = series_looks(len(overlaps))
        for (label, overlap), (colour, line) in zip(overlaps.items(), looks, strict=True):
            count = len(overlap.angles)
            marker = "o" if count <= 40 else ""
            name = plain(f"{label}: {_shared(overlap)}")
            x = np.arange(1, count + 1)
            ax.plot(x, overlap.angles, color=colour, linestyle=line, marker=marker, markersize=3, label=name)
        ax.set_ylim(-3, 93)
        ax.set_yticks([0, 30, 60, 90], ["0°", "30°", "60°", "90°"])
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
        ax.set_xlabel("pair of directions")
        ax.set_ylabel("principal angle")
        legend_above(ax)
    return ax


def describe_principal_angles(overlaps: Mapping[str, SubspaceOverlap]) -> str:
    """Overlaps in words, as alternative text."""
    parts = [
        f"{label}: {_shared(o)}" + (f", angles {o.angles[0]:.0f}° to {o.angles[-1]:.0f}°" if len(o.angles) else "")
        for label, o in overlaps.items()
    ]
    return f"Principal angles between input spaces. {'; '.join(parts)}."


def _shared(overlap: SubspaceOverlap) -> str:
    if not len(overlap.angles):
        return "one of them is empty"
    return f"{overlap.overlap:.0%} shared (by chance {overlap.overlap_by_chance:.0%})"


def plot_null_space(history: NullSpaceHistory, ax: Axes | None = None) -> Axes:
    """How the null space of a layer runs out: its share of all directions, and how much of the first one is left."""
    tasks = np.arange(1, len(history.ranks) + 1)
    with style():
        ax = new_axes((5.6, 3.2)) if ax is None else ax
        tidy(ax)
        free = 100 * history.ranks / history.dimension
        ax.plot(tasks, free, color=BLUE, marker="o", label=f"free directions, of d = {history.dimension}")
        kept = 100 * history.kept
        ax.plot(tasks, kept, color=ORANGE, linestyle="--", marker="s", label="still free, of those after task 1")
        ax.set_ylim(0, 104)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.set_xlabel("tasks learned")
        ax.set_ylabel("share (%)")
        legend_above(ax)
    return ax


def describe_null_space(history: NullSpaceHistory) -> str:
    """How the null space runs out, in words, as alternative text."""
    first, last = int(history.ranks[0]), int(history.ranks[-1])
    text = f"Free directions of {history.dimension}: {first} after task 1, {last} after task {len(history.ranks)}"
    return text + ("." if np.isnan(history.kept[-1]) else f"; {history.kept[-1]:.0%} of the first are still free.")
