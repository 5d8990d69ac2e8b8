"""Replace the layers of any model by NESS layers, and fold their updates in again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from nesskit.adaptation.layers import NESSConv2d, NESSLayer, NESSLinear, ProjectedConv2d, ProjectedLinear
from nesskit.errors import AdaptationError

Model = TypeVar("Model", bound=nn.Module)


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
