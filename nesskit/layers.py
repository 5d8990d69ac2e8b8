"""The NESS layers: ΔW = U V with a frozen basis U and trainable coefficients V (paper, Section 3.2, Eq. 6).

    U  (d, r)      frozen; orthonormal columns, in directions in which the layer's old inputs are small
    V  (r, d_out)  trainable, starts at zero
    ΔW = U V       the update; torch stores weights transposed, so ``weight`` (d_out, d) changes by (U V)ᵀ

A convolution is the same layer on im2col patches, d = C_in/groups · k_h · k_w. Its groups share U.

With a bias there may be one more input that is always 1 (``bias="augment"`` elsewhere): U then has d + 1 rows, and its
last row times V changes the bias. One basis, one guarantee for both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from nesskit.errors import AdaptationError

Model = TypeVar("Model", bound=nn.Module)


class _NESSLayer(nn.Module):
    """What the linear layer and the convolution share; see :class:`NESSLinear`."""

    layer: nn.Linear | nn.Conv2d
    basis: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, basis: Tensor) -> None:
        super().__init__()
        d = layer.weight.shape[1:].numel()
        rows = {d, d + 1} if layer.bias is not None else {d}
        if basis.ndim != 2 or basis.shape[0] not in rows or basis.shape[1] > basis.shape[0]:
            expected = " or ".join(str(row) for row in sorted(rows))
            raise AdaptationError(
                f"a basis for {layer} must be ({expected}, r) with r at most that, got {tuple(basis.shape)}"
            )
        self.layer = layer
        self._was_trainable = [parameter.requires_grad for parameter in layer.parameters(recurse=False)]
        layer.requires_grad_(False)
        self.register_buffer("basis", basis.detach().to(layer.weight))
        self.coefficients = nn.Parameter(layer.weight.new_zeros(basis.shape[1], layer.weight.shape[0]))

    @property
    def augmented(self) -> bool:
        """Whether the basis has a row for the constant input 1, so that the bias is updated too."""
        return self.basis.shape[0] == self.layer.weight.shape[1:].numel() + 1

    def delta_weight(self) -> Tensor:
        """(U V)ᵀ in the shape of the layer's own weight."""
        weight = self.layer.weight
        basis = self.basis[:-1] if self.augmented else self.basis
        return (basis @ self.coefficients).T.reshape(weight.shape)

    def delta_bias(self) -> Tensor | None:
        """(d_out,) the change of the bias, None unless the basis is augmented."""
        return self.basis[-1] @ self.coefficients if self.augmented else None

    @property
    def weight(self) -> Tensor:
        """W + ΔW, for models that look at a layer's weight beside calling the layer."""
        return self.layer.weight + self.delta_weight()

    @property
    def bias(self) -> Tensor | None:
        """The bias with its change, None if the layer has none."""
        bias, delta = self.layer.bias, self.delta_bias()
        return bias if bias is None or delta is None else bias + delta

    @torch.no_grad()
    def merged(self) -> nn.Linear | nn.Conv2d:
        """The original layer object with ΔW folded into its weight, trainable again where it was."""
        # Adding a ΔW of zeros would turn -0.0 into 0.0: untouched layers stay as they are, bit by bit.
        if self.coefficients.any():
            self.layer.weight += self.delta_weight()
            delta_bias = self.delta_bias()
            if self.layer.bias is not None and delta_bias is not None:
                self.layer.bias += delta_bias
        for parameter, trainable in zip(self.layer.parameters(recurse=False), self._was_trainable, strict=True):
            parameter.requires_grad_(trainable)
        return self.layer

    def extra_repr(self) -> str:
        """Shown when the model is printed."""
        return f"rank={self.basis.shape[1]} of {self.basis.shape[0]}"


