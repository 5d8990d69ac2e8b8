"""How training went: loss and learning rate, epoch after epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from nesskit.plots.drawing import BLUE, GRID, INK, VERMILLION, Array, new_axes, plain_log_scale, style, tidy
from nesskit.runs.record import EpochRecord


def plot_loss(history: Sequence[EpochRecord], ax: Axes | None = None) -> Axes:
    """Training loss (mean cross-entropy of an epoch) and, if there is any, validation loss, epoch after epoch."""
    x = _epoch_positions(history)
    train = np.array([epoch.train_loss for epoch in history], dtype=np.float64)
    valid = np.array([np.nan if epoch.valid_loss is None else epoch.valid_loss for epoch in history])
    with style():
        ax = new_axes((8.0, 3.0)) if ax is None else ax
        tidy(ax)
        _plot_by_task(ax, history, x, train, color=BLUE, linewidth=1.6, label="training")
        if np.isfinite(valid).any():
            _plot_by_task(ax, history, x, valid, color=VERMILLION, linewidth=1.4, linestyle="--", label="validation")
            ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
        if len(train) and train.min() > 0 and train.max() > 30 * train.min():
            plain_log_scale(ax)
        _mark_tasks(ax, history)
        ax.set_ylabel("loss")
    return ax


def plot_learning_rate(history: Sequence[EpochRecord], ax: Axes | None = None) -> Axes:
    """The learning rate, epoch after epoch."""
    rates = np.array([epoch.lr for epoch in history], dtype=np.float64)
    with style():
        ax = new_axes((8.0, 1.8)) if ax is None else ax
        tidy(ax)
        _plot_by_task(ax, history, _epoch_positions(history), rates, color=INK, linewidth=1.4, drawstyle="steps-mid")
        if len(rates) and rates.max() > 4 * rates.min():
            plain_log_scale(ax)
        _mark_tasks(ax, history)
        ax.set_ylabel("learning rate")
    return ax


def _epoch_positions(history: Sequence[EpochRecord]) -> Array:
    """1, 2, … through all tasks."""
    return np.arange(1.0, len(history) + 1)


def _plot_by_task(
    ax: Axes, history: Sequence[EpochRecord], x: Array, y: Array, label: str | None = None, **line: Any
) -> None:
    """One line a task: what lies between the last epoch of a task and the first of the next was never a value."""
    tasks = np.array([epoch.task for epoch in history])
    for number, task in enumerate(np.unique(tasks)):
        chosen = tasks == task
        marker = "o" if chosen.sum() == 1 else ""
        ax.plot(x[chosen], y[chosen], marker=marker, label=label if number == 0 else None, **line)


def _mark_tasks(ax: Axes, history: Sequence[EpochRecord]) -> None:
    """Ticks in the middle of the tasks, thin lines between them."""
    tasks = np.array([epoch.task for epoch in history], dtype=int)
    learned = np.unique(tasks)
    starts = np.array([np.flatnonzero(tasks == task)[0] for task in learned])
    sizes = np.array([np.count_nonzero(tasks == task) for task in learned])
    together = len(learned) == 1 and len(tasks) and learned[0] > 0  # joint training notes its epochs at the last task
    ax.set_xticks(starts + (sizes + 1) / 2, ["all"] if together else [str(task + 1) for task in learned])
    ax.tick_params(axis="x", length=0)
    for start in starts[1:]:
        ax.axvline(start + 0.5, color=GRID, linewidth=1.0, zorder=1)
    ax.set_xlim(0.0, len(tasks) + 1.0)
    ax.set_xlabel("task, epoch after epoch")
