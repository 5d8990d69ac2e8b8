"""The run monitor: any run folder, watched while it fills, stopped and gone on with."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import filelock
import ipywidgets as widgets
import numpy as np
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from nesskit.errors import NesskitError, RunFolderError, UserFileError
from nesskit.experiments.running import run_folder
from nesskit.methods import METHODS
from nesskit.plots import BLUE, GRID, INK, LOST, MUTED, VERMILLION, cell_colours, contrast, measures_text, style
from nesskit.plots.drawing import CELL_INK, CELL_LIGHT, cell_font_size, frame_cells, mix, plain_log_scale, tidy
from nesskit.runs import metrics
from nesskit.runs.folder import STOP, RunFolder
from nesskit.runs.record import EpochRecord, Run
from nesskit.settings import RunSettings
from nesskit.widgets.keys import OwnKeys
from nesskit.widgets.live import LiveWidget, beside, picture_bundle, say, text_line
from nesskit.widgets.picture import DPI, LivePicture, new_figure
from nesskit.widgets.process import EventFollower, RunProcess

Status = Literal[
    "waiting", "starting", "running", "stopping", "stopped", "failed", "interrupted", "finished", "damaged"
]

RESUMABLE = ("stopped", "failed", "interrupted")
STOP_HELP = "Ask the run to stop after this epoch; what it has done is kept, and it can go on later"
HISTORY, MATRIX = (5.4, 4.9), (4.2, 4.9)  # width and height of the figures, in inches
RECENT_EPOCHS = 20  # what the time that is left is estimated from


@dataclass(frozen=True, eq=False)
class Snapshot:
    """How a run stands.

    Attributes:
        status: ``interrupted`` is a run that says it is running while no process works on it.
        message: one sentence about that.
        tasks: their names; empty while unknown.
        accuracy: (T, T) percent, as in :class:`nesskit.Run`.
        history: the epochs so far.
        epochs_done, epochs_total: of all tasks, where a task that ended early counts as whole; 0 while unknown.
        seconds_left: NaN where nothing is going on, or nothing can be said yet.
    """

    status: Status
    message: str
    tasks: tuple[str, ...] = ()
    accuracy: np.ndarray = field(default_factory=lambda: np.empty((0, 0)))
    history: tuple[EpochRecord, ...] = ()
    epochs_done: int = 0
    epochs_total: int = 0
    seconds_left: float = math.nan

    @property
    def going_on(self) -> bool:
        """Whether a process works on the run."""
        return self.status in ("starting", "running", "stopping")


class RunReader:
    """Reads how a run stands from its folder, whatever process writes it.

    The record is whole but up to ten epochs old; events bring what happened since. What a killed run had done after its
    last checkpoint is done anew, and then replaces what was read before.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = RunFolder(folder)
        self.run: Run | None = None
        # Of the record and of the events, as they were last read.
        self._stamps: tuple[_Stamp | None, _Stamp | None] = (None, None)
        self._forget_events()

    def read(self, own_child: bool = False) -> Snapshot:
        """How the run stands now; ``own_child``: whether a process that works on it is known to be alive."""
        try:
            self._read_record()
            self._read_events()
            return self._snapshot(own_child)
        except (NesskitError, OSError) as error:
            return Snapshot("damaged", f"{self.folder.path}: {error}" if isinstance(error, OSError) else str(error))

    def _read_record(self) -> None:
        stamp = _stamp(self.folder.path / "record.json")
        if stamp is None or stamp != self._stamps[0]:
            self.run = self.folder.read()
            self._stamps = (stamp, self._stamps[1])

    def _read_events(self) -> None:
        stamp, before = _stamp(self._follower.path), self._stamps[1]
        if before and (not stamp or stamp.inode != before.inode or stamp.size < before.size):
            self._forget_events()  # the folder was emptied, and another run may have begun in it
        self._stamps = (self._stamps[0], stamp)
        try:
            for event in self._follower.poll():
                self._follow(event)
        except (ValueError, KeyError, TypeError):
            pass  # a line that a full disk cut off; the record holds what it said, at the latest ten epochs later

    def _forget_events(self) -> None:
        self._follower = EventFollower(self.folder.path)
        self.starts = self._tasks = self._epochs = 0
        self._history: dict[tuple[int, int], EpochRecord] = {}
        self._rows: dict[int, list[float]] = {}
        self._seconds: deque[float] = deque(maxlen=RECENT_EPOCHS)

    def _follow(self, event: Mapping[str, Any]) -> None:
        kind = event["event"]
        if kind == "RunStarted":
            self.starts += 1
            self._tasks = event["tasks"]
            self._seconds.clear()
            if event["state"] == "new":
                self._history, self._rows = {}, {}
        elif kind == "TaskStarted":
            self._epochs = event["epochs"]
        elif kind == "EpochFinished":
            epoch = EpochRecord(**{f.name: event[f.name] for f in fields(EpochRecord)})
            place = (epoch.task, epoch.epoch)
            self._history = {key: old for key, old in self._history.items() if key < place} | {place: epoch}
            self._seconds.append(event["seconds"])
        elif kind == "TaskFinished":
            self._rows[event["task"]] = event["accuracy"]

    def _snapshot(self, own_child: bool) -> Snapshot:
        run = self.run
        tasks = tuple(run.tasks) if run else tuple(str(task + 1) for task in range(self._tasks))
        accuracy = np.full((len(tasks), len(tasks)), np.nan)
        for task, row in self._rows.items():
            accuracy[task, : len(row)] = row
        history = dict(self._history)
        if run:
            accuracy = np.where(np.isnan(run.accuracy), accuracy, run.accuracy)
            history |= {(epoch.task, epoch.epoch): epoch for epoch in run.history}
        epochs = tuple(history[place] for place in sorted(history))
        done, total = self._progress(epochs, accuracy)
        status = self._status(own_child)
        fresh = status in ("running", "stopping") and self._seconds
        left = (total - done) * float(np.mean(self._seconds)) if fresh else math.nan
        message = self._message(status, epochs, accuracy, left)
        return Snapshot(status, message, tasks, accuracy, epochs, done, total, left)

    def _status(self, own_child: bool) -> Status:
        if self.run is None and not self.starts:
            return "waiting"
        if self.run is not None and self.run.status != "running":
            return self.run.status
        if not own_child and not is_worked_on(self.folder.path):
            return "interrupted"
        if self.run is None:
            return "starting"
        return "stopping" if (self.folder.path / STOP).exists() else "running"

    def _message(self, status: Status, history: tuple[EpochRecord, ...], accuracy: np.ndarray, left: float) -> str:
        tasks, done = len(accuracy), _tasks_done(accuracy)
        if status == "waiting":
            return f"no run lies in {self.folder.path} yet."
        if status == "starting":
            return "a process is about to train."
        learned = f"{done} of {tasks} tasks learned"
        reason = (self.run.status_reason if self.run else "").rstrip(".")
        if status in ("running", "stopping"):
            here = [epoch for epoch in history if epoch.task >= done]
            epoch = f", epoch {here[-1].epoch + 1} of {self._epochs_per_task()}" if here else ""
            which = "all tasks" if self._joint() else f"task {done + 1} of {tasks}"
            time = f", {time_left(left)} left" if left > 0 else ""
            stop = " It will stop after this epoch." if status == "stopping" else ""
            return f"{which}{epoch}{time}.{stop}{self._last_heard()}"
        if status == "interrupted":
            return f"its process is gone; {learned}. It can go on from its last checkpoint."
        if status == "finished":
            return f"{learned}."
        return f"{reason}; {learned}."

    def _last_heard(self) -> str:
        """When the run told its last event: a page whose kernel has ended still says that it was running then."""
        told = self._stamps[1]
        return f" Last heard at {datetime.fromtimestamp(told.time / 1e9):%H:%M:%S}." if told else ""

    def _progress(self, history: tuple[EpochRecord, ...], accuracy: np.ndarray) -> tuple[int, int]:
        per_task, done = self._epochs_per_task(), _tasks_done(accuracy)
        if self._joint():
            return (per_task if done else len(history)), per_task
        return done * per_task + sum(epoch.task == done for epoch in history), per_task * len(accuracy)

    def _epochs_per_task(self) -> int:
        """At most; 0 while it is unknown."""
        training = self.run.config.get("training") if self.run else None
        return int(training["epochs"]) if isinstance(training, Mapping) and "epochs" in training else self._epochs

    def _joint(self) -> bool:
        method = METHODS.get(str(self.run.config.get("method"))) if self.run else None
        return method is not None and method.learns_together


