"""Training examples of old tasks, kept as they are: for methods that remember data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from nesskit.streams.base import Normalisation, normalise
from nesskit.streams.batches import TaskData
from nesskit.streams.fields import Inputs, as_stored, in_memory, joined, packed_inputs


class Remembered(NamedTuple):
    """Examples of one task: raw inputs ``x`` (n, …), labels ``y`` (n,), and how the inputs are normalised."""

    x: Inputs
    y: Tensor
    normalisation: Normalisation | None

    @classmethod
    def of(cls, data: TaskData, rows: Tensor) -> Self:
        """A copy of these ``rows`` (n,) of the task's training examples."""
        rows = rows.to(data.train.y.device)
        return cls(data.train.x[rows].clone(), data.train.y[rows].clone(), data.normalisation)

    def rows(self, rows: Tensor) -> Self:
        """Only these ``rows`` (n,)."""
        rows = rows.to(self.y.device)
        return self._replace(x=self.x[rows], y=self.y[rows])


class Replay(NamedTuple):
    """Examples of several tasks: normalised inputs ``x`` (n, …), labels ``y`` (n,) and the ``task`` (n,) of each."""

    x: Inputs
    y: Tensor
    task: Tensor

    @classmethod
    def of(cls, memory: Sequence[Remembered]) -> Self:
        """All that is remembered of the tasks 0, 1, …, in this order."""
        x = joined([normalise(old.x, old.normalisation) for old in memory])
        y = torch.cat([old.y for old in memory])
        counts = torch.tensor([len(old.y) for old in memory], device=y.device)
        return cls(x, y, torch.repeat_interleave(torch.arange(len(memory), device=y.device), counts))

    def draw(self, count: int) -> Self:
        """``count`` examples without replacement, by the generator of the device; all if there are no more."""
        rows = torch.rand(len(self.y), device=self.y.device).argsort()[:count]
        return type(self)(self.x[rows], self.y[rows], self.task[rows])


def reservoir(memory: Sequence[Remembered], seen: int, data: TaskData, capacity: int) -> list[Remembered]:
    """What a reservoir of ``capacity`` examples holds of the tasks 0, 1, … once it has seen those of ``data``, too.

    As after reservoir sampling one by one (Vitter, Random sampling with a reservoir, 1985) every example seen is held
    with the same probability, and every set of ``capacity`` of them is as likely as any other.

    Args:
        memory: what it held before of the ``seen`` examples that it had seen.
        seen: their number.
        data: the next task.
        capacity: how many examples it holds, at most.
    """
    chosen = torch.randperm(seen + len(data.train.y))[:capacity]  # had all been kept, in the order in which they came
    new = chosen[chosen >= seen] - seen
    held = sum(len(old.y) for old in memory)
    stay = torch.randperm(held)[: len(chosen) - len(new)].sort().values
    kept, start = [], 0
    for old in memory:
        end = start + len(old.y)
        kept.append(old.rows(stay[(stay >= start) & (stay < end)] - start))
        start = end
    return [*kept, Remembered.of(data, new)]


def packed(memory: Iterable[Remembered]) -> list[Any]:
    """The memory as tensors and plain values, for a checkpoint."""
    return [(packed_inputs(x), y, n and [list(n.mean), list(n.std)]) for x, y, n in memory]


def unpacked(state: Iterable[Any], device: torch.device) -> list[Remembered]:
    """What :func:`packed` was made of, on ``device``."""
    return [
        Remembered(in_memory(as_stored(x)).to(device), y.to(device), n and Normalisation(tuple(n[0]), tuple(n[1])))
        for x, y, n in state
    ]


def size_of(memory: Iterable[Remembered]) -> int:
    """Bytes of inputs and labels."""
    return sum(x.nbytes + y.nbytes for x, y, _ in memory)
