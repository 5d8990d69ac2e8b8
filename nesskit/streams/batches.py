"""The examples of a task on the device that computes, handed out in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from nesskit.streams.base import Examples, Normalisation, Task, channels_of, normalise
from nesskit.streams.fields import Inputs, Stored, joined

Rows = TypeVar("Rows", bound=Stored)
# Batches within which sentences are sorted; were it all of them, epochs would have nearly the same batches.
LOOKAHEAD = 16


class Batch(NamedTuple):
    """Normalised inputs ``x`` (n, …) and labels ``y`` (n,) of task number ``task``."""

    x: Inputs
    y: Tensor
    task: int


def pieces(rows: Rows, size: int, company: bool) -> Sequence[Rows]:
    """``rows`` in pieces of ``size``; with ``company`` a single row that is left over joins the last piece.

    BatchNorm wants it so: there are no statistics of a batch of one.
    """
    parts = cast("Sequence[Rows]", rows.split(size))
    if company and size > 1 and len(parts) > 1 and len(parts[-1]) == 1:
        return [*parts[:-2], cast("Rows", rows[-size - 1 :])]
    return parts


def alike_in_length(order: Tensor, lengths: Tensor, size: int) -> Tensor:
    """``order`` (n,), with rows of like length beside each other within every ``LOOKAHEAD`` batches of ``size``.

    Args:
        order: a permutation of the rows; those of equal length stay in this order.
        lengths: (n,), of each row.
        size: of a batch.
    """
    near = order.split(LOOKAHEAD * size)
    return torch.cat([rows[lengths[rows].argsort(stable=True)] for rows in near])


class TaskData:
    """One task whose raw examples (uint8 where they are) lie on ``device``; batches are normalised when they are made.

    On the CPU nothing is copied; what is not in memory is read when a batch of it is made. ``index`` is the task's
    place in the stream, 0 for the first; ``company`` says whether no batch may be of one example, see :func:`pieces`.
    Sentences share a batch with others of like length, so that little padding is computed with; not if the network
    looks at batches as a whole, which is what ``company`` is for.
    Labels count from ``first_label`` on, which is not 0 where classes are counted through the stream.
    """

    def __init__(
        self, task: Task, index: int, device: torch.device, company: bool = False, first_label: int = 0
    ) -> None:
        self.index, self.company = index, company
        self.normalisation: Normalisation | None = task.normalisation
        self.train, self.valid, self.test = (
            Examples(part.x.to(device), part.y.to(device) + first_label) for part in (task.train, task.valid, task.test)
        )
        self._channels = channels_of(task.normalisation, self.train.x)

    @property
    def alike(self) -> bool:
        """Whether batches of as many rows are made alike, whatever these are; not if they are trimmed or read."""
        return isinstance(self.train.x, Tensor)

    def shuffled(self, size: int, generator: torch.Generator) -> Sequence[Tensor]:
        """Every row of the training examples once, in batches of ``size`` rows, in random order."""
        order, lengths = torch.randperm(len(self.train.y), generator=generator), self._lengths(self.train)
        if lengths is not None:
            order = alike_in_length(order, lengths, size)
        batches = pieces(order.to(self.train.y.device), size, self.company)
        if lengths is None:
            return batches
        return [batches[number] for number in torch.randperm(len(batches), generator=generator).tolist()]

    def shortest_first(self, examples: Examples) -> Tensor | None:
        """The rows of ``examples`` (n,) in the order of their length; None where they have none."""
        lengths = self._lengths(examples)
        return None if lengths is None else lengths.argsort(stable=True)

    def _lengths(self, examples: Examples) -> Tensor | None:
        """How many tokens each sentence has, on the CPU; None for what is no sentence."""
        lengths = None if self.company or isinstance(examples.x, Tensor) else examples.x.lengths
        return None if lengths is None else lengths.cpu()

    def batch(self, examples: Examples, rows: Tensor | slice) -> Batch:
        """The batch of these rows of ``examples``."""
        return Batch(normalise(examples.x[rows], self._channels), examples.y[rows], self.index)

    def batches(self, examples: Examples, size: int, order: Tensor | None = None) -> Iterator[Batch]:
        """All of ``examples``, ``size`` at a time, in their own order or in ``order``, a permutation of their rows."""
        if order is not None:
            for rows in pieces(order.to(examples.y.device), size, self.company):
                yield self.batch(examples, rows)
            return
        start = 0
        for part in pieces(examples.y, size, self.company):
            if len(part):
                yield self.batch(examples, slice(start, start + len(part)))
            start += len(part)


class MixedData(TaskData):
    """The training examples of several tasks as if they were one: batches hold examples of all of them.

    For tasks with one head over all classes, where a batch need not be of one task. It takes the place of the last.
    """

    def __init__(self, tasks: Sequence[TaskData]) -> None:
        last = tasks[-1]
        self.tasks, self.index, self.company = tasks, last.index, last.company
        self.train = Examples(last.train.x[:0], torch.cat([task.train.y for task in tasks]))

    @property
    def alike(self) -> bool:
        """How many examples of which task a batch has is drawn."""
        return False

    def _lengths(self, examples: Examples) -> Tensor | None:
        parts = [lengths for task in self.tasks if (lengths := task._lengths(task.train)) is not None]
        return torch.cat(parts) if len(parts) == len(self.tasks) else None

    def batch(self, examples: Examples, rows: Tensor | slice) -> Batch:
        """The batch of these training examples, counted through all tasks."""
        assert isinstance(rows, Tensor)
        parts, first = [], 0
        for task in self.tasks:
            own = rows[(rows >= first) & (rows < first + len(task.train.y))] - first
            parts += [task.batch(task.train, own)] if len(own) else []
            first += len(task.train.y)
        return Batch(joined([part.x for part in parts]), torch.cat([part.y for part in parts]), self.index)
