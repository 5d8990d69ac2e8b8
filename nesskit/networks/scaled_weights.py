"""Weights that a task uses in its own way: W + Σ_j W B_j (Q_j - 1) B_jᵀ instead of W (Lin et al., TRGP, ICLR 2022).

They belong to the model and not to the method that learned them, so that whoever is given the model, a copy of it or
its ``state_dict`` gets the same answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from nesskit.networks.packed_state import PackedState

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


class ScaledWeights(PackedState):
    """The scalings of all tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[tuple[int, str]] = []  # (task, layer) of each pair of buffers

    def keep(self, task: int, layer: str, scaling: Scaling) -> None:
        """From now on ``task`` uses the weight of ``layer`` (its name in the backbone) with this scaling, too."""
        number = len(self.places)
        self.places.append((task, layer))
        for name, tensor in zip(("basis", "scale"), scaling, strict=True):
            self.hold(f"{name}{number}", tensor)

    def clear(self) -> None:
        """All tasks use the weights as they are."""
        super().clear()
        self.places.clear()

    def weights(self, backbone: nn.Module, task: int) -> dict[str, Tensor]:
        """Layer name → the weight that ``task`` uses, for every layer whose own weight it does not use as it is."""
        pairs: dict[str, list[Scaling]] = {}
        for number, (owner, layer) in enumerate(self.places):
            if owner == task:
                pairs.setdefault(layer, []).append(self._pair(number))
        return {layer: scaled(_weight(backbone, layer), own) for layer, own in pairs.items()}

    def _pair(self, number: int) -> Scaling:
        return self.get_buffer(f"basis{number}"), self.get_buffer(f"scale{number}")

    def content(self) -> dict[str, Tensor]:
        """Task, number and layer → B and Q, one above the other."""
        return {
            f"{task} {number} {layer}": torch.cat(self._pair(number))
            for number, (task, layer) in enumerate(self.places)
        }

    def restore(self, content: Mapping[str, Tensor]) -> None:
        """Keep all of them again."""
        for key, both in content.items():
            task, _, layer = key.split(" ", 2)
            d = both.shape[0] - both.shape[1]
            self.keep(int(task), layer, (both[:d], both[d:]))


def _weight(backbone: nn.Module, layer: str) -> Tensor:
    weight = backbone.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    return weight
