"""The multi-layer perceptron of the small benchmarks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from nesskit.networks.units import Units, chain


class MLP(nn.Module):
    """Linear layers, a ReLU after each: x (n, …) is flattened to (n, inputs) and leaves as (n, widths[-1])."""

    def __init__(self, inputs: int, widths: Sequence[int], bias: bool = False) -> None:
        super().__init__()
        sizes = itertools.pairwise([inputs, *widths])
        self.layers = nn.ModuleList(nn.Linear(d_in, d_out, bias=bias) for d_in, d_out in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Features of ``x``."""
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x).relu()
        return x

    def units(self) -> tuple[Units, ...]:
        """The outputs of each layer, gated before their ReLU, which a gate a ≥ 0 may as well follow."""
        return chain(self.layers, "layers.")
