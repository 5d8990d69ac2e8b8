"""What a run reports while it goes on. Progress bars, logs and monitors only listen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Event:
    """Base of all events."""

    def to_dict(self) -> dict[str, Any]:
        """The fields, and the kind of event under ``event``."""
        return {"event": type(self).__name__, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class RunStarted(Event):
    """The run is about to train; ``state`` says whether from the start or from a checkpoint, or that all is done."""

    state: Literal["new", "continued", "finished"]
    tasks: int
    tasks_done: int
    epochs_done: int
    folder: str | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskStarted(Event):
    """A task (for joint training: all of them; ``task`` is then the last) is about to be learned."""

    task: int
    name: str
    epochs: int


@dataclass(frozen=True)
class EpochFinished(Event):
    """An epoch was trained and validated (``valid_*`` are None without validation data; accuracies in percent)."""

    task: int
    epoch: int
    epochs: int
    train_loss: float
    valid_loss: float | None
    valid_accuracy: float | None
    lr: float
    seconds: float


@dataclass(frozen=True)
class TaskFinished(Event):
    """A task was learned; ``accuracy`` (percent) is its row of the accuracy matrix, up to the task itself."""

    task: int
    name: str
    accuracy: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class RunStopped(Event):
    """The run ended: all tasks learned, or stopped before, in which case ``reason`` says why."""

    finished: bool
    reason: str
    average_accuracy: float
    backward_transfer: float


Listener = Callable[[Event], None]
