"""Figures of runs, all in one style and with one fixed colour for each method.

Every function takes runs or plain arrays and an optional ``ax``, and returns the axes. Nothing touches matplotlib's
global settings: the style is a context, ``with style(): …``, which the functions here enter by themselves.

Colours are those of Okabe and Ito (2008), which people with a colour vision deficiency tell apart. No figure relies on
colour alone: line styles, markers and numbers say the same in grey.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

from nesskit import metrics
from nesskit.errors import NesskitError
from nesskit.records import EpochRecord, Run
from nesskit.spectrum import LayerProfile

Array = NDArray[np.float64]
Colour = tuple[float, float, float]
Results = Run | Sequence[Run] | ArrayLike  # one run, its repetitions with other seeds, or their accuracy matrices

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#7A7F87"

INK, MUTED, GRID = "#1d2530", "#5b6672", "#dde2e8"  # text and axes; a report replaces them by colours of its page
CELL_INK, CELL_LIGHT = "#000000", "#ffffff"  # numbers on coloured cells: of these two one always has contrast enough
RED = "#B92B10"  # lost accuracy; vermillion, which stands for fine-tuning, would look orange in large cells

SATURATION = 25.0  # points of change at which a cell's green or red is at its deepest
LEGEND_CHANGES = (1.0, 5.0, 25.0)  # points; what the legend of an accuracy matrix shows

_STYLE: Any = {  # the names that a settings dict may hold are part of its type, and of one matplotlib version
    "figure.facecolor": "white",
    "figure.dpi": 110,
    "savefig.dpi": 200,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so figures look alike everywhere
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.0,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Look:
    """How a method is drawn; no two methods share colour and line style."""

    colour: str
    line: str
    marker: str


METHOD_LOOKS: dict[str, Look] = {
    "ness": Look(BLUE, "-", "o"),
    "finetune": Look(VERMILLION, "-", "s"),
    "joint": Look(INK, "--", "_"),
    "gpm": Look(GREEN, "-", "^"),
    "sgp": Look(GREEN, "--", "v"),
    "trgp": Look(PURPLE, "-", "D"),
    "dfgp": Look(PURPLE, "--", "d"),
    "adam-nscl": Look(ORANGE, "-", "P"),
    "owm": Look(ORANGE, "--", "X"),
    "ewc": Look(GREY, "-", "<"),
    "a-gem": Look(GREY, "--", ">"),
    "ness-soft": Look(SKY, "-", "h"),
    "ness-budget": Look(SKY, "--", "p"),
}

_DISPLAY_NAMES = {
    "ness": "NESS",
    "finetune": "fine-tuning",
    "joint": "joint training",
    "adam-nscl": "Adam-NSCL",
    "ness-soft": "NESS, soft",
    "ness-budget": "NESS, budget",
}


@contextmanager
def style() -> Iterator[None]:
    """Nesskit's look for everything drawn inside; the settings before are back afterwards."""
    with plt.rc_context(_STYLE):
        yield


def display_name(label: str) -> str:
    """How a method is written in a figure: ``ness (eps=0.02)`` becomes ``NESS (eps=0.02)``, ``gpm`` GPM."""
    method, blank, details = label.partition(" ")
    if method in METHOD_LOOKS:
        method = _DISPLAY_NAMES.get(method, method.upper())
    return method + blank + details


