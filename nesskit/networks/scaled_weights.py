"""Weights that a task uses in its own way: W + Σ_j W B_j (Q_j - 1) B_jᵀ instead of W (Lin et al., TRGP, ICLR 2022)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from nesskit.networks.task_tensors import TaskTensors

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


class ScaledWeights(TaskTensors):
    """The scalings of all tasks, by task and layer."""

    names = ("basis", "scale")

    def keep(self, task: int, layer: str, scaling: Scaling) -> None:
        """From now on ``task`` uses the weight of ``layer`` (its name in the backbone) with this scaling, too."""
        self._keep(task, layer, scaling)

    def weights(self, backbone: nn.Module, task: int) -> dict[str, Tensor]:
        """Layer name → the weight that ``task`` uses, for every layer whose own weight it does not use as it is."""
        pairs: dict[str, list[Scaling]] = {}
        for number, (owner, layer) in enumerate(self.places):
            if owner == task:
                basis, scale = self._kept(number)
                pairs.setdefault(layer, []).append((basis, scale))
        return {layer: scaled(_weight(backbone, layer), own) for layer, own in pairs.items()}

    def _unpacked(self, packed: Tensor) -> Scaling:
        d = packed.shape[0] - packed.shape[1]
        return packed[:d], packed[d:]


def _weight(backbone: nn.Module, layer: str) -> Tensor:
    weight = backbone.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    return weight
