"""Listeners that show a run to a person: a bar where there is a terminal or a notebook, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from tqdm.auto import tqdm

from nesskit.runs.events import EpochFinished, Event, Listener, RunStarted, RunStopped, TaskFinished, TaskStarted


class ProgressBar:
    """One bar for the whole run, advanced by epochs; tqdm estimates the time that is left."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.plan: Plan | None = None
        self.bar: tqdm | None = None

    def __call__(self, event: Event) -> None:
        """Follow one event."""
        if isinstance(event, RunStarted):
            self.plan = Plan(event)
        elif self.plan is None:
            return
        elif isinstance(event, RunStopped):
            if self.bar is not None:
                self.bar.close()
        else:
            self.plan.follow(event)
            self._show(event, self.plan)

    def _show(self, event: Event, plan: Plan) -> None:
        if self.bar is None:
            self.bar = tqdm(
                total=plan.total, initial=plan.done, desc=self.label, unit="epoch", dynamic_ncols=True, smoothing=0
            )
        self.bar.update(plan.done - self.bar.n)
        if isinstance(event, EpochFinished):
            self.bar.set_postfix_str(f"task {event.task + 1}, loss {event.train_loss:.3f}")


class PlainLines:
    """A line when a task has been learned, and at most one a minute in between.

    Args:
        label: what every line begins with.
        stream: where to print; stdout if not given.
        per_task: False for one line when the whole run has been done, and none before.
        pause: seconds between two lines about epochs.
    """

    def __init__(self, label: str, stream: TextIO | None = None, per_task: bool = True, pause: float = 60.0) -> None:
        self.label, self.stream, self.per_task, self.pause = label, stream or sys.stdout, per_task, pause
        self.plan: Plan | None = None
        self.printed = time.monotonic()

    def __call__(self, event: Event) -> None:
        """Follow one event."""
        if isinstance(event, RunStarted):
            self.plan = Plan(event)
        elif isinstance(event, RunStopped):
            if event.finished and not self.per_task:
                self._print(f"ACC {event.average_accuracy:.2f} %, BWT {event.backward_transfer:+.2f} %")
        elif self.plan is not None and self.per_task:
            self.plan.follow(event)
            self._follow(event, self.plan)

    def _follow(self, event: Event, plan: Plan) -> None:
        if isinstance(event, TaskFinished):
            new, mean = event.accuracy[-1], sum(event.accuracy) / len(event.accuracy)
            self._print(
                f"task {event.task + 1} of {plan.tasks} ({event.name}) learned to {new:.1f} %, "
                f"mean so far {mean:.1f} %, {event.seconds:.1f} s{plan.time_left()}"
            )
        elif isinstance(event, EpochFinished) and time.monotonic() - self.printed > self.pause:
            self._print(
                f"task {event.task + 1} of {plan.tasks}, epoch {event.epoch + 1} of {event.epochs}, "
                f"loss {event.train_loss:.3f}{plan.time_left()}"
            )

    def _print(self, text: str) -> None:
        self.printed = time.monotonic()
        print(f"{self.label}: {text}", file=self.stream, flush=True)


class Plan:
    """How many epochs a run has at most, how many are done, and how long the rest will take."""

    def __init__(self, start: RunStarted) -> None:
        self.start, self.tasks = start, start.tasks
        self.began, self.done_before = time.monotonic(), 0
        self.total = self.done = self.before_this_task = 0

    def follow(self, event: Event) -> None:
        """Take note of an event."""
        if isinstance(event, TaskStarted) and not self.total:
            # Joint training learns all tasks in one stage: the first to begin is then the last of the stream.
            joint = event.task > self.start.tasks_done
            self.total = event.epochs * (1 if joint else self.tasks)
            self.before_this_task = self.start.tasks_done * event.epochs
            self.done = self.done_before = self.before_this_task + self.start.epochs_done
        if isinstance(event, TaskStarted):
            self.epochs = event.epochs
        elif isinstance(event, EpochFinished):
            self.done = self.before_this_task + event.epoch + 1
        elif isinstance(event, TaskFinished):
            # A task may end before its last epoch, when the learning rate falls under its minimum.
            self.done = self.before_this_task = self.before_this_task + self.epochs

    def time_left(self) -> str:
        """``, about 12 min left``; empty at the end, and while it is less than a minute."""
        fresh = self.done - self.done_before
        seconds = (time.monotonic() - self.began) / fresh * (self.total - self.done) if fresh else 0.0
        return f", about {seconds / 60:.0f} min left" if seconds >= 60 else ""


def progress_listener(label: str, machine_readable: bool = False, per_task: bool = True) -> Listener:
    """A bar on a terminal or in a notebook, else plain lines (on stderr if stdout is kept for a machine)."""
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        return ProgressBar(label)
    return PlainLines(label, sys.stderr if machine_readable else sys.stdout, per_task)
