"""The threshold explorer: drag ε₁ over a spectrum and see what it frees, costs and keeps; train it for real."""

from __future__ import annotations

import dataclasses
import html
import io
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure
from torch import nn

from nesskit.analysis import NetworkCurves
from nesskit.analysis.checks import Matrix
from nesskit.errors import NesskitError
from nesskit.experiments.benchmarks import BENCHMARKS
from nesskit.plots import RULE_LOOKS, rule_name
from nesskit.runs.record import Run
from nesskit.spectra.filters import Filter, Threshold
from nesskit.spectra.moment import Moment
from nesskit.spectra.profile import LayerProfile
from nesskit.widgets.explorer.source import (
    Source,
    base_settings,
    find_runs,
    load_source,
    source_of_model,
    source_of_profiles,
    source_of_run,
    with_rule,
)
from nesskit.widgets.explorer.state import (
    EXPONENTS,
    LARGEST,
    RULES,
    SMALLEST,
    STEP,
    Reading,
    State,
    on_step,
    points_at,
    read,
)
from nesskit.widgets.explorer.training import Train, TrainingPanel
from nesskit.widgets.explorer.view import ExplorerView
from nesskit.widgets.live import picture_bundle

ECHO_SECONDS = 1.0  # how long a browser may take to answer

ALT = (
    "The spectrum of a layer's inputs with the cut at ε₁: which directions it frees, what an update in them disturbs, "
    "and how much of the update they keep."
)

Explorable = Run | Path | str | Sequence[LayerProfile] | nn.Module | None

_RULE_NAMES = {"frobenius": "Frobenius  σ ≤ ε ‖I‖_F", "nuclear": "nuclear  σ ≤ ε Σσ", "relative": "relative  σ ≤ ε σ₁"}


