"""The run panel: choose how to run a benchmark, see how long it will take, start it, watch it, stop and resume it."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

from nesskit.errors import NesskitError, SettingsError
from nesskit.experiments.configure import configure, get_benchmark
from nesskit.experiments.running import choose_device, run_folder
from nesskit.plots import INK, display_name
from nesskit.runs import metrics
from nesskit.runs.comparison import Estimate
from nesskit.runs.folder import load_run
from nesskit.runs.record import Run
from nesskit.settings import METHOD_SETTINGS, RunSettings
from nesskit.streams import check_stream
from nesskit.widgets.keys import OwnKeys
from nesskit.widgets.live import LiveWidget, picture_bundle, say, stacked, text_line
from nesskit.widgets.monitor import RunMonitor, RunReader, Snapshot, is_worked_on, time_left
from nesskit.widgets.picture import new_figure
from nesskit.widgets.process import FetchProcess, RunProcess
from nesskit.widgets.run_time import Stopwatch

DEVICES = (("automatic: a GPU if there is one", "auto"), ("CPU", "cpu"), ("GPU (CUDA)", "cuda"))
WIDE = {"description_width": "4.5em"}
MOST_EPOCHS = 100_000
MOST_SEED = 2**63 - 1  # of a run's settings


class RunPanel(LiveWidget):
    """A benchmark's real runs from a notebook: in child processes, one seed after another, with a live monitor.

    A run that was stopped, or whose notebook was closed, goes on from its last checkpoint when it is started again; one
    that is finished is shown. In a notebook the panel follows its runs by itself; elsewhere :meth:`refresh` does one
    step.

    Args:
        benchmark: its name, as in :func:`nesskit.load_stream`.
        preset: what is chosen at first; None: the benchmark's first.
        method: what is chosen at first.
        seeds: what is chosen at first.
        epochs: a task, what is chosen at first; None: the preset's.
        device: ``auto``, ``cpu`` or ``cuda``.
        runs: the folder of all runs.
        results: where recorded runs lie, whose speed the first guess comes from; None: ``data/results``.
        interval: seconds between two looks at what goes on.

    Attributes:
        monitor: of the run that was started last; None before.
        missing: what to do about the benchmark's data if it is not there; else empty.
    """

    def __init__(
        self,
        benchmark: str,
        *,
        preset: str | None = None,
        method: str = "ness",
        seeds: Sequence[int] = (1,),
        epochs: int | None = None,
        device: str = "auto",
        runs: Path | str = "runs",
        results: Path | str | None = None,
        interval: float = 0.5,
    ) -> None:
        first = configure(benchmark, method, preset, **({} if epochs is None else {"epochs": epochs}))
        self.benchmark, self.runs, self.interval = get_benchmark(benchmark), Path(runs), interval
        self.monitor: RunMonitor | None = None
        self.missing = ""
        self._fetching: FetchProcess | None = None
        self._plan: list[RunSettings] = []  # what Start was pressed for
        self._queue: list[RunSettings] = []  # what is left of it
        self._readers: dict[Path, RunReader] = {}
        self._stopwatch = Stopwatch(benchmark, runs, results)
        self._problem, self._was_running = "", False
        self._paused = False  # whether a stop was asked for, after which no other seed is started
        self._full_epochs = configure(benchmark, method, first.preset).training.epochs  # of what is chosen
        self._make_controls(first, seeds, device)
        self._summary, self._time, self._notice = (text_line(f"nk-{name}") for name in ("preset", "time", "notice"))
        self._table = widgets.HTML()
        self._table.add_class("nk-seeds")
        self._place = widgets.VBox([])
        title = widgets.HTML(f"<b>Run {html.escape(benchmark)}</b>: {html.escape(self.benchmark.summary)}")
        rows = [
            widgets.HBox([self.preset, self.method, self.device], layout=widgets.Layout(flex_flow="row wrap")),
            widgets.HBox([self.seeds, self.epochs], layout=widgets.Layout(flex_flow="row wrap")),
        ]
        buttons = widgets.HBox([self.start_button, self.fetch_button])
        self._keys = OwnKeys()
        parts = [self._summary, self._time, buttons, self._notice, self._table, self._place, self._keys]
        super().__init__([title, *rows, *parts])
        self.add_class("nk-run-panel")
        self._check_data()
        self._changed()

    def _make_controls(self, first: RunSettings, seeds: Sequence[int], device: str) -> None:
        def control(kind: type[widgets.DOMWidget], name: str, tooltip: str, width: str, **values: Any) -> Any:
            made = kind(description=name, tooltip=tooltip, style=WIDE, layout=widgets.Layout(width=width), **values)
            made.add_class(f"nk-choose-{name}")
            made.observe(lambda _: self._changed(), "value")
            return made

        self.preset = control(
            widgets.Dropdown,
            "preset",
            "Settings that belong together",
            "16em",
            options=list(self.benchmark.presets),
            value=first.preset,
        )
        self.method = control(
            widgets.Dropdown,
            "method",
            "What is done against forgetting",
            "16em",
            options=[(display_name(name), name) for name in METHOD_SETTINGS],
            value=first.method,
        )
        self.device = control(widgets.Dropdown, "device", "Where to compute", "21em", options=DEVICES, value=device)
        self.seeds = control(
            widgets.Text,
            "seeds",
            "Whole numbers with commas between them; one run each, one after another",
            "16em",
            value=", ".join(str(seed) for seed in seeds),
            continuous_update=False,
        )
        self.epochs = control(  # text, as a field of numbers makes 3 of 3.7 and 1 of 1e9 without a word
            widgets.Text,
            "epochs",
            f"Epochs per task at most, a whole number from 1 to {MOST_EPOCHS}",
            "16em",
            value=str(first.training.epochs),
            continuous_update=False,
        )
        self.start_button = widgets.Button(description="Start", icon="play", button_style="primary")
        self.start_button.on_click(lambda _: self.start())
        self.start_button.add_class("nk-start")
        self.fetch_button = widgets.Button(
            description="Get the data",
            icon="download",
            tooltip="Download the data set and verify it, or find it where you have put it by now",
        )
        self.fetch_button.on_click(lambda _: self.fetch())
        self.fetch_button.add_class("nk-fetch")

    @property
    def running(self) -> bool:
        """Whether a run that this panel shows goes on."""
        monitor = self.monitor
        if monitor is None or monitor.snapshot.status == "finished":
            return False
        return monitor.snapshot.going_on or (monitor.process is not None and monitor.process.running)

    def settings(self) -> list[RunSettings]:
        """What is chosen: the settings of one run a seed.

        Raises:
            NesskitError: it makes no sense.
        """
        chosen = self.benchmark.name, self.method.value, self.preset.value
        epochs = _epochs(self.epochs.value)
        return [configure(*chosen, seed, epochs=epochs) for seed in _seeds(self.seeds.value)]

    def finished_runs(self) -> list[Run]:
        """The finished ones among the runs that are chosen."""
        folders = [run_folder(settings, self.runs) for settings in self.settings()]
        return [load_run(folder) for folder in folders if self._read(folder).status == "finished"]

    def start(self) -> None:
        """Run what is chosen, or go on with it; a finished run is not done again."""
        if self.running or self.missing:
            return
        try:
            choose_device(self.device.value)
            self._plan = self.settings()
        except NesskitError as error:
            self._problem = str(error)
        else:
            self._problem, self._paused = "", False
            self._queue = list(self._plan)
            self._next()
        self.refresh()
        self._watch()

    def fetch(self) -> None:
        """Get the data in a process of its own."""
        if self._fetching is None:
            self._fetching = FetchProcess(self.benchmark.name)
            self.refresh()
            self._watch()

    def stop(self) -> None:
        """Ask the present run to stop after its epoch; no other is started until they are gone on with."""
        if self.monitor is not None:
            self._pause(True)
            self.monitor.stop()
            self.refresh()

    def resume(self) -> None:
        """Go on with the present run where it stopped, and with those after it."""
        if self.monitor is not None:
            self._pause(False)
            self.monitor.resume()
            self.refresh()

    def _pause(self, paused: bool) -> None:
        self._paused = paused

    def refresh(self) -> None:
        """Look once at what goes on, start the next seed if one has finished, and show it."""
        if self._fetching is not None and not self._fetching.running:
            self._problem, self._fetching = self._fetching.error, None
            self._check_data()
        finished = self.monitor is not None and self.monitor.refresh().status == "finished"
        if finished and not self._paused:  # a run in its last epoch finishes although a stop was asked for
            self._next()
        if self._was_running and not self.running:
            self._stopwatch.look()  # what has just run says how fast the next will be
        self._was_running = self.running
        self._show()

    def _next(self) -> None:
        """Start the first run of the queue that is not finished; show the last one if all are."""
        before = self._queue
        self._queue = [s for s in before if self._read(run_folder(s, self.runs)).status != "finished"]
        if self._queue:
            settings, *self._queue = self._queue
            folder = run_folder(settings, self.runs)
            if is_worked_on(folder):  # by another panel, or by a process that outlived its notebook
                self._watch_run(folder)
            else:
                self._watch_run(RunProcess(settings, self.runs, self.device.value))
        elif before and (self.monitor is None or self.monitor.folder != run_folder(before[-1], self.runs)):
            self._watch_run(run_folder(before[-1], self.runs))

    def _watch_run(self, run: Path | RunProcess) -> None:
        before, self.monitor = self.monitor, RunMonitor(run, device=self.device.value, interval=self.interval)
        self.monitor.stop_button.on_click(lambda _: self._pause(True))
        self.monitor.resume_button.on_click(lambda _: self._pause(False))
        self._place.children = (self.monitor,)
        if before is not None:
            before.close()  # only now: its place is never empty

    def _check_data(self) -> None:
        try:
            check_stream(self.benchmark.name)
            self.missing = ""
        except NesskitError as error:
            self.missing = str(error)

    def _changed(self) -> None:
        """Something else was chosen."""
        before = self._full_epochs
        full = configure(self.benchmark.name, self.method.value, self.preset.value).training.epochs
        self._full_epochs = full
        if self.epochs.value == str(before) != str(full):
            self.epochs.value = str(full)  # comes back here
            return
        self._problem = ""
        self._show()

    def _show(self) -> None:
        busy = self.running or self._fetching is not None
        for control in (self.preset, self.method, self.device, self.seeds, self.epochs):
            control.disabled = busy
        try:
            wanted, problem = self.settings(), self._problem
            device = choose_device(self.device.value)
        except NesskitError as error:
            wanted, problem, device = [], str(error), ""
        self.start_button.disabled = busy or bool(self.missing) or not wanted
        self.start_button.tooltip = _why_not_start(self.running, self.missing, wanted)
        self.fetch_button.layout.display = "" if self.missing else "none"
        self.fetch_button.disabled = busy
        say(self._summary, self.benchmark.presets[self.preset.value].summary + self._reduced(wanted), "Preset:")
        say(self._time, self._time_text(wanted, device), "Time:")
        if self._fetching is not None:
            say(self._notice, "this may take minutes.", "Getting the data:")
        else:
            # A download that failed has just said more than the look before it could know.
            say(self._notice, problem or self.missing, "The data is missing:" if self.missing and not problem else "")
        self._table.value = self._rows(wanted)

    def _reduced(self, wanted: Sequence[RunSettings]) -> str:
        full = self._full_epochs
        if not wanted or wanted[0].training.epochs >= full:
            return "."
        return (
            f". With fewer than its {full} epochs a task this is a reduced run, not to be set beside published results."
        )

    def _time_text(self, wanted: Sequence[RunSettings], device: str) -> str:
        if not wanted:
            return "unknown, as something that was chosen makes no sense."
        if self.running and self.monitor is not None:
            return self._time_of_the_rest(self.monitor.snapshot)
        shares = [_left(self._read(run_folder(settings, self.runs))) for settings in wanted]
        if not any(shares):
            return "none: every run that is chosen is finished." if len(wanted) > 1 else "none: this run is finished."
        speed = self._stopwatch.speed(wanted[0], device)
        where = "this machine's GPU" if device == "cuda" else "this machine's CPU"
        if speed is None:
            return (
                f"not known yet. No run of this kind on a {'GPU' if device == 'cuda' else 'CPU'} is recorded, "
                f"so the first epochs on {where} will be measured once it has started."
            )
        seconds = sum(share * speed.of_run(settings) for share, settings in zip(shares, wanted, strict=True))
        most = " at most (tasks may end early)" if wanted[0].training.lr_patience else ""
        runs = f"{len(wanted)} runs of" if len(wanted) > 1 else "a run of"
        return (
            f"{time_left(seconds)}{most} on {where} for {runs} {speed.tasks} tasks, "
            f"{wanted[0].training.epochs} epochs each, judging {speed.source}."
        )

    def _time_of_the_rest(self, now: Snapshot) -> str:
        if math.isnan(now.seconds_left):
            return "the first epochs are being measured."
        one = now.seconds_left / max(now.epochs_total - now.epochs_done, 1) * now.epochs_total
        after = [_left(self._read(run_folder(settings, self.runs))) for settings in self._queue]
        seconds = now.seconds_left + one * sum(after)
        others = {0: "", 1: " and the one after it"}.get(len(after), f" and the {len(after)} after it")
        # In steps of ten seconds, as whatever changes is read out by a screen reader.
        return f"{time_left(10 * math.ceil(seconds / 10))} left for this seed{others}, as measured on its last epochs."

    def _read(self, folder: Path) -> Snapshot:
        reader = self._readers.setdefault(folder, RunReader(folder))
        child = self.monitor is not None and self.monitor.folder == folder and self.running
        return reader.read(child)

    def _rows(self, wanted: Sequence[RunSettings]) -> str:
        """How every chosen seed stands, as a table; empty while nothing was begun."""
        snapshots = [(settings.seed, self._read(run_folder(settings, self.runs))) for settings in wanted]
        if all(now.status == "waiting" for _, now in snapshots):
            return ""
        rows: list[tuple[str, ...]] = []
        finished: list[tuple[float, float]] = []
        for seed, now in snapshots:
            done = now.status == "finished"
            measures = _measures(now) if done else (math.nan, math.nan)
            finished += [measures] if done else []
            status = "not begun" if now.status == "waiting" else now.status
            rows.append((str(seed), status, *(str(Estimate.of([value])) if done else "" for value in measures)))
        if len(finished) > 1:
            mean = [str(Estimate.of(column)) for column in zip(*finished, strict=True)]
            rows.append((f"mean ± std of {len(finished)}", "", *mean))

        head = "".join(_cell("th", name, "col") for name in ("seed", "status", "ACC (%)", "BWT (%)"))
        body = "".join(
            f"<tr>{_cell('th', name, 'row')}{''.join(_cell('td', text) for text in cells)}</tr>"
            for name, *cells in rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _watch(self) -> None:
        """Refresh from now on until all is done; without an event loop only :meth:`refresh` does."""
        self.follow(self.refresh, self._more_may_come, self._notice)

    def _more_may_come(self) -> bool:
        """Whether something goes on, or may be gone on with by the monitor's button."""
        unfinished = self.monitor is not None and self.monitor.snapshot.status != "finished"
        return self._fetching is not None or unfinished or (bool(self._queue) and not self._paused)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        bundle, text = super()._repr_mimebundle_(**kwargs), f"Run panel for {self.benchmark.name}"
        if self.monitor is None:
            alt = f"A card with what can be run: {text}."
            return picture_bundle(bundle, text, alt, stacked([self._card()]), self._keys)
        alt = "The run so far: loss and learning rate by epoch, the accuracy matrix, how much each task was forgotten."
        return picture_bundle(bundle, text, alt, self.monitor._plots.png(), self._keys)

    def _card(self) -> Figure:
        """What stands in the panel's place where no widget can run."""
        figure = new_figure(9.6, 1.0)
        figure.text(0.01, 0.68, f"Run panel: {self.benchmark.name}", color=INK, fontsize=12, weight="bold")
        chosen = (
            f"preset {self.preset.value}, {display_name(self.method.value)}, seeds {self.seeds.value}, "
            f"{self.epochs.value} epochs a task at most"
        )
        figure.text(0.01, 0.4, chosen, color=INK)
        figure.text(
            0.01, 0.14, "Open this notebook in JupyterLab and run the cell: start, watch and stop runs.", color=INK
        )
        return figure