class RunMonitor(LiveWidget):
    """Losses, learning rate, accuracies and forgetting of a run while it goes on; buttons to stop and to resume it.

    In a notebook it follows the run by itself, between two cells; elsewhere :meth:`refresh` does one step.

    Args:
        run: a run folder, which need not exist yet, or a process that :class:`RunProcess` started.
        device: where to go on with the run; by default where it ran before.
        interval: seconds between two looks at the folder.

    Attributes:
        snapshot: how the run stands, as shown.
        process: the process that this monitor was given, or has started; None if there is none.
    """

    def __init__(self, run: Path | str | RunProcess, *, device: str | None = None, interval: float = 0.5) -> None:
        self.process = run if isinstance(run, RunProcess) else None
        self.folder = run.folder if isinstance(run, RunProcess) else Path(run)
        self.device, self.interval = device, interval
        self._reader, self._problem = RunReader(self.folder), ""
        self.snapshot = self._reader.read(self._child)
        # A process that has not begun yet: what lies in the folder tells of the time before.
        self._starts_before = self._reader.starts if self._child and not self.snapshot.going_on else -1
        self._plots = RunFigure()
        self._status, self._notice = text_line("nk-status"), text_line("nk-notice")
        self._bar = widgets.IntProgress(description="epochs", layout=widgets.Layout(width="24em"))
        self._count = widgets.Label()
        self.stop_button = widgets.Button(description="Stop", icon="stop", tooltip=STOP_HELP)
        self.resume_button = widgets.Button(description="Resume", icon="play")
        self.stop_button.on_click(lambda _: self.stop())
        self.resume_button.on_click(lambda _: self.resume())
        for part, name in ((self.stop_button, "stop"), (self.resume_button, "resume"), (self._bar, "progress")):
            part.add_class(f"nk-{name}")
        parts = [self.stop_button, self.resume_button, self._bar, self._count]
        controls = widgets.HBox(parts, layout={"flex_flow": "row wrap"})
        self._keys = OwnKeys()
        pictures = widgets.HBox([self._plots.history, self._plots.matrix], layout={"flex_flow": "row wrap"})
        for picture, (width, _) in zip(pictures.children, (HISTORY, MATRIX), strict=True):
            picture.layout.flex = f"{width} 1 {2 / 3 * width * DPI:.0f}px"  # narrower, they stand below each other
        super().__init__([self._status, controls, self._notice, pictures, self._keys])
        self.add_class("nk-monitor")
        self.refresh()
        self._watch()

    @property
    def _child(self) -> bool:
        return self.process is not None and self.process.running

    def refresh(self) -> Snapshot:
        """Look at the folder once and show what has changed."""
        child = self._child
        now = self._reader.read(child)
        if child and self._reader.starts == self._starts_before:
            now = replace(now, status="starting", message="a process is about to train.", seconds_left=math.nan)
        self.snapshot = now
        self._show(now)
        return now

    def stop(self) -> None:
        """Ask whoever works on the run to stop after the present epoch."""
        self._try(RunFolder(self.folder).request_stop)

    def resume(self) -> None:
        """Go on with the run in a process of its own."""
        self._try(self._start)
        self._watch()

    def _start(self) -> None:
        settings, runs = settings_of(self._reader.run, self.folder)
        self._starts_before = self._reader.starts
        self.process = RunProcess(settings, runs, self.device or _device_of(self._reader.run))

    def _try(self, action: Callable[[], None]) -> None:
        """Do what a button asks for; an expected error is shown."""
        self._problem = ""
        try:
            action()
        except (NesskitError, OSError) as error:
            self._problem = str(error)
        self.refresh()

    def _show(self, now: Snapshot) -> None:
        say(self._status, now.message, f"{now.status.capitalize()}:")
        self._bar.max, self._bar.value = max(now.epochs_total, 1), now.epochs_done
        self._count.value = f"{now.epochs_done} of {now.epochs_total}" if now.epochs_total else ""
        why_not = self._why_not_resume(now)
        self.stop_button.disabled, self.resume_button.disabled = now.status != "running", bool(why_not)
        self.resume_button.tooltip = why_not or "Go on with this run in a process of its own"
        failure = self.process.error if self.process is not None else ""
        say(self._notice, self._problem or failure or (why_not if now.status in RESUMABLE else ""))
        if now.status != "damaged":  # what was seen last is better than nothing
            self._plots.show(now)

    def _why_not_resume(self, now: Snapshot) -> str:
        if now.status not in RESUMABLE:
            return "Only a run that ended before it was finished can go on"
        try:
            settings_of(self._reader.run, self.folder)
        except NesskitError as error:
            return str(error)
        return ""

    def _watch(self) -> None:
        """Refresh from now on until the run has finished; without an event loop only :meth:`refresh` does."""
        self.follow(self.refresh, lambda: self.snapshot.status != "finished", self._notice)

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        alt = "The run so far: loss and learning rate by epoch, the accuracy matrix, how much each task was forgotten."
        bundle = super()._repr_mimebundle_(**kwargs)
        return picture_bundle(bundle, "Run monitor", alt, self._plots.png(), self._keys)


