"""What happens in all layers of a network: room to learn, drift through depth, and kept moments that age."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from nesskit.analysis import Capacity, FeatureDrift, OutputDrift
from nesskit.errors import NesskitError
from nesskit.plots.drawing import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    VERMILLION,
    draw_cell,
    frame_cells,
    legend_above,
    legend_right,
    mix,
    name_ticks,
    new_axes,
    plain,
    series_looks,
    style,
    tidy,
)
from nesskit.spectra.profile import LayerProfile


def plot_free_rank(profiles: Sequence[LayerProfile], ax: Axes | None = None) -> Axes:
    """How many directions each layer left free for each task: r in the cells, a deeper blue the greater its share of d.

    Args:
        profiles: of one run; those with nonzero weight in the layer's filter count as free.
        ax: where to draw.
    """
    layers = list(dict.fromkeys(profile.layer for profile in profiles))
    tasks = sorted({profile.task for profile in profiles})
    dimensions = {profile.layer: len(profile.sigma_squared) for profile in profiles}
    with style():
        ax = new_axes((2.2 + 0.62 * len(tasks), 1.1 + 0.42 * len(layers))) if ax is None else ax
        frame_cells(ax, len(layers), len(tasks))
        ax.set_aspect("auto")
        width = ax.get_window_extent().width / ax.figure.dpi * 72 / max(len(tasks), 1)
        size = float(np.clip(0.85 * width / (0.62 * len(str(max((p.rank for p in profiles), default=0)))), 4, 10))
        for profile in profiles:
            colour = mix(BLUE, 0.05 + 0.65 * profile.rank / dimensions[profile.layer])
            draw_cell(ax, tasks.index(profile.task), layers.index(profile.layer), colour, str(profile.rank), size)
        ax.set_xticks(range(len(tasks)), [str(task + 1) for task in tasks])
        ax.set_yticks(range(len(layers)), [plain(f"{layer}, d = {dimensions[layer]}") for layer in layers])
        ax.set_xlabel("task")
    return ax


def plot_capacity(capacity: Capacity, ax: Axes | None = None) -> Axes:
    """Which share of its parameters each layer, and the network as a whole, is free to train for each task."""
    tasks = np.array(capacity.tasks) + 1
    with style():
        ax = new_axes((6.2, 3.4)) if ax is None else ax
        tidy(ax)
        for layer, share, (colour, line) in zip(
            capacity.layers, capacity.free_share, series_looks(len(capacity.layers)), strict=True
        ):
            ax.plot(tasks, 100 * share, color=colour, linestyle=line, marker="o", linewidth=1.6, label=plain(layer))
        if np.isfinite(capacity.network_share).any():
            network: dict[str, Any] = {"color": INK, "linestyle": "--", "marker": "s", "label": "all layers"}
            ax.plot(tasks, 100 * capacity.network_share, **network)
        ax.set_ylim(0, 104)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ax.set_xlabel("task")
        ax.set_ylabel("trainable parameters (%)")
        legend_right(ax)
    return ax


def describe_capacity(capacity: Capacity) -> str:
    """How capacity changes from the first to the last profiled task, in words, as alternative text."""
    first, last = capacity.tasks[0] + 1, capacity.tasks[-1] + 1
    shares = "; ".join(
        f"{layer} {share[0]:.0%} and {share[-1]:.0%}"
        for layer, share in zip(capacity.layers, capacity.free_share, strict=True)
    )
    return f"Trainable share of each layer in task {first} and in task {last}: {shares}."


def plot_drift(drift: OutputDrift, ax: Axes | None = None) -> Axes:
    """How far the outputs of every layer moved on old inputs, through depth, and what they moved by.

    The three parts add up to the total, which a line marks; a part that works against the others lies below zero. The
    last column is what the network puts out.
    """
    names = [layer.layer for layer in drift.layers]
    x = np.arange(float(len(names)))
    parts = 100 * np.array([np.multiply(np.nan_to_num(layer.shares), layer.total) for layer in drift.layers])
    with style():
        ax = new_axes((max(4.4, 2.0 + 0.55 * len(names)), 3.6)) if ax is None else ax
        tidy(ax)
        up, down = np.zeros(len(names)), np.zeros(len(names))
        for part, (name, colour, hatch) in zip(parts.T, _DRIFT_LOOKS, strict=True):
            base = np.where(part >= 0, up, down)
            ax.bar(x, part, 0.62, base, color=colour, hatch=hatch, edgecolor="white", linewidth=0.6, label=name)
            up, down = up + np.maximum(part, 0), down + np.minimum(part, 0)
        total = [100 * layer.total for layer in drift.layers]
        ax.plot(x, total, "_", color=INK, markersize=24, markeredgewidth=2, label="total")
        ax.bar(len(names), 100 * drift.features, 0.62, color=GREY)
        ax.axhline(0, color=INK, linewidth=0.8)
        name_ticks(ax, [*names, "network"])
        ax.set_ylabel("change of old outputs (%)")
        legend_above(ax, columns=2)
    return ax


_DRIFT_LOOKS = (
    ("own update ΔW x", BLUE, ""),
    ("moved inputs W Δx", ORANGE, "//"),
    ("both ΔW Δx", PURPLE, ".."),
)


def describe_drift(drift: OutputDrift) -> str:
    """Drift through depth in words, as alternative text."""
    layers = "; ".join(
        f"{layer.layer} {layer.total:.1%}" + ("" if np.isnan(layer.shares[0]) else f", {layer.shares[0]:.0%} its own")
        for layer in drift.layers
    )
    return f"Change of old outputs by layer: {layers}. The network's outputs change by {drift.features:.1%}."


def plot_feature_drift(drifts: Sequence[FeatureDrift], ax: Axes | None = None) -> Axes:
    """How much input energy lies in the directions that a kept moment calls free: by that moment, and really.

    Raises:
        NesskitError: there is no layer.
    """
    if not drifts:
        raise NesskitError("there is no layer to draw: collect moments of one at least")
    x = np.arange(float(len(drifts)))
    believed, found = ([100 * getattr(d, key) for d in drifts] for key in ("energy_believed", "energy_found"))
    with style():
        ax = new_axes((max(4.2, 1.8 + 0.55 * len(drifts)), 3.4)) if ax is None else ax
        tidy(ax)
        ax.vlines(x, believed, found, color=INK, linewidth=0.8, zorder=2)
        ax.plot(x, believed, "o", color=BLUE, markersize=6, label="by the kept moment")
        ax.plot(x, found, "s", color=VERMILLION, markersize=6, label="seen with today's weights")
        name_ticks(ax, [d.layer for d in drifts])
        ax.set_xlim(-0.6, len(drifts) - 0.4)
        ax.set_ylim(bottom=0)
        ax.set_ylabel("old input energy\nin free directions (%)")
        legend_above(ax)
    return ax


def describe_feature_drift(drifts: Sequence[FeatureDrift]) -> str:
    """What kept moments miss, in words, as alternative text."""
    layers = "; ".join(
        f"{d.layer} {d.energy_believed:.2%} believed, {d.energy_found:.2%} found, moments {d.change:.0%} apart"
        for d in drifts
    )
    return f"Old input energy in the directions that kept moments call free: {layers}."
