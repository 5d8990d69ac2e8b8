"""A run in memory: what was asked for, what came out of it, and what it depended on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nesskit.runs import metrics
from nesskit.spectra.profile import LayerProfile

FORMAT = 2  # of a run folder's files; raised when an older nesskit could not read them


INTERRUPTED = "interrupted from the keyboard"  # the reason of such a stop


# What of a method's memory one task uses and no other, by the names that methods give it.
PRIVATE = ("private parts", "scale matrices", "gates")
FLOAT32 = 4  # bytes of a number


Status = Literal["running", "stopped", "failed", "finished"]


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of the history; ``valid_*`` are None without validation data, ``valid_accuracy`` is in percent."""

    task: int
    epoch: int
    train_loss: float
    valid_loss: float | None
    valid_accuracy: float | None
    lr: float


@dataclass
class Run:
    """The result of a run, complete or as far as it got.

    Attributes:
        accuracy: (T, T) percent; ``accuracy[t, i]`` is task i's test accuracy after task t, NaN where not measured.
        valid_accuracy: the same on validation data; all NaN without.
        named_accuracy: the same as ``accuracy`` by the same weights, if the task's name is known; all NaN where
            ``accuracy`` is just that (``head="task"``).
        config: the settings, as plain values.
        environment: versions, device, threads, commit.
        data: SHA-256 of every data source, or of every task.
        network: SHA-256 of the network (``architecture``) and of its weights at the start (``first_weights``) and when
            it was left (``last_weights``); empty if the run was never written, or by an older nesskit.
        tasks: names of the tasks.
        history: one record an epoch.
        profiles: what each task did to each layer (empty for methods that do not measure it).
        memory: what the method kept at the end, in bytes by name.
        trained_numbers: for each task done, how many numbers were trained (in joint training one for all tasks); empty
            if an older nesskit recorded the run.
        kept_similarity: for each task done, how much of the similarity of the stream's held-out inputs is as it was
            before the first task, see :func:`nesskit.kept_similarity`; empty where the stream has none.
        seconds: time spent training and evaluating, over all processes that worked on the run.
        status: how it stands; ``status_reason`` says more.
        folder: where it lies, None if it was never written.
    """

    accuracy: np.ndarray
    valid_accuracy: np.ndarray
    named_accuracy: np.ndarray
    config: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, str]
    tasks: list[str]
    network: dict[str, str] = field(default_factory=dict)
    history: list[EpochRecord] = field(default_factory=list)
    profiles: list[LayerProfile] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    trained_numbers: list[int] = field(default_factory=list)
    kept_similarity: list[float] = field(default_factory=list)
    seconds: float = 0.0
    status: Status = "running"
    status_reason: str = ""
    folder: Path | None = None

    @classmethod
    def new(
        cls, config: Mapping[str, Any], environment: dict[str, Any], data: Mapping[str, str], tasks: list[str]
    ) -> Run:
        """A run in which nothing has been measured yet."""
        empty = np.full((len(tasks), len(tasks)), np.nan)
        return cls(empty, empty.copy(), empty.copy(), dict(config), environment, dict(data), tasks)

    @property
    def average_accuracy(self) -> float:
        """ACC in percent."""
        return metrics.average_accuracy(self.accuracy)

    @property
    def named_average_accuracy(self) -> float:
        """ACC in percent if the task's name is known, NaN where ACC is just that."""
        return metrics.average_accuracy(self.named_accuracy)

    @property
    def backward_transfer(self) -> float:
        """BWT in percent points; NaN for joint training and for a single task."""
        return metrics.backward_transfer(self.accuracy)

    @property
    def without_names(self) -> bool:
        """Whether tasks had no name when they were tested, see ``named_accuracy``."""
        return not np.isnan(self.named_accuracy).all()

    @property
    def epochs_per_task(self) -> list[int]:
        """How many epochs each task was trained for (in joint training all of them count for the last)."""
        trained = [epoch.task for epoch in self.history]
        return [trained.count(task) for task in range(len(self.tasks))]

    @property
    def finished(self) -> bool:
        """Whether every task of the stream was learned."""
        return self.status == "finished"

    @property
    def interrupted(self) -> bool:
        """Whether somebody stopped it from the keyboard."""
        return self.status == "stopped" and self.status_reason == INTERRUPTED

    @property
    def tasks_done(self) -> int:
        """How many tasks have been learned."""
        return len(metrics.final_accuracy(self.accuracy))

    @property
    def private_numbers(self) -> float:
        """How many numbers a task has for itself beside its head, in the mean over all tasks; NaN before the first."""
        if not self.tasks_done:
            return math.nan
        return sum(self.memory.get(name, 0) for name in PRIVATE) / FLOAT32 / self.tasks_done

    @property
    def finally_kept_similarity(self) -> float:
        """How much of the similarity before the first task is kept after the last one done; NaN if nobody measured."""
        return self.kept_similarity[-1] if self.kept_similarity else math.nan

    @property
    def mean_trained_numbers(self) -> float:
        """How many numbers a task trains, in the mean over all tasks done; NaN if nobody counted."""
        return sum(self.trained_numbers) / len(self.trained_numbers) if self.trained_numbers else math.nan

    def summary(self) -> dict[str, Any]:
        """The result in one JSON object: ACC, BWT, accuracy matrix, seconds, folder (null where there is none)."""
        return {
            "average_accuracy": null_nan(self.average_accuracy),
            "backward_transfer": null_nan(self.backward_transfer),
            **({"named_average_accuracy": null_nan(self.named_average_accuracy)} if self.without_names else {}),
            **({"kept_similarity": null_nan(self.kept_similarity)} if self.kept_similarity else {}),
            "accuracy": null_nan(self.accuracy.tolist()),
            "seconds": round(self.seconds, 3),
            "run_dir": None if self.folder is None else str(self.folder),
            "status": self.status,
        }

    def results(self) -> dict[str, Any]:
        """What training produced, as plain values (without profiles)."""
        return {
            "accuracy": null_nan(self.accuracy.tolist()),
            "valid_accuracy": null_nan(self.valid_accuracy.tolist()),
            **({"named_accuracy": null_nan(self.named_accuracy.tolist())} if self.without_names else {}),
            "history": [asdict(epoch) for epoch in self.history],
            "memory": self.memory,
            "trained_numbers": list(self.trained_numbers),
            "kept_similarity": null_nan(self.kept_similarity),
            "seconds": self.seconds,
        }

    def restore_results(self, results: Mapping[str, Any]) -> None:
        """Take over what :meth:`results` was taken of."""
        self.accuracy = np.array(results["accuracy"], dtype=np.float64)
        self.valid_accuracy = np.array(results["valid_accuracy"], dtype=np.float64)
        if "named_accuracy" in results:
            self.named_accuracy = np.array(results["named_accuracy"], dtype=np.float64)
        self.history = [EpochRecord(**epoch) for epoch in results["history"]]
        self.memory = dict(results["memory"])
        self.trained_numbers = list(results.get("trained_numbers", ()))
        self.kept_similarity = [math.nan if kept is None else kept for kept in results.get("kept_similarity", ())]
        self.seconds = results["seconds"]

    def to_dict(self) -> dict[str, Any]:
        """The record of the run as plain values."""
        return {
            "format": FORMAT,
            "status": self.status,
            "status_reason": self.status_reason,
            "config": self.config,
            "environment": self.environment,
            "data": self.data,
            "network": self.network,
            "tasks": self.tasks,
            "average_accuracy": null_nan(self.average_accuracy),
            "backward_transfer": null_nan(self.backward_transfer),
            **self.results(),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Run:
        """The run that ``to_dict`` was taken of (without its profiles)."""
        run = cls.new(record["config"], dict(record["environment"]), record["data"], list(record["tasks"]))
        run.network = dict(record.get("network", {}))
        run.restore_results(record)
        run.status, run.status_reason = record["status"], record["status_reason"]
        return run


def null_nan(value: Any) -> Any:
    """NaN has no place in JSON: None instead, in nested lists and dicts too."""
    if isinstance(value, float) and np.isnan(value):
        return None
    if isinstance(value, list | tuple):
        return [null_nan(item) for item in value]
    if isinstance(value, dict):
        return {key: null_nan(item) for key, item in value.items()}
    return value
