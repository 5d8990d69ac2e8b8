"""Updates of low rank beside weights that stand still: W + (α/r) B A (Hu et al., LoRA, ICLR 2022).

An update is a parametrisation of its layer's weight, so that it works wherever the weight is read: in the layer's own
forward, in attention, or where a model takes ``layer.weight`` itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nesskit.adaptation.weights import known_kind
from nesskit.spectra.precision import at_least_float32

Factors = tuple[Tensor, Tensor]  # A (r, d) and B (d_out, r)


class LowRank(nn.Module):
    """The update ΔW = (α/r) B A of one layer's weight (d_out, d), in whatever shape the layer holds it.

    Args:
        layer: whose weight it is.
        factors: A (r, d) and B (d_out, r), which become parameters.
        scale: α/r.
    """

    def __init__(self, layer: nn.Module, factors: Factors, scale: float) -> None:
        super().__init__()
        self.A, self.B = (nn.Parameter(factor.detach().clone()) for factor in factors)
        self.scale = scale
        self.kind = known_kind(layer)  # asked for before torch makes another class of the layer
        self._owner = (layer,)  # in a tuple, since the layer is no part of its own update

    @property
    def layer(self) -> nn.Module:
        """Whose weight it is."""
        return self._owner[0]

    @property
    def factors(self) -> Factors:
        """A and B, apart from any graph."""
        return self.A.detach(), self.B.detach()

    def forward(self, weight: Tensor) -> Tensor:
        """W + (α/r) B A."""
        change = self.kind.layout.weight(self.layer, self.scale * (self.B @ self.A), weight)
        return (weight + change).to(weight.dtype)


def initial_factors(layer: nn.Module, rank: int) -> Factors:
    """A (r, d), drawn as torch draws weights of linear layers, and B (d_out, r) = 0: an update that changes nothing.

    r is at most d and d_out. Both are float32 at least, where the weight is.
    """
    kind = known_kind(layer)
    weight = kind.weight_of(layer).detach()
    outputs, d = kind.layout.matrix(layer, weight).shape
    rank = min(rank, outputs, d)
    drawn = nn.init.kaiming_uniform_(weight.new_empty(rank, d, dtype=torch.float32), a=math.sqrt(5))
    A = drawn.to(at_least_float32(weight))  # whatever that is, the same numbers
    return A, A.new_zeros(outputs, rank)


def attach(layer: nn.Module, factors: Factors, scale: float) -> LowRank:
    """Let ``layer`` compute with W + (α/r) B A from now on; W stays what it is.

    Args:
        layer: one that can be adapted, see :func:`nesskit.adaptation.adapt.adaptable_layers`.
        factors: A (r, d) and B (d_out, r).
        scale: α/r.
    """
    update = LowRank(layer, factors, scale)
    # Unsafe as torch calls it: it is not tried out, which would draw nothing and tell nothing.
    parametrize.register_parametrization(layer, update.kind.name, update, unsafe=True)
    return update


def low_rank_updates(model: nn.Module) -> dict[str, LowRank]:
    """Every update in ``model``, by the name of its layer."""
    return {
        name.rpartition("parametrizations.")[0].removesuffix("."): module
        for name, module in model.named_modules()
        if isinstance(module, LowRank)
    }


@torch.no_grad()
def fold(model: nn.Module) -> None:
    """Make W + (α/r) B A the weight of every layer that has an update, and the layer what it was before."""
    for update in low_rank_updates(model).values():
        layer, name = update.layer, update.kind.name
        order = list(layer._parameters)
        value = getattr(layer, name).detach().clone()
        parametrize.remove_parametrizations(layer, name, leave_parametrized=False)
        weight = layer._parameters.pop(name)
        assert weight is not None
        weight.copy_(value)
        layer._parameters = {name: weight, **{other: layer._parameters[other] for other in order}}
