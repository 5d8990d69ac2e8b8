"""Accuracies: the matrix, over time, and at the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from nesskit.errors import NesskitError
from nesskit.plots.drawing import (
    BLUE,
    GREY,
    GRID,
    INK,
    MUTED,
    VERMILLION,
    Array,
    Colour,
    cell_font_size,
    draw_cell,
    frame_cells,
    grid_of_axes,
    label_lines,
    mix,
    name_ticks,
    new_axes,
    plain,
    signed,
    style,
    tidy,
)
from nesskit.plots.looks import Look, display_name, method_looks
from nesskit.runs import metrics
from nesskit.runs.record import Run

Results = Run | Sequence[Run] | ArrayLike  # one run, its repetitions with other seeds, or their accuracy matrices

GAINED, LOST = BLUE, VERMILLION  # vermillion is an orange: an eye without green or red sees blue against yellow
SATURATION = 25.0  # points of change at which a cell's blue or orange is at its deepest
LEGEND_CHANGES = (1.0, 5.0, 25.0)  # points; what the legend of an accuracy matrix shows


def plot_accuracy_matrix(
    accuracy: Run | ArrayLike,
    tasks: Sequence[str] | None = None,
    ax: Axes | None = None,
    title: str | None = None,
    legend: bool = True,
) -> Axes:
    """The accuracy matrix: grey when learned, blue where a task gained since then, orange where it lost.

    The colour is deeper the more changed, up to 25 points. Where nothing changed, and where there is nothing to compare
    with (joint training, which fills the last row only), cells are of a paler grey.

    Args:
        accuracy: a run, or (T, T) percent: row t, column i is accuracy on task i after learning task t, NaN is empty.
        tasks: names of the tasks for the axis; numbers if not given (of a run with few tasks, its names).
        ax: where to draw.
        title: by default the run's method, ACC and BWT; an empty text for none.
        legend: whether to explain the colours.
    """
    matrix = _matrix(accuracy)
    count = len(matrix)
    if tasks is None and isinstance(accuracy, Run):
        tasks = short_names(accuracy.tasks)
    with style():
        side = float(np.clip(1.6 + 0.38 * count, 3.4, 9.2))
        ax = new_axes((side + (0.3 if legend_fits(count) else 1.7), side)) if ax is None else ax
        frame_cells(ax, count, count)
        colours = cell_colours(matrix)
        size = cell_font_size(ax, count, max((len(_percent(v)) for v in matrix[~np.isnan(matrix)]), default=4))
        for row, column in np.argwhere(~np.isnan(matrix)):
            draw_cell(ax, column, row, colours[row, column], _percent(matrix[row, column]), size)
        name_ticks(ax, tasks or [str(task + 1) for task in range(count)])
        ax.set_yticks(range(count), [str(task + 1) for task in range(count)])
        ax.set_xlabel("task")
        ax.set_ylabel("after learning task")
        text = _matrix_title(accuracy) if title is None else title
        ax.set_title(plain(text), loc="left", color=INK, fontsize=11)
        if legend:
            _explain_colours(ax, matrix)
    return ax


def cell_colours(accuracy: ArrayLike) -> Array:
    """(T, T, 3) the colours of an accuracy matrix in percent; white where it is NaN."""
    matrix = np.asarray(accuracy, dtype=np.float64)
    joint = is_joint(matrix)
    colours = np.ones((*matrix.shape, 3))
    for row, column in np.argwhere(~np.isnan(matrix)):
        if row == column and not joint:
            colours[row, column] = _LEARNED
        else:
            colours[row, column] = _change_colour(matrix[row, column] - matrix[column, column], unknown=joint)
    return colours


_LEARNED = mix(GREY, 0.6)
_NEUTRAL = mix(GREY, 0.25)


def _change_colour(points: float, unknown: bool = False) -> Colour:
    """Blue for a gain, orange for a loss of ``points``; the power spreads the small changes, which are most of them."""
    if unknown or np.isnan(points) or points == 0:
        return _NEUTRAL
    depth = min(abs(points) / SATURATION, 1.0) ** 0.75
    return mix(GAINED if points > 0 else LOST, 0.07 + 0.83 * depth)


def is_joint(accuracy: ArrayLike) -> bool:
    """Whether only the last of several rows of the matrix is filled: the tasks were learned together."""
    matrix = np.asarray(accuracy, dtype=np.float64)
    return len(matrix) > 1 and bool(np.isnan(matrix[:-1]).all() and not np.isnan(matrix[-1]).any())


def short_names(tasks: Sequence[str]) -> Sequence[str] | None:
    """The names, if they are few and short enough to stand beneath the columns of a matrix."""
    return tasks if len(tasks) <= 6 and all(len(name) <= 14 for name in tasks) else None


def legend_fits(tasks: int) -> bool:
    """Whether the legend of an accuracy matrix has room above its diagonal; otherwise it stands to the right."""
    return tasks > 5


def _explain_colours(ax: Axes, matrix: Array) -> None:
    """The legend of an accuracy matrix; for joint training, which has no other colour than grey, a few words."""
    count = len(matrix)
    if is_joint(matrix):
        if count > 2:
            where = ((count - 1) / 2, (count - 2) / 2)
            ax.text(*where, "all tasks learned together", ha="center", va="center", color=MUTED, fontsize=9)
        return

    def swatch(colour: Colour) -> Rectangle:
        return Rectangle((0, 0), 1, 1, facecolor=colour, linewidth=0)

    gained, lost = (tuple(swatch(_change_colour(sign * c)) for c in LEGEND_CHANGES) for sign in (1, -1))
    steps = ", ".join(f"{c:g}" for c in LEGEND_CHANGES)
    labels = ["when learned", f"gained {steps} points", f"lost {steps} points"]
    place: dict[str, Any] = {"loc": "upper right", "borderaxespad": 0.0}
    if not legend_fits(count):
        place = {"loc": "upper left", "bbox_to_anchor": (1.02, 1.0), "borderaxespad": 0.0}
    ax.legend(
        [swatch(_LEARNED), gained, lost],
        labels,
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0.15)},
        fontsize=8,
        handlelength=2.6,
        handleheight=0.9,
        labelspacing=0.45,
        **place,
    )


def _matrix_title(accuracy: Run | ArrayLike) -> str:
    matrix = _matrix(accuracy)
    name = f"{display_name(str(accuracy.config.get('method', 'run')))}\n" if isinstance(accuracy, Run) else ""
    return f"{name}{measures_text(matrix)}"


def measures_text(accuracy: ArrayLike) -> str:
    """ACC and BWT in a few characters: ``ACC 95.3 %, BWT −1.0``."""
    average, transfer = metrics.average_accuracy(accuracy), metrics.backward_transfer(accuracy)
    if np.isnan(average):
        return "nothing measured yet"
    return f"ACC {average:.1f} %" + ("" if np.isnan(transfer) else f", BWT {signed(transfer)}")


def describe_accuracy_matrix(accuracy: Run | ArrayLike, tasks: Sequence[str] | None = None) -> str:
    """The accuracy matrix in words, as alternative text: ACC, BWT and the task that lost most."""
    matrix = _matrix(accuracy)
    names = accuracy.tasks if tasks is None and isinstance(accuracy, Run) else tasks
    done = len(metrics.final_accuracy(matrix))
    if not done:
        return f"Accuracy matrix of {len(matrix)} tasks; nothing is measured yet."
    how_many = f"{done} tasks" if done == len(matrix) else f"the first {done} of {len(matrix)} tasks"
    average = metrics.average_accuracy(matrix)
    if is_joint(matrix):
        return f"Accuracy matrix of {how_many} learned together, its last row only: ACC {average:.1f} %."
    transfer = metrics.backward_transfer(matrix)
    text = f"Accuracy matrix of {how_many}: ACC {average:.1f} %"
    if np.isnan(transfer):
        return f"{text}."
    return f"{text}, BWT {signed(transfer)} points. {describe_worst_task(matrix, names)}"


def describe_worst_task(accuracy: ArrayLike, tasks: Sequence[str] | None = None) -> str:
    """One sentence about the task that lost most since it was learned; empty without an earlier task."""
    matrix = _matrix(accuracy)
    changes = metrics.backward_transfer_per_task(matrix)
    if not len(changes) or np.isnan(changes).all():
        return ""
    worst = int(np.nanargmin(changes))
    if changes[worst] > -0.05:  # what one decimal shows as no loss
        return "No task lost accuracy after it was learned."
    name = f"task {worst + 1}" + (f" ({tasks[worst]})" if tasks else "")
    before, after = matrix[worst, worst], metrics.final_accuracy(matrix)[worst]
    return f"Most was lost on {name}: {before:.1f} % when it was learned, {after:.1f} % at the end."


def plot_accuracy_over_time(runs: Mapping[str, Results], ax: Axes | None = None) -> Axes:
    """Mean accuracy over the tasks seen so far, after each task.

    Lines are means over seeds (where every seed has got that far), bands ± one standard deviation (n - 1). Joint
    training, which knows only the end, is a horizontal dashed line.

    Args:
        runs: label (a method's name, settings may follow) → one run, the runs of several seeds, or their matrices.
        ax: where to draw.
    """
    curves = {label: _accuracy_curve(results) for label, results in runs.items()}
    with style():
        ax = new_axes((6.6, 3.9)) if ax is None else ax
        tidy(ax)
        looks = method_looks(curves)
        lines = [_draw_curve(ax, x, v, looks[label], display_name(label)) for label, (x, v) in curves.items()]
        ax.set_xlabel("tasks learned")
        ax.set_ylabel("mean accuracy so far (%)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _fit_percent(ax, [values for _, values in curves.values()])
        ax.margins(x=0.02)
        label_lines(ax, lines)
    return ax


def accuracy_so_far(accuracy: ArrayLike) -> Array:
    """(T,) after each task t the mean accuracy, in percent, over tasks 1 … t; NaN where it was not measured."""
    return np.array([row[: task + 1].mean() for task, row in enumerate(_matrix(accuracy))])


def _accuracy_curve(results: Results) -> tuple[Array, Array]:
    """x (n,) and for every seed its accuracies (seeds, n); level for joint training."""
    matrices = matrices_of(results)
    count = matrices.shape[1]
    if all(is_joint(matrix) for matrix in matrices):
        finals = np.array([metrics.average_accuracy(matrix) for matrix in matrices])
        return np.array([1.0, count]), np.repeat(finals[:, np.newaxis], 2, axis=1)
    return np.arange(1.0, count + 1), np.stack([accuracy_so_far(matrix) for matrix in matrices])


def _draw_curve(ax: Axes, x: Array, values: Array, look: Look, label: str) -> Line2D:
    """The mean over seeds as a line, which is returned, and the spread as a band."""
    mean = values.mean(axis=0)
    marker = "" if look.marker == "_" else look.marker  # the level of joint training has no points of its own
    drawn: dict[str, Any] = {"linestyle": look.line, "color": look.colour, "marker": marker, "markeredgewidth": 0}
    (line,) = ax.plot(x, mean, label=plain(label), zorder=3, **drawn)
    if len(values) > 1:
        spread = _spread(values)
        ax.fill_between(x, mean - spread, mean + spread, color=look.colour, alpha=0.16, linewidth=0, zorder=2)
    return line


def plot_final_accuracy(
    runs: Mapping[str, Results], ax: Axes | None = None, tasks: Sequence[str] | None = None
) -> Axes:
    """Accuracy on each task at the end: one dot a method, ± one standard deviation over seeds (n - 1).

    Args:
        runs: label (a method's name, settings may follow) → one run, the runs of several seeds, or their matrices.
        ax: where to draw.
        tasks: names of the tasks for the axis; numbers if not given.
    """
    finals = {label: np.stack([_final_row(m) for m in matrices_of(results)]) for label, results in runs.items()}
    count = max(values.shape[1] for values in finals.values())
    with style():
        ax = new_axes((max(5.0, min(10.0, 1.5 + 0.55 * count)), 3.6)) if ax is None else ax
        tidy(ax)
        for task in range(1, count, 2):  # a quiet band behind every second task keeps its dots together
            ax.axvspan(task - 0.5, task + 0.5, color=GRID, alpha=0.35, linewidth=0, zorder=0)
        looks = method_looks(finals)
        for number, (label, values) in enumerate(finals.items()):
            offset = 0.6 * ((number + 0.5) / len(finals) - 0.5)
            _draw_dots(ax, np.arange(float(values.shape[1])) + offset, values, looks[label], display_name(label))
        name_ticks(ax, tasks or [str(task + 1) for task in range(count)])
        ax.set_xlim(-0.5, count - 0.5)
        ax.set_xlabel("task")
        ax.set_ylabel("final accuracy (%)")
        _fit_percent(ax, finals.values())
        columns = 4 if max(map(len, finals)) < 20 else 2
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.2, handlelength=1.2)
    return ax


def _draw_dots(ax: Axes, x: Array, values: Array, look: Look, label: str) -> None:
    ax.errorbar(
        x,
        values.mean(axis=0),
        _spread(values) if len(values) > 1 else None,
        fmt=look.marker,
        color=look.colour,
        markersize=9 if look.marker == "_" else 6,
        markeredgewidth=2 if look.marker == "_" else 0,
        elinewidth=1.4,
        label=plain(label),
        zorder=3,
    )


def _fit_percent(ax: Axes, values: Iterable[Array]) -> None:
    """Limits around means ± spread over seeds, at least ten points apart so that small differences look small."""
    bounds = [v.mean(axis=0) + sign * _spread(v) for v in values for sign in (-1, 1)]
    finite = np.concatenate([bound[np.isfinite(bound)] for bound in bounds])
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 100.0)
    low = min(low, high - 10)
    margin = 0.06 * (high - low)
    ax.set_ylim(max(low - margin, -2.0), min(high + margin, 102.0))


def _spread(values: Array) -> Array:
    """(n,) standard deviation over seeds (n - 1) of values (seeds, n); zero for one seed."""
    return values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])


def _matrix(accuracy: Run | ArrayLike) -> Array:
    """(T, T) percent of a run or an array."""
    matrix = np.asarray(accuracy.accuracy if isinstance(accuracy, Run) else accuracy, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not len(matrix):
        raise NesskitError(f"an accuracy matrix must be square (tasks × tasks), got shape {matrix.shape}")
    return matrix


def matrices_of(results: Results) -> Array:
    """(seeds, T, T) percent."""
    if isinstance(results, Run):
        return _matrix(results)[np.newaxis]
    several = list(results) if isinstance(results, Sequence | np.ndarray) else [results]
    if several and not isinstance(several[0], Run) and np.ndim(several[0]) == 1:
        return _matrix(np.asarray(several, dtype=np.float64))[np.newaxis]
    matrices = [_matrix(one) for one in several]
    shapes = {matrix.shape for matrix in matrices}
    if len(shapes) != 1:
        raise NesskitError("runs under one label must have the same number of tasks, and there must be one at least")
    return np.stack(matrices)


def mean_matrix(results: Results) -> Array:
    """(T, T) percent, the mean over seeds; NaN where a seed has no value."""
    return matrices_of(results).mean(axis=0)


def plot_task_curves(results: Results) -> list[Axes]:
    """Accuracy on every task from when it was learned to the end: small multiples in a figure of their own.

    Lines are means over seeds, bands ± one standard deviation (n - 1); a dotted line goes on from where each began.

    Args:
        results: one run, the runs of several seeds, or their matrices.
    """
    matrices = matrices_of(results)
    count = matrices.shape[1]
    with style():
        axes = grid_of_axes(count, (1.75, 1.6), columns=5)
        for task, ax in enumerate(axes):
            x, values = np.arange(task + 1.0, count + 1), matrices[:, task:, task]
            mean, spread = values.mean(axis=0), _spread(values)
            tidy(ax)
            ax.axhline(mean[0], color=MUTED, linestyle=":", linewidth=1.2)
            ax.fill_between(x, mean - spread, mean + spread, color=BLUE, alpha=0.16, linewidth=0)
            ax.plot(x, mean, color=BLUE, marker="o" if task == count - 1 else "")
            ax.set_title(f"task {task + 1}", loc="left", color=INK, fontsize=10)
            ax.set_xlim(0.5, count + 0.5)
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        _fit_together(axes, matrices)
        axes[0].set_ylabel("accuracy (%)")
        axes[count - 1].set_xlabel("tasks learned")
    return axes


def _fit_together(axes: Sequence[Axes], matrices: Array) -> None:
    """The same limits for every task, so that heights can be compared."""
    _fit_percent(axes[0], [matrices[:, :, task] for task in range(matrices.shape[1])])
    for ax in axes[1:]:
        ax.set_ylim(axes[0].get_ylim())


def describe_task_curves(results: Results, tasks: Sequence[str] | None = None) -> str:
    """The curves in words, as alternative text: how many, and the tasks that gained and lost most."""
    mean = mean_matrix(results)
    changes = metrics.backward_transfer_per_task(mean)
    text = f"Accuracy on each of {len(mean)} tasks from when it was learned to the end."
    if len(changes) and np.nanmax(changes) >= 0.05:
        best = int(np.nanargmax(changes))
        text += f" Task {best + 1} gained most: from {mean[best, best]:.1f} % to {mean[-1, best]:.1f} %."
    return f"{text} {describe_worst_task(mean, tasks)}".strip()


def _final_row(matrix: Array) -> Array:
    """(T,) accuracy of each task at the end, NaN for tasks that were not learned."""
    final = metrics.final_accuracy(matrix)
    return np.concatenate([final, np.full(len(matrix) - len(final), np.nan)])


def _percent(value: float) -> str:
    return f"{value:.1f}"
