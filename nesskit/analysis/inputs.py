"""The raw inputs of layers: what moments make unnecessary, for measuring that they do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nesskit.adaptation.capture import call, evaluating, layer_inputs, named_layers
from nesskit.errors import SpectrumError


@torch.no_grad()
def collect_inputs(model: nn.Module, batches: Iterable[Any], layer: str, augment_bias: bool = False) -> Tensor:
    """(n, d) every input of one layer, one a row, as its moment counts them; for a convolution one patch of one group.

    This is what a moment makes unnecessary: it grows with the data, and is meant for checks on small data.

    Args:
        model: any module; it runs in evaluation mode and comes back in the mode it was in.
        batches: as in :func:`collect_moments`.
        layer: name of a Linear or Conv2d layer.
        augment_bias: a last column of ones, if the layer has a bias.

    Raises:
        AdaptationError: there is no such layer.
        SpectrumError: it was never run.
    """
    module = named_layers(model, [layer])[layer]
    with evaluating(model), recorded({layer: module}) as calls:
        for batch in batches:
            call(model, batch)
    augment = augment_bias and module.bias is not None
    rows = [piece for x in calls[layer] for piece, _ in layer_inputs(module, x, augment)]
    if not rows:
        raise SpectrumError(f"layer '{layer}' was never run: pass batches that reach it")
    return torch.cat(rows)


@contextmanager
def recorded(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
    """Inside, a copy of the input of every call of each layer is appended to its list."""
    calls: dict[str, list[Tensor]] = {name: [] for name in layers}

    def recording(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else kwargs["input"]
            x = torch.cat(x.unbind()) if x.is_nested else x
            calls[name].append(x.clone())  # what comes after may change it in place

        return hook

    with ExitStack() as stack:
        for name, layer in layers.items():
            stack.callback(layer.register_forward_pre_hook(recording(name), with_kwargs=True).remove)
        yield calls
