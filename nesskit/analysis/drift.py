"""What the bound of a single layer does not cover: upstream layers move too, and with them every layer's inputs.

When a network changes, a layer's output on an old input changes from W x to W'x'. With ΔW = W' - W and Δx = x' - x,

    W'x' - W x = ΔW x  +  W Δx  +  ΔW Δx
                 own      upstream  cross

Eq. 7 bounds the first term only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nesskit.adaptation.adapt import adapted_layers
from nesskit.adaptation.capture import call, evaluating, named_layers
from nesskit.analysis.checks import check_same_layers, ratio
from nesskit.errors import AdaptationError, NesskitError
from nesskit.spectra.precision import float64_device

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True)
class LayerDrift:
    """How far the outputs of one layer moved on old inputs. All but the shares are relative to ‖outputs before‖_F.

    Attributes:
        layer: its name.
        total: ‖W'x' - W x‖, over all inputs.
        own: ‖ΔW x‖ (with the change of the bias, if there is one): what the layer itself did, bounded by Eq. 7.
        upstream: ‖W Δx‖: what the layers before it did.
        cross: ‖ΔW Δx‖: both together.
        shares: how much of the total each of the three makes up, ⟨part, total⟩ / ‖total‖². They add up to 1, and one
            is negative where a part works against the others; NaN where nothing moved.
    """

    layer: str
    total: float
    own: float
    upstream: float
    cross: float
    shares: tuple[float, float, float]


@dataclass(frozen=True)
class OutputDrift:
    """Drift through depth: every layer in the order of the network, and what the network puts out in the end.

    Attributes:
        layers: one entry a layer.
        features: ‖f' - f‖_F / ‖f‖_F of the model's own outputs f.
    """

    layers: tuple[LayerDrift, ...]
    features: float


@torch.no_grad()
def output_drift(
    before: nn.Module, after: nn.Module, batches: Iterable[Any], layers: Sequence[str] | None = None
) -> OutputDrift:
    """How far each layer's outputs moved on old inputs between two states of one network, and why.

    Args:
        before, after: two copies of one network, NESS layers merged; for a TaskModel give the backbones.
        batches: old inputs, as in :func:`collect_moments`.
        layers: names of Linear and Conv2d layers; None: every one that can be adapted.

    Raises:
        NesskitError: the two are one object or not two states of one network, or no layer was run.
        AdaptationError: a name is no Linear or Conv2d layer, or a NESS layer is not merged.
    """
    if before is after:
        raise NesskitError("before and after are the same model: keep copy.deepcopy(model) before training goes on")
    pairs = _paired_layers(before, after, layers)
    sums = {name: _Sums(*pair) for name, pair in pairs.items()}
    moved = size = 0.0
    with ExitStack() as stack:
        stack.enter_context(evaluating(before))
        stack.enter_context(evaluating(after))
        old = stack.enter_context(_recorded({name: pair[0] for name, pair in pairs.items()}))
        new = stack.enter_context(_recorded({name: pair[1] for name, pair in pairs.items()}))
        for batch in batches:
            outputs = _outputs(before, batch), _outputs(after, batch)
            moved += float((outputs[1] - outputs[0]).square().sum())
            size += float(outputs[0].square().sum())
            for name, layer_sums in sums.items():
                layer_sums.add(name, old[name], new[name])
                old[name].clear()
                new[name].clear()
    return OutputDrift(tuple(s.result(name) for name, s in sums.items()), ratio(moved**0.5, size**0.5))


class _Sums:
    """Squared norms of the three parts of one layer's drift, and their products with the total, summed over calls."""

    def __init__(self, before: Layer, after: Layer) -> None:
        self.layer = before
        self.device = float64_device(before.weight.device)
        self.weight, self.bias = self._parameters(before)
        new_weight, new_bias = self._parameters(after)
        self.delta_weight = new_weight - self.weight
        self.delta_bias = None if self.bias is None or new_bias is None else new_bias - self.bias
        self.squares = torch.zeros(3, dtype=torch.float64)
        self.products = torch.zeros(3, dtype=torch.float64)
        self.output = 0.0
        self.calls = 0

    def add(self, name: str, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        if [x.shape for x in before] != [x.shape for x in after]:
            raise NesskitError(
                f"layer '{name}' sees inputs of other shapes, or is called more often, in one model: "
                "before and after must be two states of one network"
            )
        for x, new_x in zip(before, after, strict=True):
            self._add_call(x.to(self.device, torch.float64), new_x.to(self.device, torch.float64))

    def result(self, name: str) -> LayerDrift:
        if not self.calls:
            raise NesskitError(f"layer '{name}' was never run: pass batches that reach it, or leave it out of layers=…")
        square = float(self.products.sum())  # ‖total‖², as the total is the sum of its parts
        size = self.output**0.5
        own, upstream, cross = (ratio(float(part) ** 0.5, size) for part in self.squares)
        shares = [float(product) / square if square > 0 else float("nan") for product in self.products]
        total = ratio(max(square, 0.0) ** 0.5, size)
        return LayerDrift(name, total, own, upstream, cross, (shares[0], shares[1], shares[2]))

    def _add_call(self, x: Tensor, new_x: Tensor) -> None:
        parts = [
            self._apply(self.delta_weight, self.delta_bias, x),
            self._apply(self.weight, None, new_x - x),
            self._apply(self.delta_weight, None, new_x - x),
        ]
        total = parts[0] + parts[1] + parts[2]
        self.squares += torch.stack([part.square().sum().cpu() for part in parts])
        self.products += torch.stack([(part * total).sum().cpu() for part in parts])
        self.output += float(self._apply(self.weight, self.bias, x).square().sum())
        self.calls += 1

    def _apply(self, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        """What the layer would make of ``x`` with these parameters. It is not called: hooks would take note of that."""
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, bias)
        return self.layer._conv_forward(x, weight, bias)  # honours padding and its mode, stride, dilation, groups

    def _parameters(self, layer: Layer) -> tuple[Tensor, Tensor | None]:
        """Weight and bias in float64, where differences of nearly equal outputs still have digits."""
        weight, bias = (
            p if p is None else p.detach().to(self.device, torch.float64) for p in (layer.weight, layer.bias)
        )
        assert weight is not None
        return weight, bias


def _paired_layers(before: nn.Module, after: nn.Module, names: Sequence[str] | None) -> dict[str, tuple[Layer, Layer]]:
    """For each name the layer of either model."""
    if adapted_layers(before) or adapted_layers(after):
        raise AdaptationError("a model still has NESS layers: merge(model), or a merged copy, comes first")
    old, new = _plain_layers(before, names), _plain_layers(after, names)
    check_same_layers("the two models", old, new)
    for name, layer in old.items():
        if layer is new[name]:
            raise NesskitError(f"both models share the layer '{name}': compare with a copy.deepcopy(model)")
        if layer.weight.shape != new[name].weight.shape or (layer.bias is None) != (new[name].bias is None):
            raise NesskitError(
                f"layer '{name}' has another shape in the other model: "
                "before and after must be two states of one network"
            )
    return {name: (layer, new[name]) for name, layer in old.items()}


def _plain_layers(model: nn.Module, names: Sequence[str] | None) -> dict[str, Layer]:
    """Linear layers and convolutions of images; a name of another layer is refused."""
    found: dict[str, Layer] = {}
    for name, layer in named_layers(model, names).items():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            found[name] = layer
        elif names is not None:
            raise AdaptationError(f"layer '{name}' is a {type(layer).__name__}: drift is of Linear and Conv2d layers")
    return found


@contextmanager
def _recorded(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, list[Tensor]]]:
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


def _outputs(model: nn.Module, batch: Any) -> Tensor:
    """What the model puts out, in float64 on the CPU."""
    output = call(model, batch)
    if not isinstance(output, Tensor):
        raise NesskitError(f"the model puts out a {type(output).__name__}: wrap it so that it returns one tensor")
    return output.detach().to("cpu", torch.float64)
