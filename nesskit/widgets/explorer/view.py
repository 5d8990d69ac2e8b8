"""The explorer's figure: one set of artists, made once and moved from then on."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from nesskit.analysis import LayerCurve, NetworkCurves
from nesskit.plots import BLUE, GRID, INK, MUTED, ORANGE, PURPLE, RULE_LOOKS, SKY, rule_name, style
from nesskit.plots.drawing import Array, plain, tidy
from nesskit.spectra.filters import Threshold
from nesskit.widgets.canvas import LiveCanvas
from nesskit.widgets.explorer.state import RULES, SMALLEST, Reading, State

COLUMNS = 6  # of small multiples


class ExplorerView:
    """Spectrum, frontier, and all layers small.

    Args:
        layers: names, in the order of the network.
        on_eps: called with the ε that the mouse has dragged the cut to.
        on_layer: called with the layer whose small picture was clicked.
        on_step: called with 1 or -1 for the arrow keys.
    """

    def __init__(
        self,
        layers: Sequence[str],
        on_eps: Callable[[float], None],
        on_layer: Callable[[str], None],
        on_step: Callable[[int], None],
    ) -> None:
        self.layers = list(layers)
        self._on_eps, self._on_layer, self._on_step = on_eps, on_layer, on_step
        self._curves: NetworkCurves | None = None
        self._state = State()
        self._grabbed = ""  # what the mouse holds: "height", "edge" or nothing
        columns, rows = min(len(self.layers), COLUMNS), -(-len(self.layers) // COLUMNS)
        with style():
            figure = Figure(figsize=(8.3, 3.5 + 1.6 * rows), dpi=100, layout="constrained")
            figure.get_layout_engine().set(h_pad=0.06, hspace=0.04)  # type: ignore[union-attr, call-arg]
            halves = figure.add_gridspec(2, 1, height_ratios=[3.4, 1.6 * rows])
            above = halves[0].subgridspec(1, 2, width_ratios=[1.15, 1])
            self.spectrum = _Spectrum(figure.add_subplot(above[0]), self.layers)
            self.frontier = _Frontier(figure.add_subplot(above[1]))
            grid = halves[1].subgridspec(rows, columns)
            places = [grid[divmod(k, columns)] for k in range(len(self.layers))]
            self.small = [_SmallSpectrum(figure.add_subplot(place)) for place in places]
            for small, name, (colour, dashes) in zip(self.small, self.layers, layer_looks(len(places)), strict=True):
                small.ax.set_title(_shortened(name, 30 if columns < 4 else 17) + "\n ", fontsize=9)
                small.line.set(color=colour, linestyle=dashes)
            for small in self.small[::columns]:
                small.ax.set_ylabel("σ", rotation=0, labelpad=8)
        self.canvas = LiveCanvas(figure, self._moving())
        self.canvas.add_class("nk-canvas")
        for event in ("button_press", "motion_notify", "button_release", "figure_leave", "key_press"):
            self.canvas.mpl_connect(f"{event}_event", getattr(self, f"_{event}"))

    def show(self, curves: NetworkCurves, state: State, readings: Sequence[Reading]) -> None:
        """Move everything to ``state``; what stands still is set anew only if something else than ε has changed."""
        same = curves is self._curves and state == _moved(self._state, state.eps)
        self._curves, self._state = curves, state
        with style():
            if not same:
                self._set_still(curves, state)
            self.spectrum.move(readings, state)
            self.frontier.move(readings)
            for number, small in enumerate(self.small):
                small.move([reading.ranks[number] for reading in readings], readings)
        if same:
            self.canvas.draw_idle()
        else:
            self.canvas.draw_everything()

    def png(self) -> bytes:
        """The figure as it stands."""
        stream = io.BytesIO()
        self.canvas.figure.savefig(stream, format="png", dpi=100)
        return stream.getvalue()

    def line_data(self) -> dict[str, list[float]]:
        """What the moving artists show, by name."""
        return {**self.spectrum.line_data(), **self.frontier.line_data()}

    def _set_still(self, curves: NetworkCurves, state: State) -> None:
        self.spectrum.set_still(curves, state)
        self.frontier.set_still(curves, state)
        for small, curve in zip(self.small, curves.layers, strict=True):
            small.set_still(curve, chosen=curve.profile.layer == state.layer)

    def _moving(self) -> Iterator[Artist]:
        yield from self.spectrum.moving()
        yield from self.frontier.moving()
        for small in self.small:
            yield from small.moving()

    def _button_press(self, event: Any) -> None:
        for name, small in zip(self.layers, self.small, strict=True):
            if event.inaxes is small.ax:
                self._on_layer(name)
        if event.inaxes is self.spectrum.ax and self._curves is not None:
            self._grabbed = self.spectrum.nearest(event.x, event.y)
            self._motion_notify(event)

    def _motion_notify(self, event: Any) -> None:
        if self._grabbed and event.inaxes is self.spectrum.ax:
            eps = self.spectrum.eps_at(event.xdata, event.ydata, self._grabbed)
            self._on_eps(float(eps))

    def _button_release(self, event: Any) -> None:
        self._motion_notify(event)  # browsers leave out motions that come fast, also the last
        self._grabbed = ""

    def _figure_leave(self, _: Any) -> None:
        self._grabbed = ""  # a release outside is not reported

    def _key_press(self, event: Any) -> None:
        if event.key in ("left", "right"):
            self._on_step(1 if event.key == "right" else -1)


class _Spectrum:
    """The log spectrum of one layer, or of all in units of the rule's norm, and the cuts through it."""

    def __init__(self, ax: Axes, layers: Sequence[str]) -> None:
        tidy(ax)
        self.ax = ax
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())
        self.curves = [ax.plot([], [], gid=f"spectrum {name}")[0] for name in layers]
        self.trained = ax.axvline(0, color=MUTED, linewidth=1.0, linestyle=(0, (1, 2)), visible=False)
        self.trained_text = ax.text(0, 0.02, "", transform=ax.get_xaxis_transform(), fontsize=8, color=MUTED)
        self.trained_text.set_rotation(90)
        self.shade = ax.add_patch(Rectangle((0, 0), 0, 1, transform=ax.get_xaxis_transform(), alpha=0.12, linewidth=0))
        self.edges = {name: _line(ax.axvline(1), name, 1.8) for name in RULES}
        self.heights = {name: _line(ax.axhline(1), name, 1.2) for name in RULES}
        self.dots = {name: ax.plot([], [], "o", color=RULE_LOOKS[name][0], markersize=5)[0] for name in RULES}
        self.texts = [
            ax.text(0.985, 0.97 - 0.075 * k, "", transform=ax.transAxes, ha="right", va="top", fontsize=10)
            for k in range(len(RULES))
        ]
        for text in self.texts:
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5})
        self._chosen: list[LayerCurve] = []
        self._state = State()

    def moving(self) -> Iterator[Artist]:
        yield self.shade
        for artists in (self.heights, self.edges, self.dots):
            yield from artists.values()
        yield from self.texts

    def set_still(self, curves: NetworkCurves, state: State) -> None:
        self._chosen = [c for c in curves.layers if state.layer in ("", c.profile.layer)]
        self._state = state
        alone = len(self._chosen) == 1
        low, high = np.inf, 0.0
        for line, curve, (colour, dashes) in zip(
            self.curves, curves.layers, layer_looks(len(curves.layers)), strict=True
        ):
            line.set_visible(curve in self._chosen)
            if curve not in self._chosen:
                continue
            x, y = self._points(curve)
            scale = curve.spectrum.frobenius_norm if alone else 1.0
            bottom = max(y[-1] / 3, SMALLEST * (scale or 1.0))
            low, high = min(low, bottom), max(high, 2 * y[0], 10 * bottom)
            line.set_data(x, np.maximum(y, bottom))  # zeros have no logarithm: they lie on the lowest line
            line.set(color=INK if alone else colour, linestyle="-" if alone else dashes, linewidth=1.6, zorder=3)
            line.set(marker="o" if alone and len(x) <= 130 else "", markersize=3)
        self.ax.set_ylim(0.8 * low, high)
        self._label(alone)
        self._mark_trained(alone)

    def move(self, readings: Sequence[Reading], state: State) -> None:
        self._state = state
        alone = len(self._chosen) == 1
        shown = {reading.rule.name: reading for reading in readings}
        for name, reading in shown.items():
            if alone:
                (curve,) = self._chosen
                edge, height = curve.dimension - reading.rank + 0.5, reading.rule.cut(curve.spectrum)
                self.edges[name].set_xdata([edge, edge])
                self.heights[name].set_ydata([height, height])
            else:
                self.heights[name].set_ydata([state.eps, state.eps])
                self.dots[name].set_data(*self._cuts(reading.rule))
        for name in RULES:
            self.edges[name].set_visible(alone and name in shown)
            self.heights[name].set_visible(name in shown and (alone or name == state.rule))
            self.dots[name].set_visible(not alone and name in shown)
        if alone:
            (edge, *_), _ = _data(self.edges[state.rule])
            self.shade.set(x=edge, width=self._chosen[0].dimension + 0.5 - edge, color=RULE_LOOKS[state.rule][0])
        self.shade.set_visible(alone)
        for text, reading in zip(self.texts, readings, strict=False):
            text.set_text(f"{_name(reading.rule)}: r = {reading.rank} of {reading.dimension}")
            text.set_color(RULE_LOOKS[reading.rule.name][0])
        for number, text in enumerate(self.texts):
            text.set_visible(number < len(readings))

    def nearest(self, x: float, y: float) -> str:
        """Which line of the chosen rule is nearest to a point in pixels: the one that the mouse means."""
        if len(self._chosen) != 1:
            return "height"
        (edge, *_), _ = _data(self.edges[self._state.rule])
        _, (height, *_) = _data(self.heights[self._state.rule])
        where = self.ax.transData.transform((edge, max(height, self.ax.get_ylim()[0])))
        return "edge" if abs(where[0] - x) < abs(where[1] - y) else "height"

    def eps_at(self, x: float, y: float, grabbed: str) -> float:
        """The ε whose cut goes through a point of the axes."""
        rule = RULES[self._state.rule](1.0)  # type: ignore[call-arg]
        if len(self._chosen) != 1:
            return y
        (curve,) = self._chosen
        if grabbed == "height":
            return y / (rule.scale(curve.spectrum) or 1.0)
        return float(rule.eps_to_free(curve.spectrum)[int(np.clip(np.ceil(x) - 1, 0, curve.dimension - 1))])

    def line_data(self) -> dict[str, list[float]]:
        """The visible cuts: heights (σ, or σ over the norm for all layers) and edges (direction)."""
        heights = {f"height {n}": _data(line)[1] for n, line in self.heights.items() if line.get_visible()}
        edges = {f"edge {n}": _data(line)[0] for n, line in self.edges.items() if line.get_visible()}
        return heights | edges

    def _points(self, curve: LayerCurve) -> tuple[Array, Array]:
        """One layer: σ_i over i. All layers: σ_i over the rule's norm, over the share of directions."""
        index = np.arange(1.0, curve.dimension + 1)
        if len(self._chosen) == 1:
            return index, curve.singular_values
        rule = RULES[self._state.rule](1.0)  # type: ignore[call-arg]
        return 100 * index / curve.dimension, rule.eps_to_free(curve.spectrum).numpy()

    def _cuts(self, rule: Threshold) -> tuple[list[float], list[float]]:
        """Where a rule cuts each of several layers."""
        places = []
        for curve in self._chosen:
            x, y = self._points(curve)
            rank = curve.null_rank(rule)
            if rank:  # at the largest σ that is free
                at = curve.dimension - rank
                places.append((x[at], max(y[at], 1.25 * self.ax.get_ylim()[0])))
        return [x for x, _ in places], [y for _, y in places]

    def _label(self, alone: bool) -> None:
        ax, d = self.ax, self._chosen[0].dimension
        ax.set_xlim(0.5, d + 0.5) if alone else ax.set_xlim(0, 100)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        norm = {"frobenius": "‖I‖_F", "nuclear": "Σσ", "relative": "σ₁"}[self._state.rule]
        ax.set_xlabel("direction i" if alone else "direction i, % of d")
        ax.set_ylabel("singular value σ" if alone else f"σ over {norm.replace('_F', '$_F$')}")
        ax.set_title(plain(self._chosen[0].profile.layer if alone else "all layers") + ": inputs of old tasks")
        _plain_ticks(ax)

    def _mark_trained(self, alone: bool) -> None:
        """Where the run that is shown was cut itself: an update has nothing to add beyond."""
        profile = self._chosen[0].profile
        d = len(profile.sigma_squared)
        visible = alone and profile.rank < d
        edge = d - profile.rank + 0.5
        self.trained.set(visible=visible)
        self.trained.set_xdata([edge, edge])
        self.trained_text.set(visible=visible, x=edge - d / 100, ha="right", text=f"this run: r = {profile.rank}")