class NESSLinear(_NESSLayer):
    """A frozen ``nn.Linear`` plus a trainable update in the null space of its old inputs: x W + (x U) V.

    Attributes:
        layer: the original layer, frozen.
        basis: U, (d, r), or (d + 1, r) with a last row for the bias; a buffer.
        coefficients: V, (r, d_out), the only trainable parameter; zero at the start.
    """

    layer: nn.Linear

    @classmethod
    def from_layer(cls, layer: nn.Linear, basis: Tensor) -> NESSLinear:
        """Wrap ``layer``; ``basis`` is (d, r) with orthonormal columns, or (d + 1, r) for a layer with a bias.

        Raises:
            AdaptationError: the basis does not fit the layer.
        """
        return cls(layer, basis)

    def forward(self, x: Tensor) -> Tensor:
        """(…, d) → (…, d_out). ΔW itself is never formed: two thin products cost less than one dense one."""
        output: Tensor = self.layer(x)
        basis, delta_bias = self.basis, self.delta_bias()
        if delta_bias is not None:
            basis, output = basis[:-1], output + delta_bias
        if x.ndim == 2:  # the same sum in one operation, which counts in small networks
            return torch.addmm(output, x @ basis, self.coefficients)
        return output + (x @ basis) @ self.coefficients

    @property
    def in_features(self) -> int:
        """d, as the original layer's."""
        return self.layer.in_features

    @property
    def out_features(self) -> int:
        """d_out, as the original layer's."""
        return self.layer.out_features


class NESSConv2d(_NESSLayer):
    """A frozen ``nn.Conv2d`` plus a trainable update in the null space of its old input patches.

    Attributes as in :class:`NESSLinear`, with d = C_in/groups · k_h · k_w. Every option of the layer is honoured
    (stride, padding and its mode, dilation, groups, bias), because the layer itself runs, with W + ΔW for a kernel:
    ΔW is as small as the kernel, so forming it costs next to nothing beside the convolution.
    """

    layer: nn.Conv2d

    @classmethod
    def from_layer(cls, layer: nn.Conv2d, basis: Tensor) -> NESSConv2d:
        """Wrap ``layer``; ``basis`` is (d, r) with orthonormal columns, or (d + 1, r) for a layer with a bias.

        Raises:
            AdaptationError: the basis does not fit the layer.
        """
        return cls(layer, basis)

    def forward(self, x: Tensor) -> Tensor:
        """(n, C_in, h, w) → (n, C_out, h', w')."""
        parameters = {"weight": self.weight}
        if self.bias is not None:
            parameters["bias"] = self.bias
        output: Tensor = functional_call(self.layer, parameters, (x,))
        return output


def adaptable_layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Every layer of ``model`` that NESS can adapt, by name, in the order of ``model.named_modules()``.

    A layer that stands under several names appears once, under the first.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and _obstacle(model, name) is None
    }


def adapt(model: Model, bases: Mapping[str, Tensor]) -> Model:
    """Replace layers of ``model`` by NESS layers, in place, and freeze the replaced ones.

    Works for any model that *calls* its Linear and Conv2d layers. A layer that stands under several names is replaced
    under all of them. Either all layers are replaced or, on an error, none.

    Args:
        model: the network.
        bases: for each layer's name its basis U, see :class:`NESSLinear`.

    Raises:
        AdaptationError: a name is no layer of the model, or that layer cannot be adapted; says which and why.
    """
    for name in bases:
        reason = _obstacle(model, name)
        if reason is not None:
            raise AdaptationError(f"layer '{name}' cannot be adapted: {reason}")
    names: dict[nn.Module, str] = {}
    for name in bases:
        first = names.setdefault(model.get_submodule(name), name)
        if first != name:
            raise AdaptationError(
                f"layer '{name}' cannot be adapted: it is the same module as '{first}', and one module has one basis"
            )
    adapted: dict[nn.Module, nn.Module] = {}
    try:
        for name, basis in bases.items():
            layer = model.get_submodule(name)
            adapted[layer] = NESSLinear(layer, basis) if isinstance(layer, nn.Linear) else NESSConv2d(layer, basis)  # type: ignore[arg-type]
    except Exception:
        for wrapper in adapted.values():
            wrapper.merged()  # type: ignore[operator]
        raise
    for parent, attribute, layer in _places(model, adapted):
        setattr(parent, attribute, adapted[layer])
    return model


