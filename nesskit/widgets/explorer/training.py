"""The explorer's lower half: train the chosen ε₁ for real, watch the accuracy matrix fill, compare what came out."""

from __future__ import annotations

import base64
import csv
import html
import io
import weakref
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib.colors import to_rgb
from numpy.typing import ArrayLike

from nesskit.errors import NesskitError
from nesskit.plots import (
    CELL_INK,
    CELL_LIGHT,
    cell_colours,
    contrast,
    describe_accuracy_matrix,
    measures_text,
    rule_name,
)
from nesskit.plots.drawing import signed
from nesskit.runs.events import Event
from nesskit.runs.folder import load_run
from nesskit.runs.record import Run
from nesskit.settings import RunSettings
from nesskit.spectra.filters import Filter, parse_filter
from nesskit.widgets.live import LiveWidget, text_line
from nesskit.widgets.process import EventFollower, RunProcess

Train = Callable[[Filter, Sequence[Callable[[Event], None]]], Run]  # of an own model: fit(…, listeners=listeners)


@dataclass(frozen=True)
class Trial:
    """One trained threshold; accuracies in percent."""

    benchmark: str
    rule: str
    seed: int
    ACC: float
    BWT: float
    seconds: float
    status: str
    folder: str

    @classmethod
    def of(cls, run: Run, rule: Filter) -> Trial:
        """What ``run``, trained with ``rule``, has come to."""
        return cls(
            str(run.config.get("benchmark") or run.config.get("stream") or "your model"),
            str(rule),
            int(run.config.get("seed", 0)),
            round(run.average_accuracy, 4),
            round(run.backward_transfer, 4),
            round(run.seconds, 1),
            run.status if run.finished else f"{run.status} after {run.tasks_done} of {len(run.tasks)} tasks",
            "" if run.folder is None else str(run.folder),
        )


class TrainingPanel(LiveWidget):
    """Train, stop, a live accuracy matrix, and the history of what was trained here.

    A run goes on in a child process that is followed through its folder, so that the kernel stays free. Closing the
    kernel asks it to stop; it can go on later.

    Args:
        runs: where runs lie.
        on_finished: called with the folder of each run that ended.
    """

    interval = 0.2

    def __init__(self, runs: Path | str, on_finished: Callable[[Path | None], None] = lambda _: None) -> None:
        self.runs, self._on_finished = Path(runs), on_finished
        self.history: list[Trial] = []
        self.process: RunProcess | None = None
        self.accuracy = np.full((0, 0), np.nan)
        self.tasks: list[str] = []
        self._rule: Filter | None = None
        self._stopping = False
        self.stop_button = button(
            "Stop", "stop", "Stop after this epoch; what is done is kept and can go on", "nk-stop"
        )
        self.stop_button.disabled = True
        self.stop_button.on_click(lambda _: self.stop())
        self.save_button = button("Save as CSV", "save", "Write the table to a file", "nk-save")
        self.save_button.disabled = True
        self.save_button.on_click(lambda _: self._save())
        self.status, self.matrix, self.table, self.saved = map(
            text_line, ("nk-status", "nk-matrix", "nk-history", "nk-saved")
        )
        self._below = widgets.VBox([self.table, widgets.HBox([self.save_button, self.saved])])
        self._below.layout.display = "none"
        beside = widgets.HBox([self.matrix, self._below], layout={"flex_flow": "row wrap", "grid_gap": "24px"})
        super().__init__([self.status, beside])
        self.add_class("nk-training")
        self._children: list[RunProcess] = []
        weakref.finalize(self, _stop_all, self._children)  # runs also when the kernel ends

    @property
    def running(self) -> bool:
        """Whether a run that was started here goes on."""
        return self.process is not None

    def start(self, settings: RunSettings, rule: Filter) -> None:
        """Start the run that ``settings`` describe in a child process, or go on with it."""
        if self.running:
            return
        self._begin(rule)
        self.process = RunProcess(settings, self.runs)
        self._children[:] = [self.process]
        self._follower = EventFollower(self.process.folder)
        self.stop_button.disabled = False
        self._say("starting …")
        self.follow(self.poll, lambda: self.running, self.status)  # without a loop whoever started it calls poll()

    def train_here(self, train: Train, rule: Filter) -> None:
        """Train a model that lives in this kernel, in the foreground."""
        self._begin(rule)
        self._say("training here: the notebook waits until it is done")
        try:
            run = train(rule, [lambda event: self._take(event.to_dict())])
        except NesskitError as error:
            self._say(f"this run failed: {error}", error=True)
            return
        self._end(run)

    def stop(self) -> None:
        """Ask the run to stop after the epoch it is in."""
        if self.process is not None:
            self._stopping = True
            self.stop_button.disabled = True
            self.process.stop()
            self._say("stopping after this epoch …")

    def poll(self) -> bool:
        """Show what has happened since the last call; whether the run still goes on."""
        process = self.process
        if process is None:
            return False
        alive = process.running  # asked first: what a child wrote before its end must not be missed
        for event in self._follower.poll():
            self._take(event)
        if alive:
            if self._stopping:  # again: a request from before its first epoch would be taken for an old one
                process.stop()
            return True
        self.process = None
        self._children.clear()
        self.stop_button.disabled = True
        if process.error:
            self._say(f"this run failed: {process.error}", error=True)
            self._on_finished(None)
            return False
        self._end(load_run(process.folder))
        return False

    def save_history(self, path: Path | str) -> Path:
        """Write the history as CSV."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.history_csv(), encoding="utf-8")
        return path

    def history_csv(self) -> str:
        """The history as CSV, one trial a line."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, [field.name for field in fields(Trial)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(trial) for trial in self.history)
        return stream.getvalue()

    def _begin(self, rule: Filter) -> None:
        self._rule, self._stopping = rule, False
        self._set_matrix(np.full((0, 0), np.nan), [])

    def _end(self, run: Run) -> None:
        self._set_matrix(run.accuracy, run.tasks)
        assert self._rule is not None
        self.history.append(Trial.of(run, self._rule))
        self._show_history()
        self._say(f"{run.status}: {measures_text(run.accuracy)}")
        self._on_finished(run.folder)

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "RunStarted" and len(self.accuracy) != event["tasks"]:
            self._set_matrix(np.full((event["tasks"], event["tasks"]), np.nan), [])
        elif kind == "EpochFinished":
            number, of = event["task"] * event["epochs"] + event["epoch"] + 1, len(self.accuracy) * event["epochs"]
            where = f"task {event['task'] + 1} of {len(self.accuracy)}, epoch {event['epoch'] + 1} of {event['epochs']}"
            self._say(("stopping after this epoch: " if self._stopping else "") + where, number / max(of, 1))
        elif kind == "TaskFinished":
            accuracy = self.accuracy.copy()
            accuracy[event["task"], : len(event["accuracy"])] = event["accuracy"]
            self._set_matrix(accuracy, self.tasks)

    def _set_matrix(self, accuracy: np.ndarray, tasks: list[str]) -> None:
        self.accuracy, self.tasks = accuracy, tasks
        self.matrix.value = accuracy_table(accuracy, tasks, _short(self._rule)) if len(accuracy) else ""

    def _say(self, text: str, share: float | None = None, error: bool = False) -> None:
        pid = self.process.pid if self.process is not None else ""
        bar = "" if share is None else f' <progress value="{share:.4f}" aria-label="progress of the run"></progress>'
        kind, said = "nk-error" if error else "", html.escape(f"{_short(self._rule)}: {text}")
        self.status.value = f'<span role="status" class="{kind}" data-pid="{pid}">{said}</span>{bar}'

    def _show_history(self) -> None:
        self.table.value = history_table(self.history)
        self.save_button.disabled = False
        self._below.layout.display = ""
        self.saved.value = ""

    def _save(self) -> None:
        try:
            path = self.save_history(self.runs / "explorer-history.csv")
        except OSError as error:
            self.saved.value = f"cannot write: {html.escape(str(error))}"
            return
        data = base64.b64encode(self.history_csv().encode()).decode()
        link = f'<a download="explorer-history.csv" href="data:text/csv;base64,{data}">download</a>'
        self.saved.value = f"saved as {html.escape(str(path))} ({link})"


