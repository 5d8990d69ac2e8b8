"""Which weight of a module is a matrix over the module's inputs, and how it is laid out as one, (d_out, d).

Such a weight can be protected: a change that maps every old input to zero changes no old output. Every kind of layer
that nesskit can adapt has an entry in ``KINDS``; all else asks :func:`kind_of`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

TOKENS = 4096  # of an embedding; a moment over more of them is too large to be made unasked (V² numbers)


class Layout(ABC):
    """How a weight holds its matrix (d_out, d)."""

    @abstractmethod
    def matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """The weight as (d_out, d)."""

    @abstractmethod
    def weight(self, module: nn.Module, matrix: Tensor, like: Tensor) -> Tensor:
        """A matrix (d_out, d) in the shape of the weight ``like``."""

    @abstractmethod
    def dimension(self, module: nn.Module, weight: Tensor) -> int:
        """d, the number of inputs of a row."""


class Rows(Layout):
    """(d_out, …): a row an output, as in linear layers and convolutions."""

    def matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """(d_out, …) → (d_out, d)."""
        return weight.flatten(1)

    def weight(self, module: nn.Module, matrix: Tensor, like: Tensor) -> Tensor:
        """(d_out, d) → (d_out, …)."""
        return matrix.reshape(like.shape)

    def dimension(self, module: nn.Module, weight: Tensor) -> int:
        """The product of all axes but the first."""
        return weight.shape[1:].numel()


class Columns(Layout):
    """(d, d_out): a column an output. In an embedding every token is an input of its own."""

    def matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """(d, d_out) → (d_out, d)."""
        return weight.T

    def weight(self, module: nn.Module, matrix: Tensor, like: Tensor) -> Tensor:
        """(d_out, d) → (d, d_out)."""
        return matrix.T

    def dimension(self, module: nn.Module, weight: Tensor) -> int:
        """The first axis."""
        return weight.shape[0]


class Transposed(Layout):
    """(groups · d, C_out/groups, kernel …): a transposed convolution spreads each of its d input values of a position
    over C_out/groups · kernel outputs; the groups' matrices lie below each other.
    """

    def matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """(groups · d, C_out/groups, …) → (C_out · kernel, d)."""
        return weight.unflatten(0, (_groups(module), -1)).flatten(2).transpose(1, 2).flatten(0, 1)

    def weight(self, module: nn.Module, matrix: Tensor, like: Tensor) -> Tensor:
        """(C_out · kernel, d) → (groups · d, C_out/groups, …)."""
        return matrix.unflatten(0, (_groups(module), -1)).transpose(1, 2).reshape(like.shape)

    def dimension(self, module: nn.Module, weight: Tensor) -> int:
        """C_in/groups."""
        return weight.shape[0] // _groups(module)


def _groups(module: nn.Module) -> int:
    groups = module.groups
    assert isinstance(groups, int)
    return groups


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of layer that can be adapted.

    Attributes:
        description: what a person calls it.
        owns: whether a module is of this kind.
        layout: how its weight is a matrix.
        name: of the weight's attribute.
        bias: of the bias' attribute.
        augments: whether the bias can be one more column of the matrix, for an input that is always 1.
    """

    description: str
    owns: Callable[[nn.Module], bool]
    layout: Layout
    name: str = "weight"
    bias: str = "bias"
    augments: bool = False

    def weight_of(self, module: nn.Module) -> nn.Parameter:
        """The weight of a module of this kind; of an adapted one W, without its update."""
        weight: nn.Parameter = module._parameters[self.name]  # type: ignore[assignment]
        return weight

    def bias_of(self, module: nn.Module) -> nn.Parameter | None:
        """The bias, None if there is none."""
        return module._parameters.get(self.bias)

    def dimension(self, module: nn.Module) -> int:
        """d, the number of inputs of a row."""
        return self.layout.dimension(module, self.weight_of(module))


def _runs_as(*types: type[nn.Module]) -> Callable[[nn.Module], bool]:
    """Whether a module is of one of these classes, or of a subclass that computes as they do."""

    def owns(module: nn.Module) -> bool:
        return isinstance(module, types) and _forward(module) in {kind.forward for kind in types}

    return owns


def _forward(module: nn.Module) -> Any:
    """The forward that the module's class was written with; an adapted class does not count."""
    return getattr(type(module), "original", type(module)).forward


def _is_transformers_conv1d(module: nn.Module) -> bool:
    """The linear layer of GPT-2 in ``transformers``, which stores its weight as (d, d_out)."""
    cls = getattr(type(module), "original", type(module))
    return cls.__name__ == "Conv1D" and hasattr(module, "nf")


def _has_one_projection(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention) and module._qkv_same_embed_dim


LINEAR = Kind("Linear", _runs_as(nn.Linear), Rows(), augments=True)
CONV2D = Kind("Conv2d", _runs_as(nn.Conv2d), Rows(), augments=True)
KINDS = (
    LINEAR,
    CONV2D,
    Kind("Conv1d or Conv3d", _runs_as(nn.Conv1d, nn.Conv3d), Rows()),
    Kind("transposed convolution", _runs_as(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), Transposed()),
    Kind("attention, its in-projection", _has_one_projection, Rows(), "in_proj_weight", "in_proj_bias"),
    Kind("Conv1D of transformers", _is_transformers_conv1d, Columns()),
    Kind("Embedding", _runs_as(nn.Embedding), Columns()),
)


def kind_of(module: nn.Module) -> Kind | None:
    """The kind of layer that ``module`` is; None if it has no weight that can be protected."""
    return next((kind for kind in KINDS if kind.owns(module)), None)


def known_kind(module: nn.Module) -> Kind:
    """The kind of a layer that is known to have one."""
    kind = kind_of(module)
    assert kind is not None, f"{module} is no layer that can be adapted"
    return kind


def overlapping(model: nn.Module, layer: nn.Module, weight: nn.Parameter) -> Iterator[str]:
    """Parameters of the model that are other tensors than ``weight`` in the same memory."""
    for name, parameter in model.named_parameters():
        same = parameter.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr() != 0
        if same and parameter is not weight and all(parameter is not mine for mine in layer._parameters.values()):
            yield f"'{name}', in the same memory"
