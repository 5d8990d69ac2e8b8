"""The NESS layers: a frozen layer and an update ΔW = U V in free directions (paper, Section 3.2, Eq. 6).

    U  (d, r)      frozen; orthonormal columns, in directions in which the layer's old inputs are small
    V  (r, d_out)  trainable, starts at zero
    ΔW = U V       the update; torch stores weights transposed, so ``weight`` (d_out, d) changes by (U V)ᵀ

That is the *factored* form. The *projected* form trains ΔW itself and takes from its gradient what lies along the
other d - r directions, M: with UᵀU = 1 that is the same under SGD, with momentum or not, and under no other optimizer.
It multiplies by M where the factored one multiplies by U: cheaper where more than half of the directions are free.

A convolution is the same layer on im2col patches, d = C_in/groups · k_h · k_w. Its groups share U.

With a bias there may be one more input that is always 1 (``bias="augment"`` elsewhere): U and M then have d + 1 rows,
and what their last row does changes the bias. One basis, one guarantee for both.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nesskit import projected
from nesskit.errors import AdaptationError
from nesskit.projections import project_out

Model = TypeVar("Model", bound=nn.Module)


class NESSLayer(nn.Module):
    """What all adapted layers share: a frozen layer, and an update that starts at zero and can be merged into it.

    Attributes:
        layer: the original layer, frozen.
        directions: how many inputs a row of the weight sees: d, or d + 1 with the constant one for the bias.
        augmented: whether there is that constant input, so that the bias is updated too.
    """

    layer: nn.Linear | nn.Conv2d

    def __init__(self, layer: nn.Linear | nn.Conv2d, basis: Tensor) -> None:
        super().__init__()
        d = layer.weight.shape[1:].numel()
        rows = {d, d + 1} if layer.bias is not None else {d}
        if basis.ndim != 2 or basis.shape[0] not in rows or basis.shape[1] > basis.shape[0]:
            expected = " or ".join(str(row) for row in sorted(rows))
            raise AdaptationError(
                f"a basis for {layer} must be ({expected}, r) with r at most that, got {tuple(basis.shape)}"
            )
        self.layer, self.directions = layer, basis.shape[0]
        self.augmented = self.directions > d
        self._was_trainable = [parameter.requires_grad for parameter in layer.parameters(recurse=False)]
        layer.requires_grad_(False)

    @property
    @abstractmethod
    def trained(self) -> nn.Parameter:
        """The only parameter that learns."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """r, how many directions are free."""

    @abstractmethod
    def update_matrix(self) -> Tensor:
        """ΔW as a matrix (d_out, d), with the change of the bias as a last column if ``augmented``."""

    def delta(self) -> tuple[Tensor, Tensor | None]:
        """ΔW in the shape of the layer's own weight; (d_out,) the change of the bias, None unless ``augmented``."""
        update = self.update_matrix()
        weight, bias = (update[:, :-1], update[:, -1]) if self.augmented else (update, None)
        return weight.reshape(self.layer.weight.shape), bias

    def updated(self) -> tuple[Tensor, Tensor | None]:
        """W + ΔW, and the bias with its change, None if the layer has none."""
        weight, bias = self.delta()
        own = self.layer.bias
        return self.layer.weight + weight, own if own is None or bias is None else own + bias

    def delta_weight(self) -> Tensor:
        """ΔW in the shape of the layer's own weight."""
        return self.delta()[0]

    def delta_bias(self) -> Tensor | None:
        """(d_out,) the change of the bias, None unless ``augmented``."""
        return self.delta()[1]

    @property
    def weight(self) -> Tensor:
        """W + ΔW, for models that look at a layer's weight beside calling the layer."""
        return self.updated()[0]

    @property
    def bias(self) -> Tensor | None:
        """The bias with its change, None if the layer has none."""
        return self.updated()[1]

    @torch.no_grad()
    def merged(self) -> nn.Linear | nn.Conv2d:
        """The original layer object with ΔW folded into its weight, trainable again where it was."""
        # Adding a ΔW of zeros would turn -0.0 into 0.0: untouched layers stay as they are, bit by bit.
        if self.trained.any():
            weight, bias = self.delta()
            self.layer.weight += weight
            if self.layer.bias is not None and bias is not None:
                self.layer.bias += bias
        for parameter, trainable in zip(self.layer.parameters(recurse=False), self._was_trainable, strict=True):
            parameter.requires_grad_(trainable)
        return self.layer

    def extra_repr(self) -> str:
        """Shown when the model is printed."""
        return f"rank={self.rank} of {self.directions}"


