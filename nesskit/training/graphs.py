"""CUDA graphs: on a GPU a training step is recorded once and replayed.

A step of these networks is some two hundred small operations, and it takes longer to ask for them than to do them.
Recorded as a graph they are asked for at once. The numbers stay what they were: a replay does the same operations on
the same memory, and dropout goes on with the generator's own sequence.

A step can be replayed if it does the same whatever the data; a method says so (``Method.replayable``). The first steps
of a kind are taken one operation at a time, as libraries set themselves up then, and the last of these is watched: if
the CPU waits for the GPU in it, to look at a number, say, the stage goes on in that way. So it does with steps that are
rare, such as those on the smaller last batch of an epoch: recording takes as long as some twenty of them.
"""

from __future__ import annotations

import os
import warnings
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from nesskit.errors import TrainingError
from nesskit.streams.batches import Batch, TaskData
from nesskit.training.optim import SAM
from nesskit.training.steps import Steps

SWITCH = "NESSKIT_CUDA_GRAPHS"  # of the machine, not of the run: the numbers are the same
EAGER_STEPS = 3  # of a kind in one epoch before it is recorded; torch recommends as many

Kind = tuple[int, int]  # steps of one kind are alike: of one task, with so many samples


class GraphWarning(UserWarning):
    """Steps that could have been replayed are taken one operation at a time."""


def make_steps(
    step: Callable[[Batch], Tensor], replayable: bool, optimizer: torch.optim.Optimizer, device: torch.device
) -> Steps:
    """The steps of a stage: replayed where that is possible and ``NESSKIT_CUDA_GRAPHS`` is not off."""
    wanted = os.environ.get(SWITCH, "on") != "off"
    if device.type == "cuda" and wanted and replayable and keeps_no_count(optimizer):
        return CUDAGraphSteps(step, optimizer, device)
    return Steps(step, optimizer, device)


def keeps_no_count(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer counts no steps in Python, as Adam does: SGD, and SAM around it."""
    return type(optimizer.base if isinstance(optimizer, SAM) else optimizer) is torch.optim.SGD


class Graph(Protocol):
    """A recorded step."""

    def replay(self) -> None:
        """Take it."""


class Recorded(NamedTuple):
    """A step that was recorded, and the memory from which it reads the rows of its batch."""

    graph: Graph
    rows: Tensor


class ReplayedSteps(Steps):
    """Training steps of which each kind is recorded once; again after a change of the learning rate.

    Attributes:
        recorded: what was recorded at this learning rate.
        eager: whether no step is recorded, since one cannot be.
    """

    def __init__(self, step: Callable[[Batch], Tensor], optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        super().__init__(step, optimizer, device)
        self.recorded: dict[Kind, Recorded] = {}
        self.eager = False
        self.taken: Counter[Kind] = Counter()  # in this epoch, one operation at a time
        self.frequent: set[Kind] = set()
        self.lr: float | None = None

    def begin_epoch(self, lr: float) -> None:
        """Take the steps of an epoch at this learning rate, which is a number in what was recorded."""
        super().begin_epoch(lr)
        self.taken.clear()
        if lr != self.lr:
            self.recorded.clear()
            self.optimizer.zero_grad()  # gradients lie in the memory of what was recorded
            self.lr = lr

    def take(self, data: TaskData, rows: Tensor) -> None:
        """One step: recorded before, recorded now, or one operation at a time."""
        kind = (data.index, len(rows))
        if self.eager or kind not in self.frequent:
            self.taken[kind] += 1
            last = self.taken[kind] == EAGER_STEPS and not self.eager
            self._take_eagerly(data, rows, watched=last)
            if last:
                self.frequent.add(kind)
            return
        if kind not in self.recorded:
            self.recorded[kind] = self._record(data, rows.clone())
        graph, own_rows = self.recorded[kind]
        own_rows.copy_(rows)
        graph.replay()

    @abstractmethod
    def _take_eagerly(self, data: TaskData, rows: Tensor, watched: bool) -> None:
        """One step, one operation at a time; if it is ``watched`` and cannot be recorded, set ``eager``."""

    @abstractmethod
    def _record(self, data: TaskData, rows: Tensor) -> Recorded:
        """Record a step without taking it, which reads the rows of its batch from ``rows``."""


class CUDAGraphSteps(ReplayedSteps):
    """Training steps on a GPU, recorded as CUDA graphs."""

    def __init__(self, step: Callable[[Batch], Tensor], optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        super().__init__(step, optimizer, device)
        self.stream = torch.cuda.Stream(device)
        self.memory = torch.cuda.graph_pool_handle()

    def _take_eagerly(self, data: TaskData, rows: Tensor, watched: bool) -> None:
        """On the stream on which steps will be recorded, as torch asks for."""
        here = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream), watching(watched) as waits:
            Steps.take(self, data, rows)
        here.wait_stream(self.stream)
        if waits:
            self.eager = True
            warnings.warn(
                "a training step waits for the GPU, to look at a number, say: it cannot be replayed, so all steps are "
                "taken one operation at a time",
                GraphWarning,
                stacklevel=2,
            )

    def _record(self, data: TaskData, rows: Tensor) -> Recorded:
        """As a CUDA graph.

        Raises:
            TrainingError: it cannot be recorded.
        """
        if not self.recorded:
            # One for all graphs at a time: nothing in it is needed from one step to the next.
            self.memory = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may go on with work of their own meanwhile.
            with torch.cuda.graph(graph, self.memory, self.stream, capture_error_mode="thread_local"):
                Steps.take(self, data, rows)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().split("\n")[0]
            raise TrainingError(
                f"the training step cannot be recorded as a CUDA graph ({reason}). What is saved is kept: the same "
                f"command with {SWITCH}=off in the environment goes on, one operation at a time"
            ) from error
        return Recorded(graph, rows)


@contextmanager
def watching(watched: bool) -> Iterator[list[str]]:
    """Notes, if ``watched``, every operation inside that the CPU waits for; other warnings are passed on."""
    found: list[str] = []
    if not watched:
        yield found
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in caught:
        text = str(warning.message)
        if "called a synchronizing CUDA operation" in text:
            found.append(text)
        elif "prototype feature" not in text:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
