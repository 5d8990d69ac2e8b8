"""A module whose tensors travel as one entry of the model's state, however many there are."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class PackedState(nn.Module):
    """Tensors that come and go, beside a network whose keys stay what they are.

    Keys of a state say what network it is; what a task has for itself is no part of that. So these tensors are buffers
    that a state does not name, and all of them together are its extra state.
    """

    place: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("place", torch.empty(0), persistent=False)  # where the model is

    @abstractmethod
    def content(self) -> dict[str, Tensor]:
        """Every tensor by what it is; empty if there is none."""

    @abstractmethod
    def restore(self, content: Mapping[str, Tensor]) -> None:
        """Make an empty module what :meth:`content` was taken of."""

    def clear(self) -> None:
        """Let go of everything."""
        for name in [name for name in self._buffers if name != "place"]:
            delattr(self, name)

    def hold(self, name: str, tensor: Tensor) -> None:
        """Keep a copy of ``tensor`` where the model is, in place of what had this name before."""
        own = tensor.detach().to(self.place.device).clone(memory_format=torch.contiguous_format)
        self.register_buffer(name, own, persistent=False)

    def get_extra_state(self) -> Tensor:
        """Everything, as one tensor of bytes. What is equal has equal bytes."""
        # Fresh strings, each once: a pickle notes which objects are the same.
        content = {"".join(name): tensor.detach().cpu().clone() for name, tensor in self.content().items()}
        if not content:
            return torch.empty(0, dtype=torch.uint8)
        stream = io.BytesIO()
        torch.save(content, stream)
        return torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore it."""
        self.clear()
        if len(state):
            self.restore(torch.load(io.BytesIO(state.cpu().numpy().tobytes()), weights_only=True))

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        """As usual, but a state of a model that knew of no such tensors is whole without."""
        super()._load_from_state_dict(*arguments, **named)
        prefix, missing = arguments[1], arguments[4]
        if f"{prefix}_extra_state" in missing:
            missing.remove(f"{prefix}_extra_state")