class _Linear(NESSLayer):
    """What a model may ask of an ``nn.Linear``."""

    layer: nn.Linear

    @property
    def in_features(self) -> int:
        """d, as the original layer's."""
        return self.layer.in_features

    @property
    def out_features(self) -> int:
        """d_out, as the original layer's."""
        return self.layer.out_features


class _Conv2d(NESSLayer):
    """Every option of the convolution is honoured (stride, padding and its mode, dilation, groups, bias), because the
    layer itself runs, with W + ΔW for a kernel: ΔW is as small as the kernel, and adding it costs next to nothing.
    """

    layer: nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """(n, C_in, h, w) → (n, C_out, h', w')."""
        # torch's own quantised layers call this method of the layer too.
        output: Tensor = self.layer._conv_forward(x, *self.updated())
        return output


class _Factored(NESSLayer):
    """ΔW = U V.

    Attributes:
        basis: U, (d, r), or (d + 1, r) with a last row for the bias; a buffer.
        coefficients: V, (r, d_out), the only trainable parameter; zero at the start.
    """

    basis: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, basis: Tensor) -> None:
        super().__init__(layer, basis)
        self.register_buffer("basis", basis.detach().to(layer.weight))
        self.coefficients = nn.Parameter(layer.weight.new_zeros(basis.shape[1], layer.weight.shape[0]))

    @property
    def trained(self) -> nn.Parameter:
        """V."""
        return self.coefficients

    @property
    def rank(self) -> int:
        """r, how many directions are free."""
        return self.basis.shape[1]

    def update_matrix(self) -> Tensor:
        """(U V)ᵀ."""
        return (self.basis @ self.coefficients).T


class _Projected(NESSLayer):
    """ΔW, whose gradient is taken out of the occupied directions.

    Attributes:
        occupied: M, (d, k), or (d + 1, k) with a last row for the bias; a buffer. Orthonormal.
        update: ΔW, (d_out, d) or (d_out, d + 1), the only trainable parameter; zero at the start.
    """

    occupied: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, occupied: Tensor) -> None:
        super().__init__(layer, occupied)
        self.register_buffer("occupied", occupied.detach().to(layer.weight))
        self.update = nn.Parameter(layer.weight.new_zeros(layer.weight.shape[0], occupied.shape[0]))

    @property
    def trained(self) -> nn.Parameter:
        """ΔW."""
        return self.update

    @property
    def rank(self) -> int:
        """r = d - k, how many directions are free."""
        return self.directions - self.occupied.shape[1]

    def update_matrix(self) -> Tensor:
        """ΔW, through which gradients flow without their part along M."""
        return projected.outside(self.update, self.occupied)

    @torch.no_grad()
    def remove_round_off(self) -> None:
        """ΔW ← ΔW - ΔW M Mᵀ: what the round-off of many steps puts along M, some 1e-7 ‖ΔW‖ in float32."""
        self.update.copy_(project_out(self.update, self.occupied))


class NESSLinear(_Factored, _Linear):
    """A frozen ``nn.Linear`` plus a trainable update in the null space of its old inputs: x W + (x U) V.

    Attributes:
        layer: the original layer, frozen.
        basis: U, (d, r), or (d + 1, r) with a last row for the bias; a buffer.
        coefficients: V, (r, d_out), the only trainable parameter; zero at the start.
    """

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
        basis = self.basis
        if self.augmented:
            output = output + basis[-1] @ self.coefficients
            basis = basis[:-1]
        if x.ndim == 2:  # the same sum in one operation, which counts in small networks
            return torch.addmm(output, x @ basis, self.coefficients)
        return output + (x @ basis) @ self.coefficients


class NESSConv2d(_Factored, _Conv2d):
    """A frozen ``nn.Conv2d`` plus a trainable update in the null space of its old input patches.

    Attributes as in :class:`NESSLinear`, with d = C_in/groups · k_h · k_w. Every option of the layer is honoured
    (stride, padding and its mode, dilation, groups, bias), because the layer itself runs, with W + ΔW for a kernel:
    ΔW is as small as the kernel, so forming it costs next to nothing beside the convolution.
    """

    @classmethod
    def from_layer(cls, layer: nn.Conv2d, basis: Tensor) -> NESSConv2d:
        """Wrap ``layer``; ``basis`` is (d, r) with orthonormal columns, or (d + 1, r) for a layer with a bias.

        Raises:
            AdaptationError: the basis does not fit the layer.
        """
        return cls(layer, basis)


