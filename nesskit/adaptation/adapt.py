"""Let a model learn in free directions only, and fold what it learned into its weights again.

After :func:`adapt` nothing learns but what is protected: of every adapted layer an update in its free directions, and
what was named to go on. After :func:`merge` the model is an ordinary one.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor, nn

from nesskit.adaptation.freeze import Freeze
from nesskit.adaptation.layers import Factored, NESSLayer, Projected, check_directions, open_layer
from nesskit.adaptation.weights import KINDS, TOKENS, kind_of, known_kind, overlapping
from nesskit.errors import AdaptationError

Model = TypeVar("Model", bound=nn.Module)


class AdaptationWarning(UserWarning):
    """The model is adapted, but not quite as its structure says."""


@dataclass(frozen=True)
class Adaptation:
    """What :func:`adapt` made of a model; printed, it is a table.

    Attributes:
        adapted: names of the layers that learn in free directions → rank and number of all directions.
        trained: names of the parameters that go on learning unprotected, as was asked.
        frozen: names of the parameters that stand still now → why.
        left_out: names of layers that bases were given for, but that stay as they are → why.
    """

    adapted: Mapping[str, tuple[int, int]]
    trained: Sequence[str] = ()
    frozen: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        from tabulate import tabulate

        rows = [(name, "learns", f"{rank} of {d} directions free") for name, (rank, d) in self.adapted.items()]
        rows += [(name, "learns", "unprotected, as asked") for name in self.trained]
        rows += [(name, "left out", why) for name, why in self.left_out.items()]
        adapted = tuple(f"{name}." if name else "" for name in self.adapted)
        rows += [(name, "frozen", why) for name, why in self.frozen.items() if not _weight_of(name, adapted)]
        return tabulate(rows, tablefmt="plain")


def _why_frozen(model: nn.Module, name: str) -> str:
    """Why the parameter called ``name`` does not learn."""
    owner = model.get_submodule(name.rpartition(".")[0])
    kind = kind_of(owner)
    if kind is None:
        return f"no weight of a {type(owner).__name__} can be protected"
    adapted = isinstance(owner, NESSLayer)
    if name.rpartition(".")[2] != kind.name and not (adapted and owner.augmented):
        return "it is no weight"
    return "W of an adapted layer" if adapted else "no basis was given for it"


def _weight_of(name: str, layers: Sequence[str]) -> bool:
    """Whether a parameter is the weight W of an adapted layer, which is told of in its layer's row."""
    return any(name == layer + kind.name for layer in layers for kind in KINDS)


def adaptable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer of ``model`` that NESS can adapt, by name, in the order of ``model.named_modules()``.

    A layer that stands under several names appears once, under the first. Embeddings of many tokens are left to be
    named: a moment of V tokens has V² numbers.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if not (isinstance(module, nn.Embedding) and module.num_embeddings > TOKENS) and _obstacle(model, name) is None
    }


def adapt(
    model: nn.Module,
    bases: Mapping[str, Tensor],
    occupied: Mapping[str, Tensor] | None = None,
    *,
    train: Sequence[str] = (),
) -> Adaptation:
    """Let layers of ``model`` learn in free directions only, and freeze everything else, in place.

    Every module stays the object it is, with its hooks and attributes; a layer's ``weight`` is W + ΔW from now on. All
    other parameters are frozen, running state (averages of BatchNorm, vectors of spectral norm) stands still, and
    gradients are cleared. What the user froze before stays frozen. Either all of that is done or, on an error, nothing.

    Args:
        model: the network, or the part of it that old and new tasks share.
        bases: for each layer's name its basis U, see :class:`NESSLinear`. Copied.
        occupied: for the names of other layers their occupied directions M, see :class:`ProjectedLinear`. Copied.
        train: names of parameters, or of modules, that go on learning without protection (a new task's head, say).

    Returns:
        What learns, what is frozen, and what was left out and why.

    Raises:
        AdaptationError: a name is no layer of the model, or that layer cannot be adapted; says which and why.
    """
    occupied = occupied or {}
    wanted: list[tuple[str, type[NESSLayer], Tensor]] = [(name, Factored, basis) for name, basis in bases.items()]
    wanted += [(name, Projected, directions) for name, directions in occupied.items()]
    names: dict[nn.Module, str] = {}
    left_out: dict[str, str] = {}
    for name, _, directions in wanted:
        reason = _obstacle(model, name)
        if reason is not None:
            raise AdaptationError(f"layer '{name}' cannot be adapted: {reason}")
        layer = model.get_submodule(name)
        first = names.setdefault(layer, name)
        if first != name or (name in bases and name in occupied):
            raise AdaptationError(
                f"layer '{name}' cannot be adapted: it is the same module as '{first}', and one module has one basis"
            )
        kind = known_kind(layer)
        check_directions(layer, kind, directions)
        if not kind.weight_of(layer).requires_grad:
            left_out[name] = "frozen before: it stays as it is"
    if any(hasattr(module, "_freeze") for module in model.modules()):
        raise AdaptationError("the model, or a part of it, is adapted already: merge(model) first")
    going_on = _named(model, train, {name for name, _, _ in wanted})
    wanted = [item for item in wanted if item[0] not in left_out]
    _untie(model, [name for name, _, _ in wanted])
    beside = [f"{name}.{own}" for name, layer in adapted_layers(model).items() for own in ("coefficients", "update")]
    freeze = Freeze(model, [*going_on, *beside])
    for name, form, directions in wanted:
        open_layer(model.get_submodule(name), form, directions)
    model._freeze = freeze  # type: ignore[assignment]
    layers = {name: model.get_submodule(name) for name, _, _ in wanted}
    adapted = {name: (layer.rank, layer.directions) for name, layer in layers.items() if isinstance(layer, NESSLayer)}
    return Adaptation(adapted, going_on, {name: _why_frozen(model, name) for name in freeze.frozen}, left_out)


