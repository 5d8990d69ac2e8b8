"""An update as a LoRA adapter, a folder that ``peft`` reads and writes, and back.

LoRA adds s B A to a weight (d_out, d), with A (r, d) and B (d_out, r). NESS adds (U V)ᵀ = Vᵀ Uᵀ: the same with A = Uᵀ,
B = Vᵀ and s = 1. What a folder holds and how it is called is peft's own affair: its writer and its reader are used, on
a model without weights.

``transformers`` and ``peft`` are imported when a function is called: ``pip install 'nesskit[text]'``.
"""

from __future__ import annotations

import copy
import importlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nesskit.adaptation.adapt import adapt, adapted_layers
from nesskit.adaptation.layers import Factored, NESSLayer
from nesskit.adaptation.low_rank import Factors, low_rank_updates
from nesskit.adaptation.weights import Kind, kind_of, known_kind
from nesskit.errors import AdaptationError, DataError, SettingsError, UserFileError
from nesskit.networks.load import load_model
from nesskit.networks.task_model import TaskModel
from nesskit.streams.tokens import first_line, from_transformers

Model = TypeVar("Model", bound=nn.Module)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
UNDERSTOOD = {
    *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("r", "rank_pattern", "lora_alpha", "alpha_pattern", "use_rslora", "target_modules", "exclude_modules"),
    *("layers_to_transform", "layers_pattern", "fan_in_fan_out", "bias", "inference_mode", "lora_dropout"),
}
"""Settings of an adapter whose value may be any: peft heeds them, or they do not matter once it is learned."""
HARMLESS_STARTS = (True, False, "gaussian")  # values of init_lora_weights; the others change the base model, too
OURS = ("basis", "coefficients", "occupied", "update")


def to_peft(model: nn.Module, folder: str | Path, base: nn.Module | str | Path | None = None) -> Path:
    """Write what a model has learned as a LoRA adapter that ``peft`` loads onto the plain base model.

    Without ``base``: the updates of the layers that are open now (:func:`nesskit.adapt`), A = Uᵀ and B = Vᵀ, onto the
    model as it was when they were opened. With ``base``: all that makes the model another one than that, which after a
    whole run is what all tasks have changed; a layer's W - W_base as factors of its numerical rank, where a singular
    value counts that is above the rounding of W.

    The adapter belongs to the transformer within ``model``, wherever it is. Biases that changed go with it (peft's
    ``bias="all"``). Heads of a :class:`TaskModel` do not: no model of ``transformers`` has a place for them.

    Args:
        model: a model of ``transformers``, an :class:`Encoder` or a :class:`TaskModel`; stays as it is.
        folder: where to write ``adapter_config.json`` and ``adapter_model.safetensors``; it must be empty or not exist.
        base: what the adapter is to be loaded onto: a model, or what :func:`nesskit.pretrained` takes by name.

    Returns:
        The folder.

    Raises:
        SettingsError: ``transformers`` or ``peft`` is not installed.
        AdaptationError: there is no transformer, nothing was learned, or something changed that no adapter can hold,
            such as a LayerNorm; says what. Nothing is written then.
        UserFileError: the folder holds something already.
        DataError: ``base`` cannot be had, or is another model.
    """
    peft, folder = _peft(), Path(folder).expanduser()
    transformer = _transformer(model)
    _refuse_what_stays_outside(model, transformer)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserFileError(f"{folder} is there already, and not empty: choose another folder for the adapter")
    weights = _weights(transformer)
    if base is None:
        home, updates = transformer, _open_updates(transformer)
        before = dict(transformer.state_dict())
    else:
        home = _transformer(load_model(base) if isinstance(base, str | Path) else base)
        before = _weights(home)
        updates = _changes(transformer, weights, before)
    biases = {name: value for name, value in weights.items() if _is_bias(name)}
    biased = any(not torch.equal(value, before[name].to(value)) for name, value in biases.items())
    if not updates:
        raise AdaptationError("no layer has other weights than the base, so there is no update for an adapter to hold")
    wrapped = _with_places(peft, home, updates, biased)
    state = _peft_state(wrapped, updates, biases if biased else {})
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as beside:
        whole = Path(beside) / "adapter"
        # "auto" would ask the internet whether the vocabulary has grown.
        wrapped.save_pretrained(str(whole), state_dict=state, save_embedding_layers=False)
        whole.replace(folder)
    return folder


