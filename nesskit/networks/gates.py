"""Which units a task uses, and by how much: one gate a unit, from 0 to 1 (Serrà et al., HAT, ICML 2018)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from nesskit.networks.task_tensors import TaskTensors
from nesskit.networks.units import gated, units_of


class TaskGates(TaskTensors):
    """The gates of all tasks, by task and name of the units; a task without any uses the network as it is."""

    names = ("gate",)

    def keep(self, task: int, gates: Mapping[str, Tensor]) -> None:
        """From now on ``task`` has these ``gates``: name of the units → (units,)."""
        for name, gate in gates.items():
            self._keep(task, name, (gate,))

    def of(self, task: int) -> dict[str, Tensor]:
        """Name of the units → (units,), empty for a task without gates."""
        return {name: self._kept(number)[0] for number, (owner, name) in enumerate(self.places) if owner == task}

    @contextmanager
    def at_work(self, backbone: nn.Module, task: int) -> Iterator[None]:
        """Inside, ``backbone`` computes with the gates of ``task``."""
        gates = self.of(task)
        with gated(backbone, units_of(backbone) if gates else (), gates):
            yield