def method_looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look for every label: the fixed one of its method, and for further settings of a method another line style.

    A label is a method's name, or as in a comparison that name with settings behind it: ``ness (eps=0.02)``.
    """
    looks: dict[str, Look] = {}
    for label in labels:
        own = METHOD_LOOKS.get(label.partition(" ")[0], METHOD_LOOKS["ness"])
        taken = {(look.colour, look.line) for look in looks.values()}
        looks[label] = next((look for look in _alternatives(own) if (look.colour, look.line) not in taken), own)
    return looks


def _alternatives(own: Look) -> Iterator[Look]:
    """``own``, then other line styles of its colour, then everything else."""
    yield own
    markers = [look.marker for look in METHOD_LOOKS.values() if look.marker != own.marker]
    colours = [own.colour, *(c for c in (GREEN, PURPLE, ORANGE, SKY, GREY, VERMILLION, BLUE) if c != own.colour)]
    for number, (colour, line) in enumerate((c, s) for c in colours for s in ("-", "--", "-.", ":")):
        yield Look(colour, line, markers[number % len(markers)])


def plot_accuracy_matrix(
    accuracy: Run | ArrayLike,
    tasks: Sequence[str] | None = None,
    ax: Axes | None = None,
    title: str | None = None,
    legend: bool = True,
) -> Axes:
    """The accuracy matrix as in the paper: blue when learned, green where a task gained since then, red where it lost.

    The colour is deeper the more changed, up to 25 points. Where there is nothing to compare with (joint training,
    which fills the last row only) cells are grey.

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
        ax = _new_axes((side + (0.3 if legend_fits(count) else 1.7), side)) if ax is None else ax
        _frame_cells(ax, count, count)
        colours = cell_colours(matrix)
        size = _cell_font_size(ax, count, max((len(_percent(v)) for v in matrix[~np.isnan(matrix)]), default=4))
        for row, column in np.argwhere(~np.isnan(matrix)):
            _draw_cell(ax, column, row, colours[row, column], _percent(matrix[row, column]), size)
        _name_ticks(ax, tasks or [str(task + 1) for task in range(count)])
        ax.set_yticks(range(count), [str(task + 1) for task in range(count)])
        ax.set_xlabel("task")
        ax.set_ylabel("after learning task")
        text = _matrix_title(accuracy) if title is None else title
        ax.set_title(_plain(text), loc="left", color=INK, fontsize=11)
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


def _mix(colour: str, share: float) -> Colour:
    """``colour`` over white, ``share`` of it."""
    red, green, blue = (1 - share * (1 - channel) for channel in to_rgb(colour))
    return red, green, blue


_LEARNED = _mix(BLUE, 0.38)
_NEUTRAL = _mix(GREY, 0.22)


def _change_colour(points: float, unknown: bool = False) -> Colour:
    """Green for a gain, red for a loss of ``points``; the power spreads the small changes, which are most of them."""
    if unknown or np.isnan(points) or points == 0:
        return _NEUTRAL
    depth = min(abs(points) / SATURATION, 1.0) ** 0.75
    return _mix(GREEN if points > 0 else RED, 0.07 + 0.83 * depth)


def is_joint(accuracy: ArrayLike) -> bool:
    """Whether only the last of several rows of the matrix is filled: the tasks were learned together."""
    matrix = np.asarray(accuracy, dtype=np.float64)
    return len(matrix) > 1 and bool(np.isnan(matrix[:-1]).all() and not np.isnan(matrix[-1]).any())


def _frame_cells(ax: Axes, rows: int, columns: int) -> None:
    """Axes for a matrix of cells, its first row on top."""
    ax.set_xlim(-0.5, columns - 0.5)
    ax.set_ylim(rows - 0.5, -0.5)
    ax.set_aspect("equal", adjustable="box", anchor="NW")
    ax.grid(False)
    ax.tick_params(length=0, pad=3, labelcolor=MUTED, labelsize=9)
    ax.spines[:].set_visible(False)
    _ink_labels(ax)


def _cell_font_size(ax: Axes, cells: int, characters: int) -> float:
    """The size in points at which ``characters`` digits fit into one of ``cells`` columns."""
    box = ax.get_window_extent()
    width = min(box.width, box.height) / ax.figure.dpi * 72 / cells
    return float(np.clip(0.88 * width / (0.6 * characters), 3.5, 12))


def _draw_cell(ax: Axes, x: float, y: float, colour: Sequence[float], text: str, size: float) -> None:
    ax.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, facecolor=tuple(colour), linewidth=0))
    ink = max((CELL_INK, CELL_LIGHT), key=lambda ink: contrast(to_rgb(ink), colour))
    ax.text(x, y, text, ha="center", va="center_baseline", fontsize=size, color=ink)


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """The contrast of two colours, 1 to 21; text needs 4.5 (Web Content Accessibility Guidelines 2.1, 1.4.3)."""

    def luminance(colour: Sequence[float]) -> float:
        channels = np.asarray(colour, dtype=np.float64)
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def _name_ticks(ax: Axes, names: Sequence[str]) -> None:
    """Name the columns, slanted where names are long."""
    ax.set_xticks(range(len(names)), [_plain(name) for name in names])
    if max((len(name) for name in names), default=0) > 6:
        plt.setp(ax.get_xticklabels(), rotation=35, ha="right", rotation_mode="anchor")


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
    return f"ACC {average:.1f} %" + ("" if np.isnan(transfer) else f", BWT {_signed(transfer)}")


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
    return f"{text}, BWT {_signed(transfer)} points. {describe_worst_task(matrix, names)}"


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
        ax = _new_axes((6.6, 3.9)) if ax is None else ax
        _tidy(ax)
        looks = method_looks(curves)
        lines = [_draw_curve(ax, x, v, looks[label], display_name(label)) for label, (x, v) in curves.items()]
        ax.set_xlabel("tasks learned")
        ax.set_ylabel("mean accuracy so far (%)")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        _fit_percent(ax, [values for _, values in curves.values()])
        ax.margins(x=0.02)
        _label_lines(ax, lines)
    return ax