class _Frontier:
    """What a rule costs over what it keeps, for every ε, and where it stands now."""

    def __init__(self, ax: Axes) -> None:
        tidy(ax)
        self.ax = ax
        ax.set_yscale("log")
        ax.yaxis.set_minor_formatter(NullFormatter())
        self.lines = {name: _line(ax.plot([], [])[0], name, 1.8) for name in RULES}
        self.points = {name: ax.plot([], [], "o", markersize=10, markeredgewidth=2)[0] for name in RULES}
        self.bounds = {
            name: ax.plot([], [], marker="_", markersize=13, markeredgewidth=2.2, linewidth=0.8)[0] for name in RULES
        }
        for name in RULES:
            self.points[name].set(markerfacecolor="none", color=RULE_LOOKS[name][0], gid=f"point {name}")
            self.points[name].set_clip_on(False)
            self.bounds[name].set(color=RULE_LOOKS[name][0], markevery=[1])
        self.knee = ax.plot([], [], "D", color=MUTED, markersize=6, markeredgecolor="white", zorder=3)[0]
        ax.set_xlim(-2, 102)
        ax.set_xlabel("energy of the update that is kept (%)")
        ax.set_ylabel("change of old outputs (%)")
        ax.set_title("what it keeps, and what it costs")
        look: dict[str, Any] = {"color": MUTED, "linestyle": "", "markersize": 7}
        now = Line2D(
            [], [], marker="o", markerfacecolor="none", markeredgewidth=1.6, label="measured ‖ΔW I‖ / ‖W I‖", **look
        )
        bound = Line2D([], [], marker="_", markeredgewidth=2, label="allowed by Eq. 7, σⱼ ‖ΔW‖ / ‖W I‖", **look)
        knee = Line2D([], [], marker="D", label="knee: most kept for the least", **look)
        ax.legend(handles=[bound, now, knee], loc="lower right", fontsize=8, handletextpad=0.3)
        self._low = 1e-3

    def moving(self) -> Iterator[Artist]:
        yield from self.bounds.values()
        yield from self.points.values()

    def set_still(self, curves: NetworkCurves, state: State) -> None:
        top = 0.0
        for number, rule in enumerate(state.rules):
            frontier = curves[state.layer] if state.layer else curves.frontier(type(rule))
            x, y = 100 * frontier.energy_share, 100 * frontier.relative_interference
            self.lines[rule.name].set_data(x, np.where(y > 0, y, np.nan))
            if number == 0:
                self.knee.set_data([x[frontier.knee]], [y[frontier.knee]])
            if np.isfinite(y[-1]):
                top = max(top, y[-1])
            if state.layer:  # the same curve for every rule
                self.lines[rule.name].set(color=INK, linestyle="-", linewidth=1.4)
            else:
                self.lines[rule.name].set(color=RULE_LOOKS[rule.name][0], linestyle=RULE_LOOKS[rule.name][1])
        shown = [rule.name for rule in state.rules]
        for name, line in self.lines.items():
            line.set_visible(name in (shown[:1] if state.layer else shown))
        top = top or 1.0
        self._low = 1e-4 * top
        self.ax.set_ylim(self._low, 20 * top)
        _plain_ticks(self.ax)

    def move(self, readings: Sequence[Reading]) -> None:
        shown = {reading.rule.name: reading for reading in readings}
        for name in RULES:
            reading = shown.get(name)
            self.points[name].set_visible(reading is not None)
            self.bounds[name].set_visible(reading is not None)
            if reading is not None:
                x = 100 * reading.energy_share
                y, bound = (max(100 * v, self._low) for v in (reading.relative_interference, reading.relative_bound))
                self.points[name].set_data([x], [y])
                self.bounds[name].set_data([x, x], [y, bound])

    def line_data(self) -> dict[str, list[float]]:
        """The visible points: (energy kept, change of old outputs), in percent."""
        points = {name: _data(point) for name, point in self.points.items() if point.get_visible()}
        return {f"point {name}": [*x, *y] for name, (x, y) in points.items()}


