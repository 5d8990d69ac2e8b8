"""Which units a network has: what computes them, where they can be switched off, and which layers they feed.

A backbone of its own form says so in a method ``units()``; of layers in an ``nn.Sequential`` it can be seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import dropout, pooling
from torch.nn.modules.batchnorm import _BatchNorm

from nesskit.errors import TrainingError

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
SWITCHED_OFF_STAYS_OFF = (dropout._DropoutNd, nn.Identity)  # these, too, act on each unit by itself, and map 0 to 0
EACH_UNIT_BY_ITSELF = (
    *SWITCHED_OFF_STAYS_OFF,
    *(nn.ReLU, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus),
    *(nn.Tanh, nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid),
)
POOLING = (pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._AdaptiveMaxPoolNd, pooling._AdaptiveAvgPoolNd)


@dataclass(frozen=True)
class Units:
    """Units of a backbone that share a row of gates; modules are named as in the backbone.

    Attributes:
        made_by: modules that compute them: each of their parameters has a row a unit. The first has a weight.
        gated_at: modules whose output (n, units, …) is to be multiplied by the gates.
        feed: layers whose inputs they are; of a layer behind a flattening a unit feeds several inputs in a row.
    """

    made_by: tuple[str, ...]
    gated_at: tuple[str, ...]
    feed: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the first module that makes them."""
        return self.made_by[0]

    def weight(self, backbone: nn.Module) -> Tensor:
        """(units, …) of the first module that makes them."""
        weight = backbone.get_submodule(self.name).weight
        assert isinstance(weight, Tensor)
        return weight


def units_of(backbone: nn.Module) -> tuple[Units, ...]:
    """The units of ``backbone``, of which every parameter makes some.

    Raises:
        TrainingError: it does not say what its units are, or some of its parameters belong to no unit.
    """
    if callable(own := getattr(backbone, "units", None)):
        units = tuple(own())
    elif isinstance(backbone, nn.Sequential):
        units = chain(backbone)
    else:
        raise _unknown(backbone, "does not say what its units are")
    makers = {name: each.weight(backbone).shape[0] for each in units for name in each.made_by}
    for name, parameter in backbone.named_parameters():
        module, _, kind = name.rpartition(".")
        if kind not in ("weight", "bias") or makers.get(module) != parameter.shape[0]:
            raise _unknown(backbone, f"has a parameter, '{name}', without a row for each of its units")
    return units


def chain(layers: nn.Module, prefix: str = "") -> tuple[Units, ...]:
    """The units of layers that follow each other, gated behind what follows on each: its norm, activation, pooling.

    Args:
        layers: an ``nn.Sequential`` or ``nn.ModuleList``, in the order in which they are applied.
        prefix: of their names in the backbone, such as ``layers.``.

    Raises:
        TrainingError: a module of them mixes units, or is none that we know.
    """
    steps = list(_steps(layers, prefix))
    rows: list[Row] = []
    for number, (name, module) in enumerate(steps):
        again = any(module is other for _, other in steps[:number])
        if again or not _follow(rows, name, module):
            raise _unknown(layers, f"has a {type(module).__name__}, '{name}', behind which units cannot be told apart")
    feeds = [*((row.made_by[0],) for row in rows[1:]), ()]
    return tuple(Units(tuple(row.made_by), (row.gated_at,), feed) for row, feed in zip(rows, feeds, strict=True))


@dataclass
class Row:
    """The units of a layer in a chain, as far as what follows on it has been seen."""

    count: int
    channels: bool  # each a whole image
    made_by: list[str]
    gated_at: str
    flattened: bool = False

    def feeds(self, inputs: int) -> bool:
        """Whether a layer of so many inputs may follow."""
        return inputs % self.count == 0 if self.flattened and self.channels else inputs == self.count


def _follow(rows: list[Row], name: str, module: nn.Module) -> bool:
    """Take the next module of a chain in; whether its units can be told apart."""
    row = rows[-1] if rows else None
    if isinstance(module, LAYERS):
        rows.append(Row(module.weight.shape[0], not isinstance(module, nn.Linear), [name], name))
        return getattr(module, "groups", 1) == 1 and (row is None or row.feeds(module.weight.shape[1]))
    if isinstance(module, nn.Flatten):
        if row is not None:
            row.flattened = True
        return True
    if row is None:
        return isinstance(module, (*EACH_UNIT_BY_ITSELF, *POOLING))
    if row.flattened:  # the gates stand before it
        return isinstance(module, SWITCHED_OFF_STAYS_OFF)
    row.gated_at = name
    if isinstance(module, _BatchNorm):
        row.made_by += [name] if module.affine else []
        return module.num_features == row.count
    return isinstance(module, EACH_UNIT_BY_ITSELF) or (row.channels and isinstance(module, POOLING))


def _steps(layers: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """Every module of the chain by name, those of a chain within it one by one."""
    for name, module in layers._modules.items():
        if isinstance(module, nn.Sequential):
            yield from _steps(module, f"{prefix}{name}.")
        elif module is not None:
            yield prefix + name, module


def _unknown(backbone: nn.Module, why: str) -> TrainingError:
    return TrainingError(
        f"units of the network {type(backbone).__name__} cannot be gated: it {why}. Those of mlp, alexnet, resnet18, "
        "convnet and of an nn.Sequential of linear layers or convolutions, BatchNorm, activations and pooling can; a "
        "network of your own says them in a method units(), see nesskit/networks/units.py"
    )


@contextmanager
def gated(backbone: nn.Module, units: Iterable[Units], gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, what ``backbone`` computes has its units multiplied by their gates (units,), named as the units are."""
    with ExitStack() as stack:
        for each in units:
            weight = each.weight(backbone)
            gate = gates[each.name].view(-1, *[1] * (weight.ndim - 2))  # as wide as what a layer of its kind puts out
            for name in each.gated_at:
                hook = backbone.get_submodule(name).register_forward_hook(_Multiply(gate))
                stack.callback(hook.remove)
        yield


class _Multiply:
    """A forward hook that multiplies the output by a gate."""

    def __init__(self, gate: Tensor) -> None:
        self.gate = gate

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * self.gate.to(output)