class RunFigure:
    """The figures of the monitor; their artists are made once for a number of tasks and then updated in place.

    Attributes:
        history: the picture of losses and learning rate.
        matrix: the picture of accuracies and forgetting.
        train, valid, rate: lines by epoch, interrupted between tasks.
        cells: (T, T, 3) image of the accuracy matrix; ``numbers`` are the texts in it, by row and column.
        forgotten: one bar a task, in points.
    """

    def __init__(self) -> None:
        figure = new_figure(*HISTORY)
        self.history = LivePicture(figure, "Loss and learning rate by epoch.")
        self.matrix = LivePicture(new_figure(*MATRIX), "The accuracy matrix, and how much each task was forgotten.")
        self._shown: Any = None
        with style():
            self.loss_axes, self.rate_axes = (
                figure.add_axes((0.124, y, 0.836, h)) for y, h in ((0.41, 0.5), (0.115, 0.2))
            )
            (self.train,) = self.loss_axes.plot([], [], color=BLUE, linewidth=1.6, label="training")
            (self.valid,) = self.loss_axes.plot(
                [], [], color=VERMILLION, linewidth=1.4, linestyle="--", label="validation"
            )
            (self.rate,) = self.rate_axes.plot([], [], color=INK, linewidth=1.4, drawstyle="steps-mid")
            self._borders = []
            for ax, name in ((self.loss_axes, "loss"), (self.rate_axes, "learning rate")):
                tidy(ax)
                ax.set_ylabel(name)
                self._borders += ax.plot(
                    [], [], color=GRID, linewidth=1.0, zorder=1, transform=ax.get_xaxis_transform()
                )
                ax.tick_params(axis="x", length=0)
            # Each name over its axes by itself: the second is shown when there are validation data.
            self._legend(self.train, 0.0)
            self._validation = self._legend(self.valid, 0.26)
            self.rate_axes.set_xlabel("task, epoch after epoch")
            self.loss_axes.tick_params(labelbottom=False)
            figure.align_ylabels([self.loss_axes, self.rate_axes])
        self._prepare(0)

    def _legend(self, line: Line2D, x: float) -> Legend:
        legend = Legend(
            self.loss_axes,
            [line],
            [str(line.get_label())],
            loc="lower left",
            bbox_to_anchor=(x, 1.0),
            borderaxespad=0.2,
        )
        self.loss_axes.add_artist(legend)
        return legend

    def _prepare(self, tasks: int) -> None:
        """Make the artists that depend on how many tasks there are."""
        figure, width, height = self.matrix.figure, 3.0 / MATRIX[0], 3.0 / MATRIX[1]  # three inches
        figure.clear()
        with style():
            matrix = figure.add_axes((0.212, 0.3, width, height))
            forgotten = figure.add_axes((0.212, 0.115, width, 0.115))
            frame_cells(matrix, max(tasks, 1), max(tasks, 1))
            self.cells = matrix.imshow(np.ones((max(tasks, 1), max(tasks, 1), 3)), aspect="auto", zorder=0)
            size = cell_font_size(matrix, max(tasks, 1), 4)
            place: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": size}
            self.numbers = [[matrix.text(c, r, "", **place) for c in range(tasks)] for r in range(tasks)]
            matrix.set_yticks(range(tasks), [str(task + 1) for task in range(tasks)])
            matrix.set_xticks([])
            matrix.set_ylabel("after learning task")
            for line in np.arange(0.5, tasks - 1):
                matrix.axhline(line, color="white", linewidth=1.5)
                matrix.axvline(line, color="white", linewidth=1.5)
            tidy(forgotten)
            self.forgotten = forgotten.bar(range(tasks), np.zeros(tasks), color=LOST, width=0.94)
            forgotten.set_xlim(-0.5, max(tasks, 1) - 0.5)
            forgotten.set_xticks(range(tasks), [str(task + 1) for task in range(tasks)])
            forgotten.tick_params(axis="x", length=0)
            forgotten.set_xlabel("accuracy (%) and points forgotten, by task")
            forgotten.set_ylabel("forgotten")
            figure.align_ylabels([matrix, forgotten])
        self.matrix_axes, self.forgotten_axes = matrix, forgotten

    def show(self, now: Snapshot) -> None:
        """Update every artist, if anything is new."""
        new = (now.tasks, now.history[-1:], len(now.history), now.accuracy.tobytes())
        if new == self._shown:
            return
        if len(now.tasks) != len(self.numbers):
            self._prepare(len(now.tasks))
        self._shown = new
        self._show_history(now.history)
        self._show_accuracy(now.accuracy)
        self.history.draw_everything()
        self.matrix.draw_everything()

    def png(self) -> bytes:
        """Both figures beside each other as they are now."""
        return beside([self.history.figure, self.matrix.figure])

    def _show_history(self, history: tuple[EpochRecord, ...]) -> None:
        tasks = np.array([epoch.task for epoch in history], dtype=int)
        starts = np.flatnonzero(np.diff(tasks, prepend=-1))  # of the tasks, as indices of epochs
        gaps = starts[1:]  # nothing was measured between the end of a task and the beginning of the next

        def series(name: str) -> np.ndarray:
            return np.array([np.nan if getattr(e, name) is None else getattr(e, name) for e in history], dtype=float)

        x = np.insert(np.arange(1.0, len(history) + 1), gaps, np.nan)
        for line, name in ((self.train, "train_loss"), (self.valid, "valid_loss"), (self.rate, "lr")):
            line.set_data(x, np.insert(series(name), gaps, np.nan))
            line.set_marker("o" if len(history) == 1 else "")
        ends = np.append(starts[1:], len(history))
        names = ["all"] if len(starts) == 1 and tasks[0] > 0 else [str(tasks[start] + 1) for start in starts]
        with style():
            for ax, border in zip((self.loss_axes, self.rate_axes), self._borders, strict=True):
                border.set_data(np.repeat(gaps + 0.5, 3), np.tile([0.0, 1.0, np.nan], len(gaps)))
                ax.set_xticks((starts + ends + 1) / 2, names)
                ax.set_xlim(0.0, max(len(history) + 1.0, 2.0))
            _fit(self.loss_axes, np.concatenate([series("train_loss"), series("valid_loss")]), log_from=30)
            _fit(self.rate_axes, series("lr"), log_from=4)
        self._validation.set_visible(bool(np.isfinite(series("valid_loss")).any()))

    def _show_accuracy(self, accuracy: np.ndarray) -> None:
        if not len(accuracy):
            return
        colours = cell_colours(accuracy)
        colours[np.isnan(accuracy) & np.tri(len(accuracy), dtype=bool)] = mix(GRID, 0.35)  # still to be measured
        self.cells.set_data(colours)
        for row, texts in enumerate(self.numbers):
            for column, text in enumerate(texts):
                value = accuracy[row, column]
                text.set_text("" if np.isnan(value) else f"{value:.1f}")
                light = contrast((1, 1, 1), colours[row, column]) > contrast((0, 0, 0), colours[row, column])
                text.set_color(CELL_LIGHT if light else CELL_INK)
        lost = forgotten_so_far(accuracy)
        for bar, height in zip(self.forgotten, lost, strict=True):
            bar.set_height(0.0 if np.isnan(height) else height)
        finite = np.append(lost[np.isfinite(lost)], 0.0)
        self.forgotten_axes.set_ylim(min(1.15 * finite.min(), 0.0), max(1.15 * finite.max(), 5.0))
        mean = metrics.forgetting(accuracy)
        title = measures_text(accuracy) + ("" if np.isnan(mean) else f", forgetting {mean:.1f}")
        self.matrix_axes.set_title(title, loc="left", color=INK, fontsize=10)
        self.matrix.alt = f"{title}. {_in_words(accuracy)}"