class _SmallSpectrum:
    """One layer, small: its spectrum, the cuts, and how many directions are free."""

    def __init__(self, ax: Axes) -> None:
        tidy(ax)
        self.ax = ax
        ax.set_yscale("log")
        ax.grid(False)
        ax.set_yticks([])
        ax.minorticks_off()
        ax.tick_params(labelsize=8)
        self.line = ax.plot([], [], color=INK, linewidth=1.2)[0]
        self.shade = ax.add_patch(Rectangle((0, 0), 0, 1, transform=ax.get_xaxis_transform(), alpha=0.12, linewidth=0))
        self.edges = {name: _line(ax.axvline(1), name, 1.4) for name in RULES}
        self.text = ax.text(0, 1.05, "", transform=ax.transAxes, fontsize=9, color=INK)
        self._dimension = 1

    def moving(self) -> Iterator[Artist]:
        yield self.shade
        yield from self.edges.values()
        yield self.text

    def set_still(self, curve: LayerCurve, chosen: bool) -> None:
        values = curve.singular_values
        bottom = max(values[-1] / 3, SMALLEST * (curve.spectrum.frobenius_norm or 1.0))
        self._dimension = len(values)
        self.line.set_data(np.arange(1, len(values) + 1), np.maximum(values, bottom))
        self.ax.set_xlim(0.5, len(values) + 0.5)
        self.ax.set_xticks([1, len(values)])
        self.ax.set_ylim(0.8 * bottom, max(2 * values[0], 10 * bottom))
        self.ax.set_yticks([])
        self.ax.minorticks_off()
        self.ax.set_facecolor("#f3f6fa" if chosen else "white")
        self.ax.spines[["left", "bottom"]].set_color(BLUE if chosen else GRID)

    def move(self, ranks: Sequence[int], readings: Sequence[Reading]) -> None:
        names = [reading.rule.name for reading in readings]
        for name, edge in self.edges.items():
            edge.set_visible(name in names)
        for name, rank in zip(names, ranks, strict=True):
            x = self._dimension - rank + 0.5
            self.edges[name].set_xdata([x, x])
        self.shade.set(x=self._dimension - ranks[0] + 0.5, width=ranks[0], color=RULE_LOOKS[names[0]][0])
        self.text.set_text(f"r = {' | '.join(map(str, ranks))}")


