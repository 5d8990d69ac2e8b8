"""The raw inputs of layers: what moments make unnecessary, for measuring that they do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nesskit.capture import layer_inputs
from nesskit.errors import AdaptationError, SpectrumError
from nesskit.layers import adaptable_layers

Layer = nn.Linear | nn.Conv2d


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


def named_layers(model: nn.Module, names: Sequence[str] | None) -> dict[str, Layer]:
    """Layers by name; without ``names`` every one that can be adapted.

    Raises:
        AdaptationError: a name is no Linear or Conv2d layer of the model, or the model has none that can be adapted.
    """
    known = adaptable_layers(model)
    if names is None:
        if not known:
            raise AdaptationError("this model has no Linear or Conv2d layer that could be adapted")
        return known
    modules = dict(model.named_modules(remove_duplicate=False))
    for name in names:
        if not isinstance(modules.get(name), nn.Linear | nn.Conv2d):
            raise AdaptationError(
                f"'{name}' is no Linear or Conv2d layer of the model; its layers are {', '.join(known) or 'none'}"
            )
    return {name: modules[name] for name in names}


def call(model: nn.Module, batch: Any) -> Any:
    """What ``model`` puts out for a batch: a tensor, a tuple of positional or a dict of keyword arguments."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode restored after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