def _in_words(accuracy: np.ndarray) -> str:
    """The accuracy matrix for those who do not see it."""
    rows = [(task + 1, row[np.isfinite(row)]) for task, row in enumerate(accuracy)]
    said = [f"after task {task}: {', '.join(f'{value:.1f}' for value in row)}" for task, row in rows if len(row)]
    return f"Accuracy of tasks 1, 2, … in percent {'; '.join(said)}." if said else "No task is learned yet."


def forgotten_so_far(accuracy: np.ndarray) -> np.ndarray:
    """(T,) points that each task has lost since it was known best; NaN for those with nothing to compare with."""
    lost = metrics.forgetting_per_task(accuracy)
    return np.concatenate([lost, np.full(len(accuracy) - len(lost), np.nan)])


def settings_of(run: Run | None, folder: Path) -> tuple[RunSettings, Path]:
    """The settings of the run in ``folder`` and the folder of all runs, to go on with it.

    Raises:
        RunFolderError: there is no record, it is no run on a benchmark, or it does not lie where such a run does.
    """
    if run is None:
        raise RunFolderError(f"no run lies in {folder} to go on with")
    try:
        settings = RunSettings.from_dict(run.config)
    except UserFileError as error:
        raise RunFolderError(str(error)) from error
    except (NesskitError, KeyError, TypeError) as error:
        raise RunFolderError(
            "this run was made by fit() or by another version of nesskit: call what made it again to go on"
        ) from error
    runs = folder.resolve().parent.parent.parent
    if run_folder(settings, runs) != folder.resolve():
        expected = "/".join(run_folder(settings, "…").parts)
        raise RunFolderError(f"this run was moved: to go on with it, put it back to {expected}")
    return settings, runs