def accuracy_table(accuracy: ArrayLike, tasks: Sequence[str] = (), title: str = "") -> str:
    """The accuracy matrix as an HTML table: grey when learned, blue where a task gained since, orange where it lost."""
    matrix = np.asarray(accuracy, dtype=np.float64)
    colours = cell_colours(matrix)
    names = list(tasks) or [f"task {k + 1}" for k in range(len(matrix))]
    head = "".join(f'<th scope="col" title="{html.escape(n)}">{k + 1}</th>' for k, n in enumerate(names))
    rows = []
    for t, row in enumerate(matrix):
        cells = "".join(_cell(value, colours[t, i]) for i, value in enumerate(row))
        rows.append(f'<tr><th scope="row">{t + 1}</th>{cells}</tr>')
    caption = html.escape(f"{title}: {measures_text(matrix)}" if title else measures_text(matrix))
    label = html.escape(describe_accuracy_matrix(matrix, names))
    return (
        f'<table class="nk-cells" aria-label="{label}"><caption>{caption}</caption>'
        f'<thead><tr><th scope="col" title="row: after learning this task; column: accuracy on this task">'
        f"after ↓ on →</th>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def history_table(history: Sequence[Trial]) -> str:
    """Trials as an HTML table; differences are to the first of the same benchmark."""
    best = max(history, key=lambda trial: trial.ACC, default=None)
    rows = []
    for number, trial in enumerate(history, 1):
        first = next(t for t in history if t.benchmark == trial.benchmark)
        difference = "" if trial is first else f" ({signed(trial.ACC - first.ACC)})"
        acc = f"{trial.ACC:.1f}{difference}"
        values = [
            trial.benchmark,
            html.escape(_short(parse_filter(trial.rule))),
            f"<b>{acc}</b>" if trial is best else acc,
            signed(trial.BWT) if np.isfinite(trial.BWT) else "–",
            f"{trial.seconds:.0f}",
            trial.status,
        ]
        cells = "".join(f"<td>{value}</td>" for value in values)
        rows.append(f'<tr><th scope="row">{number}</th>{cells}</tr>')
    names = ("", "benchmark", "rule", "ACC % (to the first)", "BWT", "seconds", "status")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    return (
        f'<table class="nk-trials"><caption>trained here</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _cell(value: float, colour: np.ndarray) -> str:
    if np.isnan(value):
        return "<td></td>"
    ink = max((CELL_INK, CELL_LIGHT), key=lambda ink: contrast(to_rgb(ink), tuple(colour)))
    red, green, blue = (round(255 * channel) for channel in colour)
    return f'<td style="background:rgb({red},{green},{blue});color:{ink}">{value:.1f}</td>'


def _short(rule: Filter | None) -> str:
    return "" if rule is None else rule_name(rule)  # type: ignore[arg-type]


def button(description: str, icon: str, tooltip: str, css: str) -> widgets.Button:
    """A button as wide as its text."""
    button = widgets.Button(description=description, icon=icon, tooltip=tooltip, layout={"width": "auto"})
    button.add_class(css)
    return button


def _stop_all(processes: list[RunProcess]) -> None:
    for process in processes:
        if process.running:
            process.stop()
