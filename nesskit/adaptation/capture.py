"""Layer inputs → moments: one forward pass sums up what every layer of a model sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nesskit.adaptation.adapt import adaptable_layers
from nesskit.adaptation.patches import patch_moment, patches
from nesskit.errors import AdaptationError, SpectrumError
from nesskit.spectra.moment import Moment


@torch.no_grad()
def collect_moments(
    model: nn.Module,
    batches: Iterable[Any],
    layers: Sequence[str] | None = None,
    augment_bias: bool = False,
) -> dict[str, Moment]:
    """The moments of every layer's inputs, from one forward pass in evaluation mode.

    Args:
        model: any module; it comes back in the mode it was in.
        batches: what the model is called with: tensors, tuples of positional or dicts of keyword arguments.
        layers: names of Linear and Conv2d layers; None: every one that :func:`nesskit.adapt` can adapt.
        augment_bias: give layers with a bias one more input that is always 1 (d + 1 instead of d).

    Returns:
        For each layer's name its :class:`Moment`, on the device of the layer. A linear layer contributes every
        position of every sample, a convolution every output position; ``count`` is samples × positions. The groups of a
        convolution are pooled. A layer that was never called has count 0.

    Raises:
        AdaptationError: a name is no Linear or Conv2d layer of the model, or the model has none that can be adapted.
        SpectrumError: a layer saw NaN or infinite inputs; says which.
    """
    chosen = named_layers(model, layers)
    moments = {}
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        for name, layer in chosen.items():
            augment = augment_bias and layer.bias is not None
            moments[name] = Moment(layer.weight[0].numel() + augment, layer.weight.device)
            hook = layer.register_forward_pre_hook(_updating(moments[name], name, augment), with_kwargs=True)
            stack.callback(hook.remove)
        for batch in batches:
            call(model, batch)
    return moments


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


def layer_inputs(layer: nn.Linear | nn.Conv2d, x: Tensor, augment: bool = False) -> Iterator[tuple[Tensor, int]]:
    """The input vectors that ``layer`` multiplies its weight with, for its input ``x``, in pieces of bounded size.

    Yields:
        ((n, d) rows, count): the rows of one piece and how many samples × positions they are. They differ for a
        convolution with groups, where each position contributes one row a group.
    """
    if x.is_nested:  # what torch's transformer makes of a batch with a padding mask
        x = torch.cat(x.unbind())
    pieces = patches(layer, x) if isinstance(layer, nn.Conv2d) else [(x.reshape(-1, x.shape[-1]), None)]
    for rows, count in pieces:
        if augment:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        yield rows, len(rows) if count is None else count


def _updating(moment: Moment, name: str, augment: bool) -> Callable[..., None]:
    """A hook that adds the input of a layer to ``moment``."""

    def hook(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs["input"]
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        try:
            if isinstance(layer, nn.Conv2d):
                moment.add(*patch_moment(layer, x, augment))
                return
            for rows, count in layer_inputs(layer, x, augment):
                moment.update(rows, count)
        except SpectrumError as error:
            raise SpectrumError(f"layer '{name}': {error}") from error

    return hook


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


def named_layers(model: nn.Module, names: Sequence[str] | None = None) -> dict[str, nn.Linear | nn.Conv2d]:
    """Layers by name; without ``names`` every one that can be adapted.

    Raises:
        AdaptationError: a name is no Linear or Conv2d layer of the model, or the model has none that can be adapted.
    """
    known = adaptable_layers(model)
    if names is None and not known:
        raise AdaptationError(
            "no layer of this model can be adapted: it needs Linear or Conv2d layers that are not adapted already, "
            "and must not be wrapped in DataParallel or torch.compile"
        )
    if names is None:
        return known
    modules = dict(model.named_modules(remove_duplicate=False))
    chosen = {}
    for name in names:
        module = modules.get(name)
        if not isinstance(module, nn.Linear | nn.Conv2d):
            layers = ", ".join(known) or "none"
            raise AdaptationError(f"'{name}' is no Linear or Conv2d layer of the model; its layers are {layers}")
        chosen[name] = module
    return chosen


def call(model: nn.Module, batch: Any) -> Any:
    """What ``model`` puts out for a batch: a tensor, a tuple of positional or a dict of keyword arguments."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)