def accuracy_so_far(accuracy: ArrayLike) -> Array:
    """(T,) after each task t the mean accuracy, in percent, over tasks 1 … t; NaN where it was not measured."""
    return np.array([row[: task + 1].mean() for task, row in enumerate(_matrix(accuracy))])


def _accuracy_curve(results: Results) -> tuple[Array, Array]:
    """x (n,) and for every seed its accuracies (seeds, n); level for joint training."""
    matrices = _matrices(results)
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
    (line,) = ax.plot(x, mean, label=_plain(label), zorder=3, **drawn)
    if len(values) > 1:
        spread = _spread(values)
        ax.fill_between(x, mean - spread, mean + spread, color=look.colour, alpha=0.16, linewidth=0, zorder=2)
    return line


def _label_lines(ax: Axes, lines: Sequence[Line2D]) -> None:
    """Name every line at its right end; with a legend where names would stand far from their lines."""
    lines = [line for line in lines if np.isfinite(np.asarray(line.get_ydata(), dtype=float)).any()]
    if not lines:
        return
    ends = [_last_point(np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in lines]
    bottom, top = ax.get_ylim()
    points_high = ax.get_window_extent().height / ax.figure.dpi * 72
    heights = np.array([(y - bottom) / (top - bottom) * points_high for _, y in ends])
    shifts = spread_apart(heights, 11.0) - heights
    at_the_end = all(x == max(end for end, _ in ends) for x, _ in ends)
    if np.abs(shifts).max() > 14 or not at_the_end:
        downwards = [lines[k] for k in np.argsort([-y for _, y in ends], kind="stable")]
        ax.legend(handles=downwards, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, handlelength=2.6)
        return
    for line, end, shift in zip(lines, ends, shifts, strict=True):
        ax.annotate(
            str(line.get_label()),
            end,
            xytext=(8, shift),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
            annotation_clip=False,
        )


def _last_point(x: Array, y: Array) -> tuple[float, float]:
    last = np.flatnonzero(np.isfinite(y))[-1]
    return float(x[last]), float(y[last])


def spread_apart(positions: ArrayLike, gap: float) -> Array:
    """Positions in the same order that are at least ``gap`` apart and close to the given ones."""
    given = np.asarray(positions, dtype=np.float64)
    order = np.argsort(given, kind="stable")
    groups: list[list[float]] = []  # neighbours that push each other, as [centre, size]
    for value in given[order]:
        groups.append([value, 1])
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < gap * (groups[-1][1] + groups[-2][1]) / 2:
            (centre, size), (other, more) = groups[-2:]
            groups[-2:] = [[(centre * size + other * more) / (size + more), size + more]]
    placed = [centre + gap * (k - (size - 1) / 2) for centre, size in groups for k in range(int(size))]
    spread = np.empty_like(given)
    spread[order] = placed
    return spread


def plot_final_accuracy(
    runs: Mapping[str, Results], ax: Axes | None = None, tasks: Sequence[str] | None = None
) -> Axes:
    """Accuracy on each task at the end: one dot a method, ± one standard deviation over seeds (n - 1).

    Args:
        runs: label (a method's name, settings may follow) → one run, the runs of several seeds, or their matrices.
        ax: where to draw.
        tasks: names of the tasks for the axis; numbers if not given.
    """
    finals = {label: np.stack([_final_row(m) for m in _matrices(results)]) for label, results in runs.items()}
    count = max(values.shape[1] for values in finals.values())
    with style():
        ax = _new_axes((max(5.0, min(10.0, 1.5 + 0.55 * count)), 3.6)) if ax is None else ax
        _tidy(ax)
        for task in range(1, count, 2):  # a quiet band behind every second task keeps its dots together
            ax.axvspan(task - 0.5, task + 0.5, color=GRID, alpha=0.35, linewidth=0, zorder=0)
        looks = method_looks(finals)
        for number, (label, values) in enumerate(finals.items()):
            offset = 0.6 * ((number + 0.5) / len(finals) - 0.5)
            _draw_dots(ax, np.arange(float(values.shape[1])) + offset, values, looks[label], display_name(label))
        _name_ticks(ax, tasks or [str(task + 1) for task in range(count)])
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
        label=_plain(label),
        zorder=3,
    )