def from_peft(model: Model, folder: str | Path, same_base: bool = False) -> Model:
    """Open the layers of a plain base model with the update of a LoRA adapter, in place.

    Afterwards the model is as :func:`nesskit.adapt` leaves it, with ΔW = U V that of the adapter: U is an orthonormal
    basis of what A reads, V starts as what B makes of it. All else in the transformer is frozen, and
    :func:`nesskit.merge` folds the updates in. Biases that the adapter brings become the model's. Dropout of the
    adapter, which only its own training has, is left out.

    Args:
        model: the base model: of ``transformers``, an :class:`Encoder` or a :class:`TaskModel`.
        folder: what ``save_pretrained`` of ``peft`` wrote, or :func:`to_peft`.
        same_base: take the model for the adapter's base although it is called otherwise, as a copy in another folder.

    Returns:
        The model.

    Raises:
        SettingsError: ``transformers`` or ``peft`` is not installed.
        DataError: there is no such adapter, it is one of another base model, or one that is more than low-rank updates
            (DoRA, ``modules_to_save``, …); says what. The model stays as it is then.
        AdaptationError: there is no transformer, or a layer cannot be adapted.
    """
    peft, folder = _peft(), Path(folder).expanduser()
    transformer = _transformer(model)
    if adapted_layers(transformer):
        raise AdaptationError("the model is adapted already: nesskit.merge(model) first, then load the adapter")
    config = _read_config(peft, folder)
    if not same_base:
        _refuse_other_base(config, transformer, folder)
    updates, biases = _read(peft, transformer, config, folder)
    _refuse_frozen(transformer, updates)
    factors = {name: _orthonormal(update) for name, update in updates.items()}
    then = {name: transformer.get_parameter(name).detach().clone() for name in biases}
    _put(transformer, biases)
    try:
        adapt(transformer, {name: U for name, (U, _) in factors.items()})
    except AdaptationError:
        _put(transformer, then)
        raise
    _put(transformer, {f"{name}.coefficients": V for name, (_, V) in factors.items()})
    return model


def _peft() -> Any:
    """The package ``peft``; a SettingsError if it, or ``transformers``, is not installed."""
    from_transformers("PreTrainedModel")
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise SettingsError(f"adapters of LoRA need the package peft ({error}): pip install 'nesskit[text]'") from error


def _transformer(model: nn.Module) -> nn.Module:
    """The one model of ``transformers`` that ``model`` is, or has within."""
    kind = from_transformers("PreTrainedModel")
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, kind) and not any(name.startswith(f"{outer}.") or not outer for outer in found):
            found[name] = module
    if len(found) != 1:
        what = "no model" if not found else f"{len(found)} models ({', '.join(found)})"
        raise AdaptationError(
            f"an adapter belongs to one model of transformers, and this {type(model).__name__} has {what} of it within"
        )
    (transformer,) = found.values()
    if not any(_has_place(module) for module in transformer.modules()):
        raise AdaptationError(
            f"no layer of this {type(transformer).__name__} can be adapted, so it can have no adapter"
        )
    return transformer


def _refuse_what_stays_outside(model: nn.Module, transformer: nn.Module) -> None:
    """An AdaptationError for what was learned elsewhere than in the transformer's weights."""
    within = set(transformer.modules())
    outside = [name for name, layer in adapted_layers(model).items() if layer not in within]
    if outside:
        raise AdaptationError(f"layer '{outside[0]}' has an update, but is no part of the model of transformers")
    if low_rank_updates(model):
        raise AdaptationError("the updates of the method LoRA are no part of the weights yet: its end_run(model) first")
    if any(isinstance(module, TaskModel) and module.tasks_have_parts for module in model.modules()):
        raise AdaptationError(
            "single tasks have parts of their own beside the shared weights, which one adapter cannot hold"
        )