def is_worked_on(folder: Path) -> bool:
    """Whether a process holds the lock of the run in ``folder``, or may do so, as far as we are allowed to see."""
    if not (folder / ".lock").exists():
        return False
    try:
        with filelock.FileLock(folder / ".lock", timeout=0):
            return False
    except OSError:  # filelock.Timeout is one
        return True


def time_left(seconds: float) -> str:
    """``about 40 s``, ``about 12 min`` or ``about 3 h 20 min``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {minutes} min" if minutes < 90 else f"about {minutes // 60} h {minutes % 60} min"


@dataclass(frozen=True)
class _Stamp:
    inode: int
    size: int
    time: int


def _stamp(path: Path) -> _Stamp | None:
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _Stamp(found.st_ino, found.st_size, found.st_mtime_ns)


def _tasks_done(accuracy: np.ndarray) -> int:
    return len(metrics.final_accuracy(accuracy)) if len(accuracy) else 0


def _device_of(run: Run | None) -> str:
    """``cpu`` of ``cpu (x86_64)``."""
    return str(run.environment.get("device", "auto") if run else "auto").partition(" ")[0]


def _fit(ax: Any, values: np.ndarray, log_from: float) -> None:
    """Limits around ``values``, on a logarithmic axis if the largest is ``log_from`` times the smallest."""
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    if low > 0 and high > log_from * low:
        if ax.get_yscale() != "log":
            plain_log_scale(ax)
        ax.set_ylim(low / 1.3, high * 1.3)
        return
    if ax.get_yscale() != "linear":
        ax.set_yscale("linear")
    ax.set_ylim(0.0, 1.08 * high or 1.0)
    ax.tick_params(axis="y", labelcolor=MUTED)
