"""Tensors that single tasks compute with, under the same names at each place.

They belong to the model and not to the method that learned them, so that whoever is given the model, a copy of it or
its ``state_dict`` gets the same answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from nesskit.networks.packed_state import PackedState


class TaskTensors(PackedState):
    """For tasks and places in the backbone, tensors under the same ``names`` each; nothing at first."""

    names: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        super().__init__()
        self.places: list[tuple[int, str]] = []  # (task, place) of each set of buffers

    def _keep(self, task: int, place: str, tensors: tuple[Tensor, ...]) -> None:
        """From now on ``task`` has these at ``place``, too."""
        number = len(self.places)
        self.places.append((task, place))
        for name, tensor in zip(self.names, tensors, strict=True):
            self.hold(f"{name}{number}", tensor)

    def _kept(self, number: int) -> tuple[Tensor, ...]:
        return tuple(self.get_buffer(f"{name}{number}") for name in self.names)

    def clear(self) -> None:
        """No task has any."""
        super().clear()
        self.places.clear()

    def _packed(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """One tensor that holds them all."""
        return torch.cat(tensors)

    def _unpacked(self, packed: Tensor) -> tuple[Tensor, ...]:
        """The tensors that :meth:`_packed` made one of."""
        return (packed,)

    def content(self) -> dict[str, Tensor]:
        """Task, number and place → the tensors there, as one."""
        return {
            f"{task} {number} {place}": self._packed(self._kept(number))
            for number, (task, place) in enumerate(self.places)
        }

    def restore(self, content: Mapping[str, Tensor]) -> None:
        """Keep all of them again."""
        for key, packed in content.items():
            task, _, place = key.split(" ", 2)
            self._keep(int(task), place, self._unpacked(packed))