def _refuse_frozen(transformer: nn.Module, names: Iterable[str]) -> None:
    """An AdaptationError for a layer that would stay as it is."""
    for name in names:
        layer = transformer.get_submodule(name)
        if not known_kind(layer).weight_of(layer).requires_grad:
            raise AdaptationError(
                f"layer '{name}', which the adapter changes, is frozen: let it learn with requires_grad_(True), or "
                "take an Encoder with those layers"
            )


# ------------------------------------------------------------------------------------------------- what was learned


def _weights(transformer: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the model's state by its plain name; of an open layer W + ΔW."""
    values = {name: value.detach() for name, value in transformer.state_dict().items()}
    with torch.no_grad():
        for name, layer in adapted_layers(transformer).items():
            for own in OURS:
                values.pop(f"{name}.{own}", None)
            weight, bias = layer.updated()
            values[f"{name}.{layer.kind.name}"] = weight
            if bias is not None:
                values[f"{name}.{layer.kind.bias}"] = bias
    return values


def _open_updates(transformer: nn.Module) -> dict[str, Factors]:
    """ΔW of every open layer that has a free direction."""
    layers = adapted_layers(transformer)
    if not layers:
        raise AdaptationError(
            "no layer is open, so its updates are part of the weights: say which model they were added to, base=…"
        )
    closed = [name for name, layer in layers.items() if not _has_place(layer)]
    if closed:
        raise AdaptationError(f"peft has no adapter for layer '{closed[0]}', a {layers[closed[0]].kind.description}")
    updates = {name: _update_of(layer) for name, layer in layers.items()}
    return {name: update for name, update in updates.items() if _rank(update)}


@torch.no_grad()
def _update_of(layer: NESSLayer) -> Factors:
    """ΔW of an open layer: A = Uᵀ and B = Vᵀ as they are, of the projected form as factors."""
    d = layer.kind.dimension(layer)
    if isinstance(layer, Factored):
        return layer.basis[:d].T, layer.coefficients.T
    A, B = _factors(layer.update_matrix()[:, :d], 0)
    return A[: layer.rank], B[:, : layer.rank]  # what is beyond is round-off


def _changes(transformer: nn.Module, weights: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> dict[str, Factors]:
    """What makes each layer another one than in the base model."""
    if {name: value.shape for name, value in weights.items()} != {name: value.shape for name, value in before.items()}:
        odd = next(n for n in [*weights, *before] if n not in weights or n not in before or _differ(weights, before, n))
        raise DataError(f"the base is another model than the one that learned: they differ in the shape of '{odd}'")
    # In float64, where the difference of two float32 is exact.
    changes = {name: value.double() - before[name].to(value.device).double() for name, value in weights.items()}
    changed = [name for name, change in changes.items() if change.any() and not _is_bias(name)]
    owners = {name: transformer.get_submodule(name.rpartition(".")[0]) for name in changed}
    lost = [name for name in changed if not _has_place(owners[name]) or name.rpartition(".")[2] != "weight"]
    if lost:
        more = f" and {len(lost) - 2} more" if len(lost) > 2 else ""
        raise AdaptationError(
            f"{', '.join(lost[:2])}{more} learned, too, which no LoRA adapter can hold: write the whole model with "
            "merge(model) and save_pretrained, or let only layers learn (Encoder(layers='blocks'))"
        )
    updates = {}
    for name in changed:
        kind = known_kind(owners[name])
        matrices = (kind.layout.matrix(owners[name], value) for value in (changes[name], weights[name]))
        update = _change_of(*matrices)
        if _rank(update):
            updates[name.rpartition(".")[0]] = update
    return updates


def _differ(weights: Mapping[str, Tensor], before: Mapping[str, Tensor], name: str) -> bool:
    return weights[name].shape != before[name].shape


def _change_of(change: Tensor, weight: Tensor) -> Factors:
    """W - W_base (d_out, d) without what is mere rounding of W.

    The rounding of every entry to ε makes a random matrix, whose norm is about ε ‖W‖_F/√min(d_out, d); a run of ten
    tasks rounds ten times. In the outputs that is less than what the layer's own product is rounded by.
    """
    precise = weight.dtype if weight.dtype.itemsize >= 4 else torch.float32
    noise = torch.finfo(weight.dtype).eps * float(torch.linalg.vector_norm(weight.double())) / min(weight.shape) ** 0.5
    A, B = _factors(change, 2 * noise)
    return A.to(precise), B.to(precise)


def _factors(matrix: Tensor, above: float) -> Factors:
    """``matrix`` (d_out, d) as B A with orthonormal rows of A, of as many singular values as are larger than given."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    kept = values > above
    return right[kept], left[:, kept] * values[kept]


def _orthonormal(update: Factors) -> tuple[Tensor, Tensor]:
    """U (d, r), an orthonormal basis of the rows of A, and V (r, d_out) with U V = (B A)ᵀ; both in float64."""
    A, B = (factor.double() for factor in update)
    directions, values, _ = torch.linalg.svd(A.T, full_matrices=False)
    U = directions[:, values > 1e-7 * values.max()] if len(values) else directions
    return U, (U.T @ A.T) @ B.T


def _rank(update: Factors) -> int:
    """r."""
    return len(update[0])


def _is_bias(name: str) -> bool:
    return name.rpartition(".")[2] == "bias"


def _has_place(layer: nn.Module) -> bool:
    """Whether peft has an adapter for a layer that can be adapted here."""
    kind: Kind | None = kind_of(layer)
    if kind is None or isinstance(layer, nn.modules.conv._ConvTransposeNd | nn.MultiheadAttention):
        return False
    return getattr(layer, "groups", 1) == 1


@torch.no_grad()
def _put(transformer: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Parameters by name ← values."""
    for name, value in values.items():
        transformer.get_parameter(name).copy_(value)


# ------------------------------------------------------------------------------------------------- the folder


def _with_places(peft: Any, home: nn.Module, updates: Mapping[str, Factors], biased: bool) -> Any:
    """A model like ``home``, but without weights, with places for the updates, of scale 1, as peft makes them."""
    ranks = {name: _rank(update) for name, update in updates.items()}
    most = max(ranks.values())
    # A pattern also fits longer names that end with it, so that these come first.
    others = {name: ranks[name] for name in sorted(ranks, key=len, reverse=True) if ranks[name] != most}
    config = peft.LoraConfig(
        r=most,
        lora_alpha=most,
        rank_pattern=others,
        alpha_pattern=others,
        target_modules=list(updates),
        fan_in_fan_out=any(_is_conv1d(home.get_submodule(name)) for name in updates),
        bias="all" if biased else "none",
        base_model_name_or_path=_name_of(home) or None,
        inference_mode=True,
    )
    return _wrap(peft, home, config)


def _wrap(peft: Any, home: nn.Module, config: Any) -> Any:
    """peft's model around one like ``home`` without weights."""
    with torch.device("meta"):
        empty: Any = type(home)(copy.deepcopy(home.config))
    empty.name_or_path = _name_of(home)
    with torch.random.fork_rng(devices=[]):  # peft draws first values, for which there is no use
        return peft.get_peft_model(empty, config, low_cpu_mem_usage=True)


def _peft_state(wrapped: Any, updates: Mapping[str, Factors], biases: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of peft's model, as far as its writer wants it."""
    state: dict[str, Tensor] = {}
    for key, place in wrapped.named_parameters(remove_duplicate=False):
        layer, part = _place_of(key)
        if part and layer in updates:
            A, B = updates[layer]
            factor = A if part == "A" else B
            state[key] = factor.reshape(place.shape).contiguous().cpu()
        elif layer in biases:
            state[key] = biases[layer].contiguous().cpu()
    held = {_place_of(key)[0] for key in state if _place_of(key)[1]}
    assert held == updates.keys(), f"peft made no place for {updates.keys() - held}"
    return state


def _place_of(key: str) -> tuple[str, str]:
    """Whose place a key of peft's state is: (layer, "A" or "B"), or (plain name, "") of what is no factor."""
    plain = key.removeprefix("base_model.model.")
    layer, lora, rest = plain.partition(".lora_")
    if lora:
        return layer, rest.removeprefix("embedding_")[0]
    return plain.replace(".base_layer.", "."), ""


def _is_conv1d(layer: nn.Module) -> bool:
    kind = kind_of(layer)
    return kind is not None and kind.description == "Conv1D of transformers"


def _name_of(transformer: nn.Module) -> str:
    """The name or folder that the model was loaded from, empty if it was made."""
    return str(getattr(transformer, "name_or_path", "") or "")


def _read_config(peft: Any, folder: Path) -> Any:
    """The adapter's settings, if they ask for nothing but low-rank updates."""
    path = folder / CONFIG
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise DataError(f"{folder} holds no adapter, since there is no {CONFIG} and {WEIGHTS} in it")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({first_line(error)}): write the adapter again") from error
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        kind = settings.get("peft_type") if isinstance(settings, dict) else "nothing"
        raise DataError(f"{folder} holds an adapter of the type {kind}, of which only LORA is a change of weights here")
    usual = peft.LoraConfig().to_dict()
    odd = [
        f"{name}={value!r}"
        for name, value in settings.items()
        if name not in UNDERSTOOD and value and value != usual.get(name) and name != "init_lora_weights"
    ]
    start = settings.get("init_lora_weights", True)
    odd += [] if start in HARMLESS_STARTS else [f"init_lora_weights={start!r}"]
    if odd:
        raise DataError(
            f"the adapter in {folder} is more than low-rank updates, which cannot be taken as such: {', '.join(odd)}"
        )
    return peft.LoraConfig.from_pretrained(str(folder))


def _refuse_other_base(config: Any, transformer: nn.Module, folder: Path) -> None:
    theirs, ours = config.base_model_name_or_path, _name_of(transformer)
    if not theirs or not ours or theirs == ours or Path(theirs).resolve() == Path(ours).resolve():
        return
    raise DataError(
        f"the adapter in {folder} was made for '{theirs}', and this model is '{ours}': load that one, or say "
        "same_base=True if it is the same"
    )


def _read(peft: Any, transformer: nn.Module, config: Any, folder: Path) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """The low-rank update of each layer, scaled, and the biases that the adapter brings."""
    load_file = importlib.import_module("safetensors.torch").load_file
    config.base_model_name_or_path = _name_of(transformer) or None  # peft would warn of what was agreed to
    try:
        tensors: dict[str, Tensor] = load_file(folder / WEIGHTS)
        wrapped = _wrap(peft, transformer, config)
    except Exception as error:  # of many kinds, few of them documented
        raise DataError(f"the adapter in {folder} does not fit this model: {first_line(error)}") from error
    places = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    theirs = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    ours = {name: tuple(place.shape) for name, place in places.items()}
    odd = sorted(name for name in {*theirs, *ours} if theirs.get(name) != ours.get(name))
    if odd:
        name = odd[0]
        raise DataError(
            f"the adapter in {folder} is that of another model: '{name}' is {theirs.get(name, 'not there')} in it, "
            f"and {ours.get(name, 'not there')} for this model"
        )
    updates: dict[str, Factors] = {}
    scales, known = _scales(wrapped), dict(transformer.named_modules())
    for layer in scales:
        if layer not in known or not _has_place(known[layer]):
            raise DataError(f"the adapter in {folder} changes layer '{layer}', which cannot be adapted here")
        own = {_place_of(key)[1]: tensor for key, tensor in tensors.items() if _place_of(key)[0] == layer}
        updates[layer] = own["A"].flatten(1), scales[layer] * own["B"].flatten(1)
    biases = {_place_of(key)[0]: value for key, value in tensors.items() if not _place_of(key)[1]}
    absent = biases.keys() - dict(transformer.named_parameters(remove_duplicate=False)).keys()
    if absent:
        raise DataError(f"the adapter in {folder} brings '{min(absent)}', which this model does not have")
    return updates, biases


def _scales(wrapped: Any) -> dict[str, float]:
    """s of every layer that has a place for an update."""
    named: Sequence[tuple[str, Any]] = list(wrapped.get_base_model().named_modules())
    return {name: float(module.scaling["default"]) for name, module in named if hasattr(module, "lora_A")}