class ThresholdExplorer(widgets.VBox):
    """What ε₁ does, live: free directions, trainable parameters, interference and its bound, energy kept.

    Drag the cut on the spectrum, use the slider, or the arrow keys on either. A click on a small spectrum chooses its
    layer. Problems are said in the widget, not raised.

    Args:
        source: a run or its folder, the name of a benchmark, layer profiles, or a model in memory (with its moments).
            By default every run with profiles under ``runs`` can be chosen, and every recorded one.
        moments: of the layers' old inputs, for a model in memory; see :func:`nesskit.collect_moments`.
        updates: how a new task would change the weights; by default a change in every direction alike.
        train: trains a model in memory, in the foreground: ``train(rule, listeners) -> Run``.
        rule, eps, task, layer, side_by_side: where to start; see :class:`State`.
        runs: where runs lie, and where new ones go.
        results: where recorded runs lie; None: ``data/results``.

    Attributes:
        state: where the explorer stands; set it through :meth:`set`.
        readings: what each shown rule does to the chosen layer.
        message: what is wrong, or empty.
    """

    def __init__(
        self,
        source: Explorable = None,
        moments: Mapping[str, Moment] | None = None,
        updates: Mapping[str, Matrix] | None = None,
        *,
        train: Train | None = None,
        runs: Path | str = "runs",
        results: Path | str | None = None,
        rule: str | None = None,
        eps: float | None = None,
        task: int | None = None,
        layer: str = "",
        side_by_side: bool = False,
    ) -> None:
        self.runs, self.results, self._train = Path(runs), results, train
        self.source: Source | None = None
        self.state, self.message = State(), ""
        self.readings: tuple[Reading, ...] = ()
        self.view: ExplorerView | None = None
        self._making_base = False
        self._moves: deque[tuple[float, float]] = deque(maxlen=100)  # (when, ε) that did not come from the slider
        self._moving = False  # whether controls change because the state did
        self.benchmark = source if isinstance(source, str) and source in BENCHMARKS else ""
        self.training = TrainingPanel(runs, self._trained)
        self._make_controls()
        super().__init__(self._arrange())
        self.add_class("nk-explorer")
        self._given: dict[str, Callable[[], Source]] = {}
        if source is not None and not self.benchmark:
            self._given = {"given": lambda: _open(source, moments, updates)}
        self._list_runs()
        with self._saying_errors():
            wanted = {"rule": rule, "eps": eps, "task": task, "layer": layer or None, "side_by_side": side_by_side}
            self.set(**{key: value for key, value in wanted.items() if value is not None})

    def set(self, **changes: Any) -> None:
        """Change the state: ``explorer.set(eps=0.02, rule="nuclear")``. What cannot be shown is said in the widget."""
        with self._saying_errors():
            if self.source is None:
                return
            state = dataclasses.replace(self.state, **changes)
            if state.task not in self.source.curves:
                known = ", ".join(str(task) for task in self.source.curves)
                raise NesskitError(f"there is no profile of task {state.task}; there are {known} (counted from 0)")
            if state.layer:
                _ = self._curves(state)[state.layer]  # an unknown layer is refused by name
            self.state = state
            self._update()

    def choose(self, path: Path | str) -> None:
        """Show the run in the folder ``path``, or the recorded one in the file ``path``."""
        with self._saying_errors():
            self._show_source(load_source(path))

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget, and for pages without a kernel the figure as it stands."""
        picture, alt = (self.view.png(), ALT) if self.view is not None else (_blank_png(), "No run to show yet.")
        return picture_bundle(super()._repr_mimebundle_(**kwargs), "ThresholdExplorer", alt, picture)

    # What is chosen

    def _list_runs(self, chosen: Path | None = None) -> None:
        """Fill the list of runs and show ``chosen``, or the first."""
        options = self._options()
        with self._quiet():
            self.run_menu.options = options
            self.run_menu.index = None
        paths = [path for _, path in options]
        if options:
            self.run_menu.index = paths.index(chosen) if chosen in paths else 0
        else:
            name = self.benchmark or "any benchmark"
            self._say(
                f"No run of {name} with layer profiles lies in {self.runs}: make the base run, in which every "
                "direction is free (about 4 seconds for the digits)."
            )
        self._offer_base_run()

    def _options(self) -> list[tuple[str, Any]]:
        """What can be chosen: what was given, and the runs on disk."""
        return [*self._given.items(), *find_runs(self.runs, self.benchmark, self.results).items()]

    def _choose_run(self, _: Any) -> None:
        if self._moving or self.run_menu.value is None:
            return
        self._say("")
        with self._saying_errors():
            chosen = self.run_menu.value
            self._show_source(chosen() if callable(chosen) else load_source(chosen))
        self._offer_base_run()

    def _show_source(self, source: Source) -> None:
        fresh = self.source is None
        self.source = source
        task = self.state.task if self.state.task in source.curves else max(source.curves)
        curves = source.curves[task]
        names = curves.names
        layer = self.state.layer if self.state.layer in names else ""
        changes: dict[str, Any] = {"task": task, "layer": layer}
        if fresh and isinstance(source.rule, Threshold) and source.rule.eps < 1 and source.rule.name in RULES:
            changes |= {"rule": source.rule.name, "eps": min(max(source.rule.eps, SMALLEST), LARGEST)}
        self.state = dataclasses.replace(self.state, **changes)
        with self._quiet():
            self.task_menu.options = [(source.task_name(t), t) for t in source.curves]
            self.layer_menu.options = [("all layers", ""), *((name, name) for name in names)]
        if self.view is None or self.view.layers != names:
            self.view = ExplorerView(names, self._move_to, lambda layer: self.set(layer=layer), self._step)
            self._figure.children = [self.view.canvas]
        self._update()

    def _curves(self, state: State) -> NetworkCurves:
        assert self.source is not None
        return self.source.curves[state.task]

    # What is shown

    def _update(self) -> None:
        """Everything that depends on the state, from look-ups: no training, no decomposition, no new artist."""
        assert self.view is not None
        curves = self._curves(self.state)
        self.readings = tuple(read(point, self.state.layer) for point in points_at(curves, self.state))
        self.view.show(curves, self.state, self.readings)
        self.numbers.value = _numbers(self.readings, self.state)
        self.sentence.value = (
            f'<p role="status" aria-live="polite">{html.escape(describe(self.readings[0], self.state))}</p>'
        )
        with self._quiet():
            self.rule_menu.value, self.slider.value = self.state.rule, self.state.eps
            self.task_menu.value, self.layer_menu.value = self.state.task, self.state.layer
            self.both.value = self.state.side_by_side
        self._update_training()

    def _update_training(self) -> None:
        source, here = self.source, self._train is not None
        assert source is not None
        rule = self.readings[0].rule
        self.train_button.description = f"Train {rule_name(_rounded(rule))}"
        possible = source.settings is not None or (source.own_model and here)
        self.train_button.disabled = self.training.running or not possible
        if not possible:
            how = "pass train=… to train it here" if source.own_model else "its settings are not known"
            note = f"This cannot be trained: {how}."
        elif source.own_model:
            note = "Trains in this kernel: the notebook waits until it is done."
        else:
            where = f" on {source.device}" if source.device else ""
            note = f"In a process of its own; the run shown took {source.seconds:.0f} s{where}."
        if self.train_note.value != note:
            self.train_note.value = note

    def _offer_base_run(self) -> None:
        """Show the button for a base run where it helps: without any run, and beside one that shows only a part."""
        source = self.source
        restricted = source is not None and source.restricted and not source.own_model
        if restricted:
            assert source is not None
            self.base_note.value = (
                "This run was kept out of the directions beyond its own cut (dotted line), so its update has nothing "
                "to show there. In the base run every direction is free (about 4 seconds for the digits)."
            )
            if source.settings is not None and not source.device:
                self.base_menu.value = source.settings.benchmark
        else:
            self.base_note.value = ""
        self._base.layout.display = "" if source is None or restricted else "none"
        for control in (self.run_menu, self.task_menu, self.layer_menu, self.rule_menu, self.slider, self.both):
            control.disabled = source is None and control is not self.run_menu

    def _say(self, text: str) -> None:
        self.message = text
        self.alert.value = f'<p role="alert">{html.escape(text)}</p>' if text else ""

    @contextmanager
    def _saying_errors(self) -> Iterator[None]:
        """What goes wrong inside becomes a sentence in the widget; a success takes the last one away."""
        try:
            yield
        except NesskitError as error:
            self._say(str(error))
            with self._quiet():
                self.slider.value = self.state.eps
        else:
            if self.source is not None and self.message and self.run_menu.index is not None:
                self._say("")

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Controls that are set inside report nothing back."""
        before, self._moving = self._moving, True
        try:
            yield
        finally:
            self._moving = before

    # What is done

    def _step(self, steps: int) -> None:
        self._move_to(self.state.eps * 10 ** (steps * STEP))

    def _move_to(self, eps: float) -> None:
        """Go to the nearest ε that the slider can show."""
        self.set(eps=on_step(eps))
        self._moves.append((time.monotonic(), self.state.eps))

    def _train_chosen(self, _: Any) -> None:
        rule: Filter = _rounded(self.readings[0].rule)
        assert self.source is not None
        with self._saying_errors():
            if self.source.settings is not None:
                self.train_button.disabled = self.base_button.disabled = True
                self.training.start(with_rule(self.source.settings, rule), rule)
            elif self._train is not None:
                self.training.train_here(self._train, rule)

    def _make_base_run(self, _: Any) -> None:
        settings = base_settings(self.base_menu.value)
        self.train_button.disabled = self.base_button.disabled = self._making_base = True
        self._say("")
        self.training.start(settings, settings.options.filter)  # type: ignore[attr-defined]

    def _trained(self, folder: Path | None) -> None:
        """A run has ended: it can be chosen from now on; a base run is."""
        self.base_button.disabled = False
        if folder is not None and self._making_base:
            self.benchmark = self.benchmark and folder.parent.parent.name
            self._list_runs(folder)
        elif folder is not None:
            self._list_again()
        self._making_base = False
        if self.source is not None:
            self._update_training()

    def _list_again(self) -> None:
        """New runs in the list; what is shown stays."""
        shown = self.run_menu.value
        options = self._options()
        with self._quiet():
            self.run_menu.options = options
            self.run_menu.value = shown if shown in [value for _, value in options] else None

    # Controls

    def _make_controls(self) -> None:
        self.run_menu = _menu("Run", "Which run to look at", "nk-run", "400px")
        self.task_menu = _menu(
            "Task", "The task whose update is looked at; the first task has none", "nk-task", "220px"
        )
        self.layer_menu = _menu("Layer", "One layer, or all", "nk-layer", "190px")
        self.rule_menu = _menu("Rule", "What ε₁ is measured in", "nk-rule", "300px")
        self.rule_menu.options = [(_RULE_NAMES[name], name) for name in RULES]
        self.slider = widgets.FloatLogSlider(
            value=self.state.eps,
            min=EXPONENTS[0],
            max=EXPONENTS[1],
            step=STEP,
            description="ε₁",
            readout_format=".3g",
            tooltip="The threshold: arrow keys move it, or drag the cut in the figure",
            layout=widgets.Layout(width="620px"),
            style={"description_width": "44px"},
        )
        self.slider.add_class("nk-eps")
        self.both = widgets.ToggleButton(
            description="Frobenius | nuclear",
            icon="columns",
            tooltip="Show both rules side by side at the same ε₁",
            layout={"width": "auto"},
        )
        self.both.add_class("nk-both")
        self.numbers, self.sentence, self.alert = widgets.HTML(), widgets.HTML(), widgets.HTML()
        for part, css in ((self.numbers, "nk-numbers"), (self.sentence, "nk-sentence"), (self.alert, "nk-message")):
            part.add_class(css)
        self.train_button = widgets.Button(
            description="Train", icon="play", button_style="primary", tooltip="Train the chosen ε₁ for real"
        )
        self.train_button.layout.width = "auto"
        self.train_button.disabled = True
        self.train_button.add_class("nk-train")
        self.train_note = widgets.Label()
        self.base_menu = _menu("Base run of", "Which benchmark to run", "nk-base-benchmark", "300px")
        self.base_menu.style.description_width = "80px"
        self.base_menu.options = list(BENCHMARKS)
        self.base_menu.value = self.benchmark or next(iter(BENCHMARKS))
        self.base_button = widgets.Button(
            description="Make the base run", icon="plus", tooltip="Run the benchmark with every direction free"
        )
        self.base_button.layout.width = "auto"
        self.base_button.add_class("nk-base")
        self.base_note = widgets.HTML()
        self._base = widgets.VBox([self.base_note, widgets.HBox([self.base_menu, self.base_button])])
        self._figure = widgets.Box()
        self.run_menu.observe(self._choose_run, "value")
        for control, field in (
            (self.task_menu, "task"),
            (self.layer_menu, "layer"),
            (self.rule_menu, "rule"),
            (self.slider, "eps"),
            (self.both, "side_by_side"),
        ):
            control.observe(self._changing(field), "value")
        self.train_button.on_click(self._train_chosen)
        self.base_button.on_click(self._make_base_run)

    def _changing(self, field: str) -> Callable[[Any], None]:
        """What a control does that stands for one field of the state."""

        def change(event: Any) -> None:
            value = event["new"]
            if self._moving or value is None or (field == "eps" and self._echoes(value)):
                return
            self.set(**{field: value})

        return change

    def _echoes(self, eps: float) -> bool:
        """Whether the slider only says back, on its own steps and maybe late, what it was set to; then it is set right.

        A browser answers each ε that it is sent with the nearest one that its slider can show, correct to 15 digits.
        """
        now = time.monotonic()
        sent = [self.state.eps, *(moved for moment, moved in self._moves if now - moment < ECHO_SECONDS)]
        echo = eps != self.state.eps and any(math.isclose(eps, on_step(other)) for other in sent)
        if echo:
            with self._quiet():
                self.slider.value = self.state.eps
        return echo

    def _arrange(self) -> list[widgets.Widget]:
        wrap = widgets.Layout(flex_flow="row wrap", grid_gap="4px 12px")
        train = widgets.HBox([self.train_button, self.training.stop_button, self.train_note], layout=wrap)
        return [
            widgets.HTML(_CSS),
            widgets.HBox([self.run_menu, self.task_menu, self.layer_menu], layout=wrap),
            widgets.HBox([self.rule_menu, self.both], layout=wrap),
            self.slider,
            self.alert,
            self.numbers,
            self._figure,
            self.sentence,
            self._base,
            train,
            self.training,
        ]


