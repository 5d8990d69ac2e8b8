"""Layer inputs → moments: one forward pass sums up what every layer of a model sees."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, nn

from nesskit.adaptation.adapt import AdaptationWarning, adaptable_layers
from nesskit.adaptation.layers import NESSLayer
from nesskit.adaptation.watch import Use, watching
from nesskit.adaptation.weights import kind_of, known_kind
from nesskit.errors import AdaptationError, SpectrumError
from nesskit.spectra.moment import Moment

POSITIONAL_ONLY, POSITIONAL_OR_KEYWORD = Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD
VAR_POSITIONAL, VAR_KEYWORD = Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD


@torch.inference_mode(False)
@torch.no_grad()
def collect_moments(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[str] | None = None,
    augment_bias: bool = False,
    samples: Mapping[str, int] | None = None,
) -> dict[str, Moment]:
    """The moments of every layer's inputs, from one forward pass in evaluation mode.

    A layer's weight is seen wherever it is multiplied with an input, also without a call of the layer.

    Args:
        model: any module; it comes back in the mode it was in.
        batches: what the model is called with, see :func:`call`: tensors, tuples of positional or dicts of keyword
            arguments, such as a ``DataLoader`` of (x, y) yields.
        layers: names of layers; None: every one that :func:`nesskit.adapt` can adapt.
        augment_bias: give linear layers and convolutions of images with a bias one more input that is always 1 (d + 1
            instead of d).
        samples: layer name → how many samples of each batch, a tensor or a dict of them, count for it: the first
            ones. The others pass the model with them, which matters to BatchNorm. A layer that is not named sees all.

    Returns:
        For each layer's name its :class:`Moment`, on the device of the layer. A linear layer contributes every
        position of every sample, a convolution every output position, a transposed one every input position, an
        embedding every token; ``count`` is samples × positions. The groups of a convolution are pooled. Padding is left
        out: what torch's own transformer is told of, and the zeros of a 2-D ``attention_mask`` (n, L) in a dict, where
        a linear layer or an embedding has n · L inputs, one sentence after another. A layer that was never used has
        count 0.

    Raises:
        AdaptationError: a name is no layer that can be adapted, or the model has none; or the weight of a named layer
            is used in a way that is no product with an input.
        SpectrumError: a layer saw NaN or infinite inputs; says which.
    """
    chosen = named_layers(model, layers)
    kinds = {name: known_kind(layer) for name, layer in chosen.items()}
    augmented = {n: augment_bias and k.augments and k.bias_of(chosen[n]) is not None for n, k in kinds.items()}
    moments = {
        name: Moment(kind.dimension(chosen[name]) + augmented[name], kind.weight_of(chosen[name]).device)
        for name, kind in kinds.items()
    }

    counted = samples or {}
    size = 0  # of the batch that runs

    def seen(name: str, use: Use) -> None:
        if name in counted:
            use = use.first(min(counted[name], size), size)
        try:
            use.add_to(moments[name], augmented[name])
        except SpectrumError as error:
            raise SpectrumError(f"layer '{name}': {error}") from error

    with evaluating(model), watching(model, chosen, kinds, seen) as watch:
        for batch in batches:
            size = _rows(batch) if counted else 0
            watch.begin(batch)
            call(model, batch)
            watch.forget_copies()
    for name, operation in watch.unknown.items():
        text = f"the weight of layer '{name}' is also used in '{operation}', which is no product with its inputs"
        if layers is not None:
            raise AdaptationError(f"{text}: no null space of theirs would protect old outputs; leave the layer out")
        warnings.warn(f"{text}: it is left out", AdaptationWarning, stacklevel=2)
        del moments[name]
    return moments


def _rows(batch: Any) -> int:
    """How many samples a batch has, a tensor or a dict of them."""
    return len(next(iter(batch.values())) if isinstance(batch, Mapping) else batch)


def merge_moments(
    moments: Mapping[str, Moment], group: torch.distributed.ProcessGroup | None = None
) -> dict[str, Moment]:
    """The moments of all ranks of a data-parallel run, summed: what one process would have collected from all data.

    Every rank calls this with the moments of its own share of the data, whatever its size, and gets the same result.
    Sums of second moments are exact, so the spectrum, and with it every basis, is that of a run on one device.

    Args:
        moments: what :func:`collect_moments` returned on this rank; stays as it is.
        group: the process group; None: all ranks.

    Raises:
        SpectrumError: the ranks have moments of different layers, or of different dimensions; on every rank.
        ValueError: there is no process group: ``torch.distributed.init_process_group`` comes first.
    """
    mine = {name: moment.dimension for name, moment in moments.items()}
    theirs: list[Any] = [None] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(theirs, mine, group)
    for rank, other in enumerate(theirs):
        if list(other.items()) != list(theirs[0].items()):
            raise SpectrumError(
                f"rank {rank} has moments of other layers than rank 0, which cannot be summed: {other} and {theirs[0]}"
            )
    merged = {}
    for name, moment in moments.items():
        total = Moment(moment.dimension, moment.matrix.device)
        total.matrix = moment.matrix.clone()
        count = torch.tensor(moment.count, device=total.matrix.device)
        torch.distributed.all_reduce(total.matrix, group=group)
        torch.distributed.all_reduce(count, group=group)
        total.count = int(count)
        merged[name] = total
    return merged


@torch.no_grad()
def layer_inputs(layer: nn.Module, x: Tensor, augment: bool = False) -> Iterator[tuple[Tensor, int]]:
    """The input vectors that ``layer`` multiplies its weight with when it is called with ``x``, in bounded pieces.

    Yields:
        ((n, d) rows, count): as :meth:`Use.rows`.
    """
    uses: list[Use] = []
    with watching(layer, {"": layer}, {"": known_kind(layer)}, lambda _, use: uses.append(use)):
        layer(x)
    for use in uses:
        yield from use.rows(augment)


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


def named_layers(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, nn.Module]:
    """Layers by name; without ``names`` every one that can be adapted.

    Raises:
        AdaptationError: a name is no layer of the model that can be adapted, or the model has none.
    """
    known = adaptable_layers(model)
    if names is None and not known:
        raise AdaptationError(
            "no layer of this model can be adapted: it needs Linear, convolution, attention or Embedding layers that "
            "are not adapted already, and must not be wrapped in DataParallel or torch.compile"
        )
    if names is None:
        return known
    modules = dict(model.named_modules(remove_duplicate=False))
    chosen = {}
    for name in names:
        module = modules.get(name)
        if module is None or kind_of(module) is None:
            layers = ", ".join(known) or "none"
            raise AdaptationError(f"'{name}' is no layer of the model that can be adapted; its layers are {layers}")
        if isinstance(module, NESSLayer):
            raise AdaptationError(f"layer '{name}' is adapted already: merge(model) first")
        chosen[name] = module
    return chosen


def call(model: nn.Module, batch: Any) -> Any:
    """What ``model`` puts out for a batch: a tensor, a tuple of positional or a dict of keyword arguments.

    Of what a loader yields the model gets as much as its forward takes: of (x, y) the x, of a dict the keys that it
    knows. Tensors go to the model's device, and floating-point ones become of its type.

    Raises:
        SpectrumError: a batch is empty or sparse, or a dict has no key that the model takes.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    kinds = {parameter.kind for parameter in parameters}
    if isinstance(batch, Mapping):
        known = {parameter.name for parameter in parameters}
        taken = {key: _fitting(model, v) for key, v in batch.items() if key in known or VAR_KEYWORD in kinds}
        if not taken:
            raise SpectrumError(f"a batch has the keys {', '.join(batch)}, of which the model takes none")
        return model(**taken)
    if not isinstance(batch, tuple | list):
        return model(_fitting(model, batch))
    places = sum(parameter.kind in (POSITIONAL_ONLY, POSITIONAL_OR_KEYWORD) for parameter in parameters)
    count = len(batch) if VAR_POSITIONAL in kinds else places
    return model(*(_fitting(model, value) for value in batch[:count]))


def _fitting(model: nn.Module, value: Any) -> Any:
    """``value`` on the device and, if it is a floating-point tensor, in the type of the model's parameters."""
    if not isinstance(value, Tensor):
        return value
    if value.layout is not torch.strided:
        raise SpectrumError(f"a batch is {value.layout}, which no moment can be made of: give it as a dense tensor")
    if not value.is_nested and value.ndim and not len(value):
        raise SpectrumError("a batch is empty: leave it out")
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    if like is None:
        return value
    return value.to(like.device, like.dtype if value.is_floating_point() else None)
