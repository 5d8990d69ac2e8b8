"""Listeners that show a run to a person: a bar where there is a terminal or a notebook, plain lines elsewhere."""

from __future__ import annotations

import sys
from typing import TextIO

from tqdm.auto import tqdm

from nesskit.events import EpochFinished, Event, Listener, RunStarted, RunStopped, TaskFinished, TaskStarted


class ProgressBar:
    """One bar for the whole run, advanced by epochs; tqdm estimates the time that is left."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.bar: tqdm | None = None
        self.epochs_of_earlier_tasks = 0

    def __call__(self, event: Event) -> None:
        """Follow one event."""
        if isinstance(event, RunStarted):
            self.stages = 1
            self.start = event
        elif isinstance(event, TaskStarted):
            self._begin(event)
        elif self.bar is None:
            return
        elif isinstance(event, EpochFinished):
            self.bar.update(self.epochs_of_earlier_tasks + event.epoch + 1 - self.bar.n)
            self.bar.set_postfix_str(f"task {event.task + 1}, loss {event.train_loss:.3f}")
        elif isinstance(event, TaskFinished):
            # A task may end before its last epoch (learning rate under its minimum).
            self.epochs_of_earlier_tasks += self.epochs
            self.bar.update(self.epochs_of_earlier_tasks - self.bar.n)
        elif isinstance(event, RunStopped):
            self.bar.close()
            self.bar = None

    def _begin(self, event: TaskStarted) -> None:
        self.epochs = event.epochs
        if self.bar is not None:
            return
        self.epochs_of_earlier_tasks = self.start.tasks_done * event.epochs
        # Joint training learns all tasks in one stage: the first to begin is then the last of the stream.
        joint = event.task > self.start.tasks_done
        total = event.epochs * (1 if joint else self.start.tasks)
        done = self.epochs_of_earlier_tasks + self.start.epochs_done
        self.bar = tqdm(total=total, initial=done, desc=self.label, unit="epoch", dynamic_ncols=True)


class PlainLines:
    """One line when a task has been learned, or only when the whole run has (``per_task=False``)."""

    def __init__(self, label: str, stream: TextIO | None = None, per_task: bool = True) -> None:
        self.label, self.stream, self.per_task = label, stream or sys.stdout, per_task

    def __call__(self, event: Event) -> None:
        """Follow one event."""
        if isinstance(event, RunStarted):
            self.tasks = event.tasks
        elif isinstance(event, TaskFinished) and self.per_task:
            new, mean = event.accuracy[-1], sum(event.accuracy) / len(event.accuracy)
            self._print(
                f"task {event.task + 1} of {self.tasks} ({event.name}) learned to {new:.1f} %, "
                f"mean so far {mean:.1f} %, {event.seconds:.1f} s"
            )
        elif isinstance(event, RunStopped) and event.finished and not self.per_task:
            self._print(f"ACC {event.average_accuracy:.2f} %, BWT {event.backward_transfer:+.2f} %")

    def _print(self, text: str) -> None:
        print(f"{self.label}: {text}", file=self.stream, flush=True)


def progress_listener(label: str, machine_readable: bool = False, per_task: bool = True) -> Listener:
    """A bar on a terminal or in a notebook, else plain lines (on stderr if stdout is kept for a machine)."""
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        return ProgressBar(label)
    return PlainLines(label, sys.stderr if machine_readable else sys.stdout, per_task)