def describe(reading: Reading, state: State) -> str:
    """The chosen rule in one sentence, which a screen reader reads out when it changes."""
    where = f"layer {state.layer}" if state.layer else "all layers"
    text = f"{rule_name(_rounded(reading.rule))} frees {reading.rank} of {reading.dimension} directions of {where}"
    if math.isnan(reading.energy_share):
        return f"{text}; the update is zero, so there is nothing to keep."
    text += f": {_percent(reading.energy_share)} of the update is kept"
    if math.isnan(reading.relative_interference):
        return f"{text}."
    return f"{text}, and old outputs change by {_percent(reading.relative_interference)} of their size."


def _open(source: Any, moments: Mapping[str, Moment] | None, updates: Mapping[str, Matrix] | None) -> Source:
    if isinstance(source, tuple) and len(source) == 2 and isinstance(source[0], nn.Module):
        source, moments = source
    if isinstance(source, nn.Module):
        if moments is None:
            raise NesskitError("a model needs the moments of its old inputs: pass collect_moments(model, batches) too")
        return source_of_model(source, moments, updates)
    if isinstance(source, Run):
        return source_of_run(source)
    if isinstance(source, str | Path):
        if isinstance(source, str) and "/" not in source and not Path(source).exists():
            raise NesskitError(
                f"there is no benchmark and no run folder '{source}'; benchmarks are {', '.join(BENCHMARKS)}"
            )
        return load_source(source)
    return source_of_profiles(source)


