"""Weights that a task uses in its own way: W + Σ_j W B_j (Q_j - 1) B_jᵀ instead of W (Lin et al., TRGP, ICLR 2022).

They belong to the model and not to the method that learned them, so that whoever is given the model, a copy of it or
its ``state_dict`` gets the same answers.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Scaling = tuple[Tensor, Tensor]  # B (d, k) with orthonormal columns, Q (k, k)


def scaled(weight: Tensor, scalings: Iterable[Scaling]) -> Tensor:
    """W + Σ_j W B_j (Q_j - 1) B_jᵀ, in the shape and type of W.

    Args:
        weight: W, (d_out, d) or a convolution's weight.
        scalings: B_j (d, k_j), orthonormal columns, and Q_j (k_j, k_j).
    """
    result = weight
    for basis, scale in scalings:
        basis, scale = basis.to(weight.device), scale.to(weight.device)
        seen = weight.flatten(1).to(basis.dtype) @ basis
        result = result + ((seen @ scale - seen) @ basis.T).view_as(weight)
    return result.to(weight.dtype)


def call_with(backbone: nn.Module, weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """``backbone(x)``, computed with other ``weights`` (layer name → weight) in some of its layers."""
    names = {f"{layer}.weight".removeprefix("."): weight for layer, weight in weights.items()}
    features: Tensor = functional_call(backbone, names, (x,)) if names else backbone(x)
    return features


class ScaledWeights(nn.Module):
    """The scalings of all tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[tuple[int, str]] = []  # (task, layer) of each pair of buffers

    def keep(self, task: int, layer: str, scaling: Scaling) -> None:
        """From now on ``task`` uses the weight of ``layer`` (its name in the backbone) with this scaling, too."""
        number = len(self.places)
        self.places.append((task, layer))
        for name, tensor in zip(("basis", "scale"), scaling, strict=True):
            # Not persistent: keys of a state say what network it is. The values are in the extra state below.
            own = tensor.detach().clone(memory_format=torch.contiguous_format)
            self.register_buffer(f"{name}{number}", own, persistent=False)

    def clear(self) -> None:
        """All tasks use the weights as they are."""
        self.places.clear()
        self._buffers.clear()
        self._non_persistent_buffers_set.clear()

    def weights(self, backbone: nn.Module, task: int) -> dict[str, Tensor]:
        """Layer name → the weight that ``task`` uses, for every layer whose own weight it does not use as it is."""
        pairs: dict[str, list[Scaling]] = {}
        for number, (owner, layer) in enumerate(self.places):
            if owner == task:
                pairs.setdefault(layer, []).append(self._pair(number))
        return {layer: scaled(_weight(backbone, layer), own) for layer, own in pairs.items()}

    def _pair(self, number: int) -> Scaling:
        return self.get_buffer(f"basis{number}"), self.get_buffer(f"scale{number}")

    def get_extra_state(self) -> Tensor:
        """Everything, as one tensor of bytes; empty where nothing is scaled. What is equal has equal bytes."""
        if not self.places:
            return torch.empty(0, dtype=torch.uint8)
        # Fresh strings, each once: a pickle notes which objects are the same.
        content = {
            f"{task} {number} {layer}": torch.cat(self._pair(number)).cpu()
            for number, (task, layer) in enumerate(self.places)
        }
        stream = io.BytesIO()
        torch.save(content, stream)
        return torch.frombuffer(bytearray(stream.getvalue()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore it."""
        self.clear()
        if not len(state):
            return
        for key, both in torch.load(io.BytesIO(state.cpu().numpy().tobytes()), weights_only=True).items():
            task, _, layer = key.split(" ", 2)
            d = both.shape[0] - both.shape[1]
            self.keep(int(task), layer, (both[:d], both[d:]))

    def _load_from_state_dict(self, *arguments: Any, **named: Any) -> None:
        """As usual, but a state of a model that knew of no such weights is whole without."""
        super()._load_from_state_dict(*arguments, **named)
        prefix, missing = arguments[1], arguments[4]
        if f"{prefix}_extra_state" in missing:
            missing.remove(f"{prefix}_extra_state")


def _weight(backbone: nn.Module, layer: str) -> Tensor:
    weight = backbone.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    return weight
