"""The raw inputs of layers: what moments make unnecessary, for measuring that they do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nesskit.adaptation.capture import call, evaluating, named_layers
from nesskit.adaptation.watch import Use, watching
from nesskit.adaptation.weights import known_kind
from nesskit.errors import SpectrumError


@torch.no_grad()
def collect_inputs(model: nn.Module, batches: Iterable[Any], layer: str, augment_bias: bool = False) -> Tensor:
    """(n, d) every input of one layer, one a row, as its moment counts them; for a convolution one patch of one group.

    This is what a moment makes unnecessary: it grows with the data, and is meant for checks on small data.

    Args:
        model: any module; it runs in evaluation mode and comes back in the mode it was in.
        batches: as in :func:`collect_moments`.
        layer: name of a layer that can be adapted.
        augment_bias: a last column of ones, if the layer has a bias that can be adapted.

    Raises:
        AdaptationError: there is no such layer.
        SpectrumError: it was never run.
    """
    chosen = named_layers(model, [layer])
    module = chosen[layer]
    kind = known_kind(module)
    augment = augment_bias and kind.augments and module.bias is not None
    rows: list[Tensor] = []

    def seen(_: str, use: Use) -> None:
        rows.extend(piece.clone() for piece, _ in use.rows(augment))  # what comes after may change it in place

    with evaluating(model), watching(model, chosen, {layer: kind}, seen) as watch:
        for batch in batches:
            watch.begin(batch)
            call(model, batch)
            watch.forget_copies()
    if not rows:
        raise SpectrumError(f"layer '{layer}' was never run: pass batches that reach it")
    return torch.cat(rows)
