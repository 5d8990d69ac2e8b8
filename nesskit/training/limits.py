"""When a run stops early, and how often it is saved."""

from __future__ import annotations

from dataclasses import dataclass

from nesskit.runs.events import EpochFinished, Event, TaskFinished
from nesskit.settings.fields import check_types, require


@dataclass(frozen=True)
class Limits:
    """When to stop early, and how often to save; no part of a run's settings, so that a stopped run can go on later.

    Raises:
        SettingsError: a limit that makes no sense.
    """

    tasks: int | None = None
    """Stop after this many tasks."""
    minutes: float | None = None
    """Stop at the first epoch that ends after this time."""
    checkpoint_epochs: int = 10
    """Save the state after this many epochs, beside every end of a task."""

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "tasks", self.tasks is None or self.tasks >= 1, "at least 1")
        require(self, "minutes", self.minutes is None or self.minutes > 0, "above 0")
        require(self, "checkpoint_epochs", self.checkpoint_epochs >= 1, "at least 1")

    def reached_by(self, event: Event, seconds: float) -> str:
        """Why to stop after ``event``, ``seconds`` after the start; an empty string to go on."""
        if isinstance(event, TaskFinished) and self.tasks is not None and event.task + 1 >= self.tasks:
            return self.enough_tasks()
        late = self.minutes is not None and seconds > 60 * self.minutes
        if late and isinstance(event, EpochFinished | TaskFinished):
            return f"stopped after {self.minutes:g} minutes, as asked"
        return ""

    def enough_tasks(self) -> str:
        """The reason for a stop after ``tasks`` tasks."""
        return f"stopped after {self.tasks} tasks, as asked"