class ProjectedLinear(_Projected, _Linear):
    """A frozen ``nn.Linear`` plus a trainable ΔW that learns outside of the occupied directions: x (W + ΔW).

    Attributes:
        layer: the original layer, frozen.
        occupied: M, (d, k), or (d + 1, k) with a last row for the bias; a buffer. Orthonormal.
        update: ΔW, (d_out, d) or (d_out, d + 1), the only trainable parameter; zero at the start.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…, d) → (…, d_out)."""
        layer = self.layer
        if x.is_nested or x.numel() > layer.weight.numel():
            return F.linear(x, *self.updated())
        # Fewer inputs than the weight has rows: the gradient is formed from the projected inputs, which costs less.
        if self.augmented:
            x = torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)
            weight = torch.cat([layer.weight, layer.bias.unsqueeze(1)], dim=1)
            return projected.linear(x, weight + self.update, self.occupied)
        output = projected.linear(x, layer.weight + self.update, self.occupied)
        return output if layer.bias is None else output + layer.bias


class ProjectedConv2d(_Projected, _Conv2d):
    """A frozen ``nn.Conv2d`` plus a trainable ΔW that learns outside of the occupied directions.

    Attributes as in :class:`ProjectedLinear`, with d = C_in/groups · k_h · k_w.
    """


def adaptable_layers(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """Every layer of ``model`` that NESS can adapt, by name, in the order of ``model.named_modules()``.

    A layer that stands under several names appears once, under the first.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and _obstacle(model, name) is None
    }


def adapt(model: Model, bases: Mapping[str, Tensor], occupied: Mapping[str, Tensor] | None = None) -> Model:
    """Replace layers of ``model`` by NESS layers, in place, and freeze the replaced ones.

    Works for any model that *calls* its Linear and Conv2d layers. A layer that stands under several names is replaced
    under all of them. Either all layers are replaced or, on an error, none.

    Args:
        model: the network.
        bases: for each layer's name its basis U; the layer trains V, see :class:`NESSLinear`.
        occupied: for the names of other layers their occupied directions M; these layers train ΔW in the projected
            form, see :class:`ProjectedLinear`. For SGD alone.

    Raises:
        AdaptationError: a name is no layer of the model, or that layer cannot be adapted; says which and why.
    """
    occupied = occupied or {}
    for name in (*bases, *occupied):
        reason = _obstacle(model, name)
        if reason is not None:
            raise AdaptationError(f"layer '{name}' cannot be adapted: {reason}")
    names: dict[nn.Module, str] = {}
    for name in (*bases, *occupied):
        first = names.setdefault(model.get_submodule(name), name)
        if first != name or (name in bases and name in occupied):
            raise AdaptationError(
                f"layer '{name}' cannot be adapted: it is the same module as '{first}', and one module has one basis"
            )
    adapted: dict[nn.Module, NESSLayer] = {}
    try:
        for name, basis in bases.items():
            layer = model.get_submodule(name)
            adapted[layer] = NESSLinear(layer, basis) if isinstance(layer, nn.Linear) else NESSConv2d(layer, basis)  # type: ignore[arg-type]
        for name, basis in occupied.items():
            layer = model.get_submodule(name)
            kind = ProjectedLinear if isinstance(layer, nn.Linear) else ProjectedConv2d
            adapted[layer] = kind(layer, basis)  # type: ignore[arg-type]
    except Exception:
        for wrapper in adapted.values():
            wrapper.merged()
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
    if isinstance(model, NESSLayer):
        raise AdaptationError("a NESS layer on its own has no parent to be replaced in: use its merged()")
    plain: dict[nn.Module, nn.Module] = {m: m.merged() for m in model.modules() if isinstance(m, NESSLayer)}
    for parent, attribute, module in _places(model, plain):
        setattr(parent, attribute, plain[module])
    return model


def adapted_layers(model: nn.Module) -> dict[str, NESSLayer]:
    """The NESS layers of ``model`` by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, NESSLayer)}


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
    if isinstance(layer, NESSLayer):
        return "it is adapted already: merge(model) first"
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        return f"it is a {type(layer).__name__}; only Linear and Conv2d layers can be"
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, NESSLayer):
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