def layer_looks(count: int) -> list[tuple[str, str]]:
    """Colour and dashes of every layer, the same in the large and the small pictures; no colour is one of a rule."""
    colours, dashes = (INK, PURPLE, ORANGE, SKY), ("-", "--", "-.", ":")
    return [(colours[k % 4], dashes[(k + k // 4) % 4]) for k in range(count)]


def _moved(state: State, eps: float) -> State:
    return dataclasses.replace(state, eps=eps)


def _line(line: Line2D, rule: str, width: float) -> Line2D:
    colour, dashes = RULE_LOOKS[rule]
    line.set(color=colour, linestyle=dashes, linewidth=width, gid=f"cut {rule}")
    return line


def _shortened(name: str, length: int) -> str:
    """The end of a long name, which tells layers apart."""
    return plain(name if len(name) <= length else "…" + name[1 - length :])


def _data(line: Line2D) -> tuple[list[float], list[float]]:
    return np.asarray(line.get_xdata(), dtype=float).tolist(), np.asarray(line.get_ydata(), dtype=float).tolist()


def _name(rule: Threshold) -> str:
    return rule_name(type(rule)(float(f"{rule.eps:.3g}")))  # type: ignore[call-arg]


def _plain_ticks(ax: Axes) -> None:
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
    if low > 1e-5 and high < 1e6:
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