def merge(model: Model) -> Model:
    """Fold every update into its layer, W ← W + ΔW, in place.

    Afterwards the model has the same module objects, types and ``state_dict`` keys as before :func:`adapt`, and every
    other tensor is untouched.

    Raises:
        AdaptationError: ``model`` itself is a NESS layer, which cannot be replaced in place.
    """
    if isinstance(model, _NESSLayer):
        raise AdaptationError("a NESS layer on its own has no parent to be replaced in: use its merged()")
    plain: dict[nn.Module, nn.Module] = {m: m.merged() for m in model.modules() if isinstance(m, _NESSLayer)}
    for parent, attribute, module in _places(model, plain):
        setattr(parent, attribute, plain[module])
    return model


def adapted_layers(model: nn.Module) -> dict[str, NESSLinear | NESSConv2d]:
    """The NESS layers of ``model`` by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, NESSLinear | NESSConv2d)}


def _places(model: nn.Module, wanted: Mapping[nn.Module, nn.Module]) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, attribute, child) wherever a module of ``wanted`` hangs in the model, under every name it has."""
    return [
        (parent, attribute, child)
        for parent in model.modules()
        if parent not in wanted
        for attribute, child in parent._modules.items()
        if child is not None and child in wanted
    ]


def _obstacle(model: nn.Module, name: str) -> str | None:
    """Why the layer called ``name`` cannot be adapted; None if it can."""
    for path, ancestor in _ancestors(model, name):
        if isinstance(ancestor, nn.DataParallel | nn.parallel.DistributedDataParallel):
            return f"'{path or 'the model'}' is a {type(ancestor).__name__} wrapper: adapt its .module before wrapping"
        if hasattr(ancestor, "_orig_mod"):
            return f"'{path or 'the model'}' is compiled: adapt the model before torch.compile"
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        return f"the model has no layer of that name; it has {', '.join(_layer_names(model)) or 'none to adapt'}"
    if layer is model:
        return "it is the whole model and has no parent to be replaced in: use NESSLinear.from_layer or a Sequential"
    if isinstance(layer, _NESSLayer):
        return "it is adapted already: merge(model) first"
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return f"it is a {type(layer).__name__}; only Linear and Conv2d layers can be"
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, _NESSLayer):
        return "it is the frozen part of a NESS layer: merge(model) first"
    if isinstance(parent, nn.MultiheadAttention):
        return "MultiheadAttention uses its weight without calling the layer"
    if not {"weight", "bias"} <= layer._parameters.keys() or torch.nn.utils.parametrize.is_parametrized(layer):
        return "its weight or bias is parametrised (by weight norm or pruning, say): remove the parametrisation first"
    if isinstance(layer.weight, nn.parameter.UninitializedParameter):
        return "its weight has no shape yet: run a batch through the model first"
    if type(layer).forward not in (nn.Linear.forward, nn.Conv2d.forward):
        return f"its class {type(layer).__name__} has a forward of its own, which may use the weight in another way"
    for kind, parameter in layer.named_parameters(recurse=False):
        owners = [path for path, module in model.named_modules() if _owns(module, parameter) and module is not layer]
        if owners:
            return f"its {kind} is tied to '{owners[0]}', which would not follow"
    return None


def _ancestors(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The model and every module on the way to ``name`` that exists, with their paths."""
    module: nn.Module | None = model
    parts = name.split(".") if name else []
    for depth in range(len(parts) + 1):
        if module is None:
            return
        yield ".".join(parts[:depth]), module
        module = module._modules.get(parts[depth]) if depth < len(parts) else None


def _owns(module: nn.Module, parameter: Tensor) -> bool:
    return any(own is parameter for own in module._parameters.values())


def _layer_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
