"""Tensors that single tasks compute with.

They belong to the model and not to the method that learned them, so that whoever is given the model, a copy of it or
its ``state_dict`` gets the same answers.
"""

from __future__ import annotations

import io
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class TaskTensors(nn.Module):
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
            # Not persistent: keys of a state say what network it is. The values are in the extra state below.
            own = tensor.detach().clone(memory_format=torch.contiguous_format)
            self.register_buffer(f"{name}{number}", own, persistent=False)

    def _kept(self, number: int) -> tuple[Tensor, ...]:
        return tuple(self.get_buffer(f"{name}{number}") for name in self.names)

    def clear(self) -> None:
        """No task has any."""
        self.places.clear()
        self._buffers.clear()
        self._non_persistent_buffers_set.clear()

    def _packed(self, tensors: tuple[Tensor, ...]) -> Tensor:
        """One tensor that holds them all."""
        return torch.cat(tensors)

    def _unpacked(self, packed: Tensor) -> tuple[Tensor, ...]:
        """The tensors that :meth:`_packed` made one of."""
        return (packed,)

    def get_extra_state(self) -> Tensor:
        """Everything, as one tensor of bytes; empty where there is nothing. What is equal has equal bytes."""
        if not self.places:
            return torch.empty(0, dtype=torch.uint8)
        # Fresh strings, each once: a pickle notes which objects are the same.
        content = {
            f"{task} {number} {place}": self._packed(self._kept(number)).cpu()
            for number, (task, place) in enumerate(self.places)
        }
        stream = io.BytesIO()
        torch.save(content, stream)
        return torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore it."""
        self.clear()
        if not len(state):
            return
        for key, packed in torch.load(io.BytesIO(state.cpu().numpy().tobytes()), weights_only=True).items():
            task, _, place = key.split(" ", 2)
            self._keep(int(task), place, self._unpacked(packed))

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        """As usual, but a state of a model that knew of no such tensors is whole without."""
        super()._load_from_state_dict(*arguments, **named)
        prefix, missing = arguments[1], arguments[4]
        if f"{prefix}_extra_state" in missing:
            missing.remove(f"{prefix}_extra_state")
