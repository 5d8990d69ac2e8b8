"""How training went: loss and learning rate, epoch after epoch, and how many epochs there were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from nesskit.errors import NesskitError
from nesskit.plots.drawing import BLUE, GREY, GRID, INK, VERMILLION, Array, new_axes, plain_log_scale, style, tidy
from nesskit.runs.record import EpochRecord, Run


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


def plot_epochs(runs: Sequence[Run], ax: Axes | None = None) -> Axes:
    """How many epochs each task was trained for: a dot for every run, a line at their mean.

    Raises:
        NesskitError: there is no run.
    """
    counts = _epochs(runs)
    x = np.arange(1.0, counts.shape[1] + 1)
    with style():
        ax = new_axes((6.2, 2.8)) if ax is None else ax
        tidy(ax)
        ax.plot(x, counts.T, "o", color=GREY, markersize=4.5, markeredgewidth=0)
        ax.hlines(counts.mean(axis=0), x - 0.3, x + 0.3, color=BLUE, linewidth=2.2)
        ax.set_xticks(x, [f"{task:g}" for task in x])
        ax.set_ylim(0)
        ax.set_xlabel("task")
        ax.set_ylabel("epochs")
    return ax


def describe_epochs(runs: Sequence[Run]) -> str:
    """The epochs of the tasks in words, as alternative text."""
    counts = _epochs(runs)
    means = counts.mean(axis=0)
    few, many = int(means.argmin()), int(means.argmax())
    many_runs = "one run" if len(runs) == 1 else f"{len(runs)} runs"
    text = f"Epochs of each task in {many_runs}: from {counts.min()} to {counts.max()}, {counts.mean():.0f} on average"
    return f"{text}; fewest in task {few + 1} with {means[few]:.0f}, most in task {many + 1} with {means[many]:.0f}."


def _epochs(runs: Sequence[Run]) -> Array:
    """(runs, T) epochs of every task."""
    if not runs or len({len(run.tasks) for run in runs}) != 1:
        raise NesskitError("epochs are drawn of one run or several, all of the same number of tasks")
    return np.array([run.epochs_per_task for run in runs])


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