def merge(model: Model, *, restore: bool = False) -> Model:
    """Fold every update into its layer, W ← W + ΔW, in place, and let everything move again that :func:`adapt` froze.

    Afterwards the model has the same modules, types and ``state_dict`` keys as before :func:`adapt`, and every other
    tensor is untouched.

    Args:
        model: what was adapted, or a model of which a part was.
        restore: put back what moved although it was frozen, instead of refusing.

    Raises:
        AdaptationError: a frozen tensor is not what it was, so old outputs are lost; says which and by how much.
    """
    if isinstance(model, NESSLayer) and "beside" in model.__dict__:
        raise AdaptationError("a NESS layer that stands beside another one is merged into that: use its merged()")
    frozen = [module for module in model.modules() if hasattr(module, "_freeze")]
    for root in frozen:
        if restore:
            root._freeze.restore()  # type: ignore[operator, union-attr]
        for name, distance in root._freeze.moved(root):  # type: ignore[operator, union-attr]
            raise AdaptationError(
                f"'{name}' was frozen, but has moved by {distance:.3g} since adapt(): old outputs are no longer what "
                "they were. Train only what has requires_grad, or undo this with merge(model, restore=True)"
            )
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, NESSLayer):
                parent._modules[name] = child.merged()
    if isinstance(model, NESSLayer):
        model.merged()
    for root in frozen:
        root._freeze.thaw(root)  # type: ignore[operator, union-attr]
        del root._freeze
    return model


def adapted_layers(model: nn.Module) -> dict[str, NESSLayer]:
    """The layers of ``model`` that learn in free directions, by name; each has ``trained`` and ``frozen_weight``."""
    return {name: module for name, module in model.named_modules() if isinstance(module, NESSLayer)}


def _named(model: nn.Module, names: Sequence[str], adapted: set[str]) -> list[str]:
    """Names of the parameters that ``names``, of parameters or modules, stand for."""
    chosen: list[str] = []
    for name in names:
        found = [own for own, _ in model.named_parameters() if own == name or own.startswith(f"{name}.")]
        if not found:
            raise AdaptationError(f"'{name}', which is to go on learning, is no parameter or module of the model")
        for own in found:
            if own.rpartition(".")[0] in adapted:
                raise AdaptationError(f"'{own}' cannot go on learning unprotected: its layer is to be adapted")
        chosen += found
    return chosen


def _untie(model: nn.Module, names: Sequence[str]) -> None:
    """Give each of these layers a weight in memory of its own, so that what it learns changes nothing else.

    A weight may also be that of a module outside of ``model``, or lie in the memory of another one. What it learns is
    harmless for the layer's own old inputs, not for those.
    """
    layers = {name: model.get_submodule(name) for name in names}
    elsewhere = _owners_outside([layer for layer in layers.values() if _is_held_elsewhere(layer)])
    for name, layer in layers.items():
        kind = known_kind(layer)
        weight = kind.weight_of(layer)
        outside = elsewhere.get(layer, [])
        others = [*outside, *overlapping(model, layer, weight)]
        if others:
            warnings.warn(
                f"the weight of layer '{name}' is also that of {others[0]}: they part here, and only '{name}' learns",
                AdaptationWarning,
                stacklevel=3,
            )
        if outside:
            layer._parameters[kind.name] = nn.Parameter(weight.detach().clone())
        else:
            weight.data = weight.data.clone()