def _numbers(readings: Sequence[Reading], state: State) -> str:
    """The readings as an HTML table, one rule a row."""
    names = (
        "rule",
        "free directions r",
        "trainable parameters",
        "interference ‖ΔW I‖, of ‖W I‖",
        "bound (Eq. 7)",
        "energy kept",
    )
    rows = []
    for reading in readings:
        colour = RULE_LOOKS[reading.rule.name][0]
        share = "" if math.isnan(reading.trainable_share) else f" = {100 * reading.trainable_share:.1f} %"
        values = (
            f"<b class='nk-rank'>{reading.rank}</b> of {reading.dimension}",
            f"{reading.trainable:,}".replace(",", "\u2009") + share
            if share
            else f"{100 * reading.rank / reading.dimension:.1f} %",
            _cost(reading.interference, reading.relative_interference),
            _cost(reading.bound, reading.relative_bound),
            "–" if math.isnan(reading.energy_share) else f"{100 * reading.energy_share:.1f} %",
        )
        cells = "".join(f"<td>{value}</td>" for value in values)
        data = f'data-rule="{reading.rule.name}" data-eps="{reading.rule.eps!r}" data-rank="{reading.rank}"'
        name = html.escape(rule_name(_rounded(reading.rule)))
        rows.append(f'<tr {data}><th scope="row" style="color:{colour}">{name}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    where = html.escape(state.layer or "all layers")
    return (
        f'<table data-layer="{where}" data-task="{state.task}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _cost(value: float, relative: float) -> str:
    return f"{value:.3g}" + ("" if math.isnan(relative) else f" = {_percent(relative)}")


def _percent(share: float) -> str:
    if 0 < share < 1e-4:  # two digits of it would take an exponent
        return f"{100 * share:.2f} %"
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def _rounded(rule: Threshold) -> Threshold:
    """ε as it is read: three digits. What is trained is what the button says."""
    return type(rule)(float(f"{rule.eps:.3g}"))  # type: ignore[call-arg]


def _menu(description: str, tooltip: str, css: str, width: str) -> widgets.Dropdown:
    menu = widgets.Dropdown(
        description=description,
        tooltip=tooltip,
        layout=widgets.Layout(width=width),
        style={"description_width": "44px"},
    )
    menu.add_class(css)
    return menu


def _blank_png() -> bytes:
    """A picture for pages without a kernel as long as there is nothing to show."""
    stream = io.BytesIO()
    figure = Figure(figsize=(8.3, 0.8), dpi=100)
    figure.text(0.5, 0.5, "The threshold explorer: run this notebook to see it.", ha="center", va="center")
    figure.savefig(stream, format="png")
    return stream.getvalue()


_CSS = """
<style>
.nk-explorer table { border-collapse: collapse; line-height: 1.35; font-variant-numeric: tabular-nums;
  color: var(--jp-ui-font-color1, #1d2530); font-size: 13px; margin: 4px 0; }
.nk-explorer th, .nk-explorer td { padding: 3px 14px 3px 0; text-align: left; font-weight: normal; border: 0; }
.nk-explorer thead th { color: var(--jp-ui-font-color2, #5b6672); font-size: 12px; }
.nk-explorer tbody th { font-weight: 600; }
.nk-explorer caption { caption-side: top; text-align: left; font-weight: 600; padding-bottom: 4px;
  color: var(--jp-ui-font-color1, #1d2530); }
.nk-explorer table.nk-cells td { min-width: 40px; height: 24px; padding: 2px 4px; text-align: center;
  border: 1px solid var(--jp-layout-color0, white); }
.nk-explorer table.nk-cells th { padding: 2px 6px; text-align: center; }
.nk-explorer .nk-numbers { min-height: 54px; }
.nk-explorer .nk-numbers table { table-layout: fixed; width: 830px; }  /* nothing below may shift while it is dragged */
.nk-explorer .nk-numbers th, .nk-explorer .nk-numbers td { white-space: nowrap; overflow: hidden;
  box-sizing: border-box; }
.nk-explorer .nk-numbers th:nth-child(1) { width: 155px; }
.nk-explorer .nk-numbers th:nth-child(2) { width: 110px; }
.nk-explorer .nk-numbers th:nth-child(3) { width: 150px; }
.nk-explorer .nk-numbers th:nth-child(4) { width: 185px; }
.nk-explorer .nk-message p { color: #a32008; margin: 4px 0; max-width: 900px; line-height: 1.4; }
.nk-explorer .nk-error { color: #a32008; }
.nk-explorer p { margin: 2px 0; line-height: 1.4; }
.nk-explorer .widget-html-content { line-height: 1.4; }
</style>
"""
