"""What all figures share: colours, the style, and small helpers for axes, cells and names.

Colours are those of Okabe and Ito (2008), which people with a colour vision deficiency tell apart. No figure relies on
colour alone: line styles, markers and numbers say the same in grey.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Colour = tuple[float, float, float]

BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"
BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#7A7F87"

INK, MUTED, GRID = "#1d2530", "#5b6672", "#dde2e8"  # text and axes; a report replaces them by colours of its page
CELL_INK, CELL_LIGHT = "#000000", "#ffffff"  # numbers on coloured cells: of these two one always has contrast enough

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


@contextmanager
def style() -> Iterator[None]:
    """Nesskit's look for everything drawn inside; the settings before are back afterwards."""
    with plt.rc_context(_STYLE):
        yield


def new_axes(size: tuple[float, float]) -> Axes:
    """Axes alone in a figure of ``size`` inches."""
    return plt.subplots(figsize=size, layout="constrained")[1]


def grid_of_axes(count: int, size: tuple[float, float], columns: int = 4) -> list[Axes]:
    """``count`` axes in a figure of their own, each about ``size`` inches: small multiples."""
    columns = min(count, columns)
    rows = -(-count // columns)
    shape = (size[0] * columns, size[1] * rows)
    figure, axes = plt.subplots(rows, columns, figsize=shape, layout="constrained", squeeze=False)
    for unused in axes.flat[count:]:
        figure.delaxes(unused)
    return list(axes.flat[:count])


def tidy(ax: Axes) -> None:
    """The style on axes that were made outside of it."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(MUTED)
    ax.grid(axis="y", color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(color=MUTED, labelcolor=MUTED, labelsize=9, length=3)
    ink_labels(ax)


def ink_labels(ax: Axes) -> None:
    """The names of the axes in the colour and size of the style."""
    for label in (ax.xaxis.label, ax.yaxis.label):
        label.set(color=INK, fontsize=10)


def name_ticks(ax: Axes, names: Sequence[str]) -> None:
    """Name the columns, slanted where names are long."""
    ax.set_xticks(range(len(names)), [plain(name) for name in names])
    if max((len(name) for name in names), default=0) > 6:
        plt.setp(ax.get_xticklabels(), rotation=35, ha="right", rotation_mode="anchor")


def plain_log_scale(ax: Axes) -> None:
    """A logarithmic axis labelled 0.1 and not 10 to the power of -1."""
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="y", which="minor", length=0)


def series_looks(count: int) -> list[tuple[str, str]]:
    """Colour and line style for each of ``count`` lines that are not methods; both change from one to the next."""
    colours = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, GREY)
    lines = ("-", "--", "-.", ":")
    return [(colours[k % len(colours)], lines[k % len(lines)]) for k in range(count)]


def legend_above(ax: Axes, columns: int = 1, title: str = "") -> None:
    """A legend over the axes, where it hides nothing, and above it the title."""
    handles, labels = ax.get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0.2}
    if handles:
        ax.legend(handles, labels, ncols=columns, handlelength=2.2, **place)
    if title:
        rows = -(-len(handles) // columns)
        ax.set_title(plain(title), loc="left", color=INK, fontsize=11, pad=6 + 14 * rows)


def legend_right(ax: Axes) -> None:
    """A legend to the right of the axes."""
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0, handlelength=2.6)


def log_scale(ax: Axes) -> None:
    """A logarithmic axis for what is drawn already, with labels also where it spans less than two powers of ten."""
    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if high < 100 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    if low > 1e-4 and high < 1e5:
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def mix(colour: str, share: float) -> Colour:
    """``colour`` over white, ``share`` of it."""
    red, green, blue = (1 - share * (1 - channel) for channel in to_rgb(colour))
    return red, green, blue


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """The contrast of two colours, 1 to 21; text needs 4.5 (Web Content Accessibility Guidelines 2.1, 1.4.3)."""

    def luminance(colour: Sequence[float]) -> float:
        channels = np.asarray(colour, dtype=np.float64)
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def frame_cells(ax: Axes, rows: int, columns: int) -> None:
    """Axes for a matrix of cells, its first row on top."""
    ax.set_xlim(-0.5, columns - 0.5)
    ax.set_ylim(rows - 0.5, -0.5)
    ax.set_aspect("equal", adjustable="box", anchor="NW")
    ax.grid(False)
    ax.tick_params(length=0, pad=3, labelcolor=MUTED, labelsize=9)
    ax.spines[:].set_visible(False)
    ink_labels(ax)


def cell_font_size(ax: Axes, cells: int, characters: int) -> float:
    """The size in points at which ``characters`` digits fit into one of ``cells`` columns."""
    box = ax.get_window_extent()
    width = min(box.width, box.height) / ax.figure.dpi * 72 / cells
    return float(np.clip(0.88 * width / (0.6 * characters), 3.5, 12))


def draw_cell(ax: Axes, x: float, y: float, colour: Sequence[float], text: str, size: float) -> None:
    """A coloured cell around (x, y) with ``text`` in black or white, whichever is easier to read."""
    ax.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, facecolor=tuple(colour), linewidth=0))
    ink = max((CELL_INK, CELL_LIGHT), key=lambda ink: contrast(to_rgb(ink), colour))
    ax.text(x, y, text, ha="center", va="center_baseline", fontsize=size, color=ink)


def label_lines(ax: Axes, lines: Sequence[Line2D]) -> None:
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


def plain(text: str) -> str:
    """``text`` as it is, also where it holds dollars, which matplotlib would read as formulas."""
    return text.replace("$", r"\$")


def signed(value: float) -> str:
    """With a sign that reads as one, and no negative zero."""
    return f"{round(value, 1) + 0.0:+.1f}".replace("-", "−").replace("+0.0", "0.0")
