"""The examples of a task on the device that computes, handed out in batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from nesskit.streams.base import Examples, Normalisation, Task, normalise


class Batch(NamedTuple):
    """Normalised inputs ``x`` (n, …) and labels ``y`` (n,) of task number ``task``."""

    x: Tensor
    y: Tensor
    task: int


class TaskData:
    """One task whose raw examples (uint8 where they are) lie on ``device``; batches are normalised when they are made.

    On the CPU nothing is copied. ``index`` is the task's place in the stream, 0 for the first.
    """

    def __init__(self, task: Task, index: int, device: torch.device) -> None:
        self.index = index
        self.normalisation: Normalisation | None = task.normalisation
        self.train, self.valid, self.test = (
            Examples(part.x.to(device), part.y.to(device)) for part in (task.train, task.valid, task.test)
        )

    def batch(self, examples: Examples, rows: Tensor | slice) -> Batch:
        """The batch of these rows of ``examples``."""
        return Batch(normalise(examples.x[rows], self.normalisation), examples.y[rows], self.index)

    def batches(self, examples: Examples, size: int) -> Iterator[Batch]:
        """All of ``examples`` in their own order, ``size`` at a time."""
        for start in range(0, len(examples.y), size):
            yield self.batch(examples, slice(start, start + size))
