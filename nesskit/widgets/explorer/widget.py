"""The threshold explorer: drag ε₁ over a spectrum and see what it frees, costs and keeps; train it for real."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from torch import nn

from nesskit.analysis import NetworkCurves, NetworkPoint
from nesskit.analysis.checks import Matrix
from nesskit.errors import NesskitError
from nesskit.experiments.benchmarks import BENCHMARKS
from nesskit.plots import rule_name
from nesskit.runs.record import Run
from nesskit.spectra.filters import Filter, Threshold
from nesskit.spectra.moment import Moment
from nesskit.spectra.profile import LayerProfile
from nesskit.widgets.explorer.source import (
    Source,
    base_settings,
    find_runs,
    load_source,
    packed,
    source_of_model,
    source_of_profiles,
    source_of_run,
    start_of,
    with_rule,
)
from nesskit.widgets.explorer.state import State
from nesskit.widgets.explorer.training import Train, TrainingPanel, button
from nesskit.widgets.explorer.view import ExplorerView, still_picture
from nesskit.widgets.live import picture_bundle

ALT = (
    "The spectrum of a layer's inputs with the cut at ε₁: which directions it frees, what an update in them disturbs, "
    "and how much of the update they keep."
)

Explorable = Run | Path | str | Sequence[LayerProfile] | nn.Module | None


class ThresholdExplorer(widgets.VBox):
    """What ε₁ does, live: free directions, trainable parameters, interference and its bound, energy kept.

    Drag the cut on the spectrum, use the slider, or the arrow keys on either. A click on a small spectrum chooses its
    layer. All of that happens in the browser; the kernel follows, and trains. Problems are said in the widget, not
    raised.

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
        choices: label → what can be chosen: the folder or file of a run, or what makes what was given.
        source: what is shown; None: nothing yet.
        view: what the browser draws; its traits may be observed.
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
        self.choices: dict[str, Any] = {}
        self.benchmark = source if isinstance(source, str) and source in BENCHMARKS else ""
        self._making_base = False
        self.view = ExplorerView()
        self.training = TrainingPanel(runs, self._trained)
        self._make_controls()
        wrap = widgets.Layout(flex_flow="row wrap", grid_gap="4px 12px")
        train_row = widgets.HBox([self.train_button, self.training.stop_button, self.train_note], layout=wrap)
        super().__init__([self.view, self._base, train_row, self.training])
        self.add_class("nk-explorer")
        self._given: dict[str, Callable[[], Source]] = {}
        if source is not None and not self.benchmark:
            self._given = {"given": lambda: _open(source, moments, updates)}
        self.view.observe(self._choose_run, "run")
        self.view.observe(lambda _: self._update_training(), ["rule", "eps", "problem"])
        self._list_runs()
        wanted = {"rule": rule, "eps": eps, "task": task, "layer": layer or None, "side_by_side": side_by_side}
        self.set(**{key: value for key, value in wanted.items() if value is not None})

    @property
    def state(self) -> State:
        """Where the explorer stands; set it through :meth:`set`."""
        return State(**{field.name: getattr(self.view, field.name) for field in dataclasses.fields(State)})

    @property
    def threshold(self) -> Threshold:
        """The chosen rule with its ε₁, ready for ``nesskit.run(…, filter=explorer.threshold)``."""
        return self.state.rules[0]

    @property
    def readings(self) -> tuple[NetworkPoint, ...]:
        """What each shown rule does to the chosen layer, or to all of them: the numbers of the table."""
        if self.source is None:
            return ()
        state = self.state
        curves = self._curves(state)
        chosen = NetworkCurves((curves[state.layer],)) if state.layer else curves
        return tuple(chosen.at(rule) for rule in state.rules)

    @property
    def message(self) -> str:
        """What is wrong, or empty."""
        return str(self.view.message)

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
            self._show(state)

    def choose(self, path: Path | str) -> None:
        """Show the run in the folder ``path``, or the recorded one in the file ``path``."""
        with self._saying_errors():
            self._show_source(load_source(path))

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget, and for pages without a kernel a picture of where it stands."""
        curves = self._curves(self.state) if self.source is not None else None
        picture = still_picture(curves, self.state)
        alt = "No run to show yet." if curves is None else ALT
        return picture_bundle(super()._repr_mimebundle_(**kwargs), "ThresholdExplorer", alt, picture, self.view)

    # What is chosen

    def _list_runs(self, chosen: Path | None = None) -> None:
        """List what can be chosen and show ``chosen``, or the first."""
        self._list_again()
        if self.choices:
            first = next((label for label, path in self.choices.items() if path == chosen), next(iter(self.choices)))
            self.view.run = first
        else:
            name = self.benchmark or "any benchmark"
            self.view.message = (
                f"No run of {name} with layer profiles lies in {self.runs}: make the base run, in which every "
                "direction is free (about 4 seconds for the digits)."
            )
        self._offer_base_run()

    def _list_again(self) -> None:
        """What was given, and the runs on disk; what is shown stays."""
        self.choices = {**self._given, **find_runs(self.runs, self.benchmark, self.results)}
        self.view.runs = list(self.choices)

    def _choose_run(self, _: Any) -> None:
        chosen = self.choices.get(self.view.run)
        if chosen is not None:
            self.view.message = ""
            with self._saying_errors():
                self._show_source(chosen() if callable(chosen) else load_source(chosen))
            self._offer_base_run()

    def _show_source(self, source: Source) -> None:
        start = start_of(source) if self.source is None else {}
        self.source = source
        task = self.view.task if self.view.task in source.curves else max(source.curves)
        layer = self.view.layer if self.view.layer in source.curves[task].names else ""
        with self.view.hold_sync():
            self.view.source = packed(source)
            self._show(dataclasses.replace(self.state, task=task, layer=layer, **start))
        self._update_training()

    def _show(self, state: State) -> None:
        with self.view.hold_sync():
            self.view.problem = ""
            for name, value in dataclasses.asdict(state).items():
                setattr(self.view, name, value)

    def _curves(self, state: State) -> NetworkCurves:
        assert self.source is not None
        return self.source.curves[state.task]

    @contextmanager
    def _saying_errors(self) -> Iterator[None]:
        """What goes wrong inside becomes a sentence in the widget; a success takes the last one away."""
        try:
            yield
        except NesskitError as error:
            self.view.message = str(error)
        else:
            if self.source is not None:
                self.view.message = ""

    # What is trained

    def _update_training(self) -> None:
        source, here = self.source, self._train is not None
        if source is None:
            return
        self.train_button.description = f"Train {rule_name(_rounded(self.threshold))}"
        possible = source.settings is not None or (source.own_model and here)
        self.train_button.disabled = self.training.running or not possible or bool(self.view.problem)
        if not possible:
            how = "pass train=… to train it here" if source.own_model else "its settings are not known"
            self.train_note.value = f"This cannot be trained: {how}."
        elif source.own_model:
            self.train_note.value = "Trains in this kernel: the notebook waits until it is done."
        else:
            where = f" on {source.device}" if source.device else ""
            self.train_note.value = f"In a process of its own; the run shown took {source.seconds:.0f} s{where}."

    def _offer_base_run(self) -> None:
        """Show the button for a base run where it helps: without any run, and beside one that shows only a part."""
        source = self.source
        restricted = source is not None and source.restricted and not source.own_model
        self.base_note.value = ""
        if source is not None and restricted:
            self.base_note.value = "In the base run every direction is free (about 4 seconds for the digits)."
            if source.settings is not None and not source.device:
                self.base_menu.value = source.settings.benchmark
        self._base.layout.display = "" if source is None or restricted else "none"

    def _train_chosen(self, _: Any) -> None:
        rule: Filter = _rounded(self.threshold)
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
        self.view.message = ""
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
        self._update_training()

    def _make_controls(self) -> None:
        self.train_button = button("Train", "play", "Train the chosen ε₁ for real", "nk-train")
        self.train_button.button_style, self.train_button.disabled = "primary", True
        self.train_button.on_click(self._train_chosen)
        self.train_note = widgets.Label()
        self.base_menu = widgets.Dropdown(
            description="Base run of",
            tooltip="Which benchmark to run",
            options=list(BENCHMARKS),
            value=self.benchmark or next(iter(BENCHMARKS)),
            layout={"width": "300px"},
            style={"description_width": "80px"},
        )
        self.base_menu.add_class("nk-base-benchmark")
        tooltip = "Run the benchmark with every direction free"
        self.base_button = button("Make the base run", "plus", tooltip, "nk-base")
        self.base_button.on_click(self._make_base_run)
        self.base_note = widgets.HTML()
        self._base = widgets.VBox([self.base_note, widgets.HBox([self.base_menu, self.base_button])])


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


def _rounded(rule: Threshold) -> Threshold:
    """ε as it is read: three digits. What is trained is what the button says."""
    return type(rule)(float(f"{rule.eps:.3g}"))  # type: ignore[call-arg]