def plot_loss(history: Sequence[EpochRecord], ax: Axes | None = None) -> Axes:
    """Training loss (mean cross-entropy of an epoch) and, if there is any, validation loss, epoch after epoch."""
    x = _epoch_positions(history)
    train = np.array([epoch.train_loss for epoch in history], dtype=np.float64)
    valid = np.array([np.nan if epoch.valid_loss is None else epoch.valid_loss for epoch in history])
    with style():
        ax = _new_axes((8.0, 3.0)) if ax is None else ax
        _tidy(ax)
        _plot_by_task(ax, history, x, train, color=BLUE, linewidth=1.6, label="training")
        if np.isfinite(valid).any():
            _plot_by_task(ax, history, x, valid, color=VERMILLION, linewidth=1.4, linestyle="--", label="validation")
            ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.2)
        if len(train) and train.min() > 0 and train.max() > 30 * train.min():
            _plain_log_scale(ax)
        _mark_tasks(ax, history)
        ax.set_ylabel("loss")
    return ax


def plot_learning_rate(history: Sequence[EpochRecord], ax: Axes | None = None) -> Axes:
    """The learning rate, epoch after epoch."""
    rates = np.array([epoch.lr for epoch in history], dtype=np.float64)
    with style():
        ax = _new_axes((8.0, 1.8)) if ax is None else ax
        _tidy(ax)
        _plot_by_task(ax, history, _epoch_positions(history), rates, color=INK, linewidth=1.4, drawstyle="steps-mid")
        if len(rates) and rates.max() > 4 * rates.min():
            _plain_log_scale(ax)
        _mark_tasks(ax, history)
        ax.set_ylabel("learning rate")
    return ax


def _plain_log_scale(ax: Axes) -> None:
    """A logarithmic axis labelled 0.1 and not 10 to the power of -1."""
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="y", which="minor", length=0)


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
        ax = _new_axes((2.2 + 0.62 * len(tasks), 1.1 + 0.42 * len(layers))) if ax is None else ax
        _frame_cells(ax, len(layers), len(tasks))
        ax.set_aspect("auto")
        width = ax.get_window_extent().width / ax.figure.dpi * 72 / max(len(tasks), 1)
        size = float(np.clip(0.85 * width / (0.62 * len(str(max((p.rank for p in profiles), default=0)))), 4, 10))
        for profile in profiles:
            colour = _mix(BLUE, 0.05 + 0.65 * profile.rank / dimensions[profile.layer])
            _draw_cell(ax, tasks.index(profile.task), layers.index(profile.layer), colour, str(profile.rank), size)
        ax.set_xticks(range(len(tasks)), [str(task + 1) for task in tasks])
        ax.set_yticks(range(len(layers)), [_plain(f"{layer}, d = {dimensions[layer]}") for layer in layers])
        ax.set_xlabel("task")
    return ax


def _new_axes(size: tuple[float, float]) -> Axes:
    return plt.subplots(figsize=size, layout="constrained")[1]


def _tidy(ax: Axes) -> None:
    """The style on axes that were made outside of it."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(MUTED)
    ax.grid(axis="y", color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(color=MUTED, labelcolor=MUTED, labelsize=9, length=3)
    _ink_labels(ax)


def _ink_labels(ax: Axes) -> None:
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set(color=INK, fontsize=10)


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


def _matrices(results: Results) -> Array:
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
    return _matrices(results).mean(axis=0)


def _final_row(matrix: Array) -> Array:
    """(T,) accuracy of each task at the end, NaN for tasks that were not learned."""
    final = metrics.final_accuracy(matrix)
    return np.concatenate([final, np.full(len(matrix) - len(final), np.nan)])


def _percent(value: float) -> str:
    return f"{value:.1f}"


def _signed(value: float) -> str:
    """With a sign that reads as one, and no negative zero."""
    return f"{round(value, 1) + 0.0:+.1f}".replace("-", "−").replace("+0.0", "0.0")


def _plain(text: str) -> str:
    """``text`` as it is, also where it holds dollars, which matplotlib would read as formulas."""
    return text.replace("$", r"\$")