def _is_held_elsewhere(layer: nn.Module) -> bool:
    """Whether anything but ``layer`` refers to its weight, be it another module or an optimizer."""
    weight = known_kind(layer).weight_of(layer)
    return sys.getrefcount(weight) > 3  # the layer's table, ``weight`` and the argument


def _owners_outside(layers: Sequence[nn.Module]) -> dict[nn.Module, list[str]]:
    """For each layer who else has the very parameter that is its weight, in words; all at once, for it takes long."""
    weights = {layer: known_kind(layer).weight_of(layer) for layer in layers}
    tables = [table for table in _referrers(weights.values()) if isinstance(table, dict) and table is not weights]
    holders = [holder for holder in _referrers(tables) if isinstance(holder, dict) and "_parameters" in holder]
    modules = [module for module in _referrers(holders) if isinstance(module, nn.Module)]
    return {
        layer: [
            f"a {type(module).__name__} outside of the model"
            for module in modules
            if module is not layer and _owns(module, weight)
        ]
        for layer, weight in weights.items()
    }


def _referrers(objects: Iterable[object]) -> list[object]:
    objects = list(objects)
    return gc.get_referrers(*objects) if objects else []


def _obstacle(model: nn.Module, name: str) -> str | None:
    """Why the layer called ``name`` cannot be adapted; None if it can."""
    for path, ancestor in _ancestors(model, name):
        if isinstance(ancestor, nn.DataParallel | nn.parallel.DistributedDataParallel):
            return f"'{path or 'the model'}' is a {type(ancestor).__name__} wrapper: adapt its .module before wrapping"
        if hasattr(ancestor, "_orig_mod"):
            return f"'{path or 'the model'}' is compiled: adapt the model before torch.compile"
        if isinstance(ancestor, torch.jit.ScriptModule):
            return f"'{path or 'the model'}' is a script: adapt the model before torch.jit.script"
    try:
        layer = model.get_submodule(name)
    except AttributeError:
        return f"the model has no layer of that name; it has {', '.join(adaptable_layers(model)) or 'none to adapt'}"
    if isinstance(layer, NESSLayer):
        return "it is adapted already: merge(model) first"
    kind = kind_of(layer)
    if kind is None:
        return _why_of_no_kind(layer)
    weight = layer._parameters.get(kind.name)
    names = {kind.name, kind.bias} if hasattr(layer, kind.bias) else {kind.name}
    if weight is None or not names <= layer._parameters.keys() or torch.nn.utils.parametrize.is_parametrized(layer):
        return "its weight or bias is parametrised (by weight norm or pruning, say): remove the parametrisation first"
    if isinstance(weight, nn.parameter.UninitializedParameter):
        return "its weight has no shape yet: run a batch through the model first"
    if not weight.is_floating_point():
        return f"its weight is {str(weight.dtype).removeprefix('torch.')}; only real floating-point weights can be"
    for part, parameter in layer.named_parameters(recurse=False):
        owners = [path for path, module in model.named_modules() if _owns(module, parameter) and module is not layer]
        if owners:
            return f"its {part} is tied to '{owners[0]}', which would not follow"
    return None


def _owns(module: nn.Module, parameter: Tensor) -> bool:
    return any(own is parameter for own in module._parameters.values())


def _why_of_no_kind(layer: nn.Module) -> str:
    """Why a layer that is of no kind of ours cannot be adapted."""
    known = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
    if isinstance(layer, known) and not isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        return f"its class {type(layer).__name__} has a forward of its own, which may use the weight in another way"
    if isinstance(layer, nn.modules.lazy.LazyModuleMixin):
        return "its weight has no shape yet: run a batch through the model first"
    if isinstance(layer, nn.MultiheadAttention):
        return "its queries, keys and values have different widths, and so three weights instead of one"
    return f"it is a {type(layer).__name__}; only Linear and Conv2d layers, {_others()} can be"


def _others() -> str:
    return "other convolutions, attention, Conv1D of transformers and Embedding"


def _ancestors(model: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The model and every module on the way to ``name`` that exists, with their paths."""
    module: nn.Module | None = model
    parts = name.split(".") if name else []
    for depth in range(len(parts) + 1):
        if module is None:
            return
        yield ".".join(parts[:depth]), module
        module = module._modules.get(parts[depth]) if depth < len(parts) else None