def _cell(kind: str, text: str, scope: str = "") -> str:
    """A cell of a table; ``scope`` says what a header is the header of."""
    header = f' scope="{scope}"' if scope else ""
    return f'<{kind}{header} style="padding: 0 1em 0 0; text-align: left">{html.escape(text)}</{kind}>'


def _seeds(text: str) -> list[int]:
    """``1, 2, 3`` as numbers, each once."""
    words = [word for part in text.split(",") for word in part.split() or [""]]
    if not all(_is_whole_number(word, 0, MOST_SEED) for word in words):
        raise SettingsError(
            f"seeds must be whole numbers from 0 to {MOST_SEED} with one comma between two of them, such as 1, 2, 3, "
            f"got '{text}'"
        )
    return list(dict.fromkeys(int(word) for word in words))


def _epochs(text: str) -> int:
    """``20`` as a number."""
    word = text.strip()
    if not _is_whole_number(word, 1, MOST_EPOCHS):
        raise SettingsError(f"epochs must be a whole number from 1 to {MOST_EPOCHS}, such as 20, got '{text}'")
    return int(word)


def _is_whole_number(word: str, least: int, most: int) -> bool:
    """Whether ``word`` consists of the digits 0 to 9 alone and names such a number; int() itself fails on thousands."""
    return word.isascii() and word.isdecimal() and len(word) <= len(str(most)) and least <= int(word) <= most


def _left(now: Snapshot) -> float:
    """The share of a run that is still to be done."""
    if now.status == "finished":
        return 0.0
    return 1 - now.epochs_done / now.epochs_total if now.epochs_total else 1.0


def _measures(now: Snapshot) -> tuple[float, float]:
    return metrics.average_accuracy(now.accuracy), metrics.backward_transfer(now.accuracy)


def _why_not_start(running: bool, missing: str, wanted: Sequence[RunSettings]) -> str:
    if running:
        return "A run is going on"
    if missing:
        return "The data is missing"
    return "Run every seed, one after another" if wanted else "Something that was chosen makes no sense"
