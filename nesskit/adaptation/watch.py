"""See every input that a weight is multiplied with, wherever in a model that happens.

Hooks see the calls of a layer. A weight may be used without one: ``F.linear(x, layer.weight)``, a projection within
attention, a replaced forward, a weight shared between two modules. So the products themselves are watched, as torch
dispatches them: below them all there are a few operations (matrix products, convolutions, embeddings), and a weight is
known by its memory, also through views, transposes, and casts. (A mode for torch functions would not do: within a
function such as ``multi_head_attention_forward`` it sees nothing.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nesskit.adaptation.patches import Geometry, patch_moment, patches
from nesskit.adaptation.weights import Columns, Kind, Transposed, overlapping
from nesskit.spectra.moment import Moment

aten = torch.ops.aten


@dataclass(frozen=True)
class Use:
    """The input of one product with a watched weight.

    Attributes:
        x: what was multiplied: (n, d) rows, images for a convolution, tokens for an embedding.
        geometry: of a convolution.
        tokens: of an embedding, how many there are.
        real: which of the rows, or tokens, are no padding: only they count; None: all.
    """

    x: Tensor
    geometry: Geometry | None = None
    tokens: int = 0
    real: Tensor | None = None

    @property
    def counted(self) -> Tensor:
        """The rows (n, d), images or tokens (n,) that count."""
        x = self.x.flatten() if self.tokens else self.x
        return x if self.real is None else x[self.real]

    def rows(self, augment: bool = False) -> Iterator[tuple[Tensor, int]]:
        """The input vectors in pieces of bounded size.

        Yields:
            ((n, d) rows, count): the rows of one piece and how many samples × positions they are. They differ for a
            convolution with groups, where each position contributes one row a group.
        """
        for rows, count in self._pieces():
            yield (torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if augment else rows), count

    def _pieces(self) -> Iterator[tuple[Tensor, int]]:
        if self.geometry is not None:
            yield from patches(self.geometry, self.x)
        elif self.tokens:
            yield nn.functional.one_hot(tokens := self.counted, self.tokens), len(tokens)
        else:
            yield (rows := self.counted), len(rows)

    def add_to(self, moment: Moment, augment: bool = False) -> None:
        """Add the input vectors to ``moment``."""
        if self.geometry is not None and self.geometry.shares_rows:
            moment.add(*patch_moment(self.geometry, self.x, augment))
        elif self.tokens:
            tokens = self.counted
            moment.add(torch.bincount(tokens, minlength=self.tokens).to(moment.matrix).diag(), len(tokens))
        else:
            for rows, count in self.rows(augment):
                moment.update(rows, count)

    def first(self, count: int, of: int) -> Use:
        """What the first ``count`` of ``of`` samples contributed; the rows of a sample lie together."""
        real = None if self.real is None else self.real[: len(self.real) * count // of]
        return dataclasses.replace(self, x=self.x[: len(self.x) * count // of], real=real)

    def mean(self) -> Use:
        """The mean over the samples, as one sample; the patches of a mean image are the means of the patches."""
        x = self.x if self.geometry is not None else self.counted
        return dataclasses.replace(self, x=x.mean(dim=0, keepdim=True), real=None)


Seen = Callable[[str, Use], None]


class Watch(TorchDispatchMode):
    """Inside, ``seen(name, use)`` is called for every product with one of the watched weights.

    Args:
        layers: by name, modules of the given kinds.
        kinds: how each one's weight is a matrix.
        seen: called with the layer's name and what its weight was multiplied with.

    Attributes:
        unknown: layer name → an operation that used its weight in a way that is no product with an input.
    """

    def __init__(self, layers: Mapping[str, nn.Module], kinds: Mapping[str, Kind], seen: Seen) -> None:
        super().__init__()
        self.kinds, self.seen = kinds, seen
        self.unknown: dict[str, str] = {}
        self.mask: Tensor | None = None  # (n, L) of the batch that runs, which positions are no padding
        self.padding: list[Tensor] = []  # the same for the rows of modules of attention that run at present
        self.known: dict[int, list[_Weight]] = {}
        self.copies: list[Tensor] = []  # kept while a batch runs, so that their memory is not another's in between
        for name, layer in layers.items():
            self._know(_Weight.of(name, kinds[name].weight_of(layer).detach(), kinds[name]))
        self.own = {place: list(weights) for place, weights in self.known.items()}

    def _know(self, weight: _Weight) -> None:
        self.known.setdefault(weight.place, []).append(weight)

    def begin(self, batch: Any) -> None:
        """Before the model is called with ``batch``: note what of it is padding."""
        self.mask = padding_mask(batch)

    def forget_copies(self) -> None:
        """Between two batches: casts of weights that were made for one are not those of the next."""
        self.known = {place: list(weights) for place, weights in self.own.items()}
        self.copies.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation, and see whether it is a product with a watched weight."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        for place, operand in enumerate(_tensors([*args, *kwargs.values()])):
            for weight in self._weights(operand):
                self._follow(weight, operand, place, func, args, output)
        return output

    def _weights(self, tensor: Tensor) -> list[_Weight]:
        """The watched weights that ``tensor`` is, or is a part of."""
        return [w for w in self.known.get(_place(tensor), ()) if w.holds(tensor)]

    def _follow(self, weight: _Weight, operand: Tensor, place: int, func: Any, args: Any, output: Any) -> None:
        use = _use(func.overloadpacket, args, operand, weight)
        if use is not None:
            self.seen(weight.name, self._without_padding(use))
            return
        made = _tensors([output])
        if func.overloadpacket in _COPIES:
            for copy in made:
                self.copies.append(copy)
                self._know(weight.copied(operand, copy))
        elif func._schema.is_mutable or (
            func.overloadpacket not in _HARMLESS and any(_place(tensor) != _place(operand) for tensor in made)
        ):
            self.unknown.setdefault(weight.name, str(func.overloadpacket).removeprefix("aten."))

    def _without_padding(self, use: Use) -> Use:
        """The use with note of its padding, where it has a row (or token) for each position of the batch."""
        real = self.padding[-1] if self.padding else self.mask
        positions = use.x.numel() if use.tokens else len(use.x)
        if real is None or use.geometry is not None or positions != real.numel():
            return use
        return dataclasses.replace(use, real=real.flatten().to(use.x.device))


def padding_mask(batch: Any) -> Tensor | None:
    """Which positions (n, L) of a batch are no padding; None if nothing says so.

    It is said by ``attention_mask`` in a dict, 0 for padding, if another of its tensors has the same positions: a mask
    (L, L) says who attends to whom.
    """
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return None
    others = [value for name, value in batch.items() if name != "attention_mask" and isinstance(value, Tensor)]
    return mask != 0 if any(other.shape[:2] == mask.shape for other in others) else None


@dataclass(frozen=True)
class _Weight:
    """Where a watched weight, or a copy of it in another type, lies in memory.

    Attributes:
        name: of its layer.
        place: address of its memory.
        start, end: its first and last element there.
        stride: from one input to the next.
        dimension: d.
    """

    name: str
    kind: Kind
    place: int
    start: int
    end: int
    stride: int
    dimension: int
    shape: torch.Size

    @classmethod
    def of(cls, name: str, tensor: Tensor, kind: Kind) -> _Weight:
        """The weight ``tensor`` of a layer of this kind."""
        columns = isinstance(kind.layout, Columns | Transposed)
        dimension = tensor.shape[0] if columns else tensor.shape[1:].numel()
        stride = tensor.stride(0) if columns else tensor.stride(-1)
        return cls(name, kind, _place(tensor), *_span(tensor), stride, dimension, tensor.shape)

    def holds(self, tensor: Tensor) -> bool:
        """Whether ``tensor``, in the same memory, begins within the weight."""
        return self.start <= tensor.storage_offset() < self.end

    def is_input_axis(self, tensor: Tensor, axis: int) -> bool:
        """Whether that axis of a matrix in the weight's memory is the one of the inputs."""
        fits = tensor.shape[axis] == self.dimension
        return fits and (tensor.stride(axis) == self.stride or self.dimension == 1)

    def copied(self, source: Tensor, copy: Tensor) -> _Weight:
        """The same weight where ``source``, it or a view of it, was copied to."""
        stride = next(
            (copy.stride(axis) for axis in range(source.ndim) if source.ndim == 2 and self.is_input_axis(source, axis)),
            copy.stride(-1),
        )
        start, end = _span(copy)
        return dataclasses.replace(self, place=_place(copy), start=start, end=end, stride=stride)


def _use(operation: Any, args: Sequence[Any], operand: Tensor, weight: _Weight) -> Use | None:
    """What the weight was multiplied with in ``operation``, where it is ``operand``; None if it was no such product."""
    if operation is aten.embedding and args[0] is operand and isinstance(weight.kind.layout, Columns):
        return Use(args[1], tokens=weight.dimension)
    if operation is aten.convolution and args[1] is operand and operand.shape == weight.shape:
        x, stride, padding, dilation, transposed, groups = args[0], *args[3:7], args[8]
        if transposed and isinstance(weight.kind.layout, Transposed):
            return Use(x.movedim(1, -1).reshape(-1, x.shape[1] // groups))
        if not transposed and operand.ndim > 2 and not isinstance(weight.kind.layout, Columns | Transposed):
            return Use(x, Geometry(tuple(operand.shape[2:]), tuple(stride), tuple(padding), tuple(dilation), groups))
        return None
    if isinstance(weight.kind.layout, Transposed):
        return None
    if operation is aten.linear and args[1] is operand and weight.is_input_axis(operand, 1):
        return Use(args[0].reshape(-1, args[0].shape[-1]))
    factors = {aten.mm: args[:2], aten.addmm: args[1:3], aten.mv: args[:2], aten.addmv: args[1:3], aten.bmm: args[:2]}
    left, right = factors.get(operation, (None, None))
    if left is None or right is None:
        return None
    if operation is aten.bmm:
        if len(left) != 1:
            return None
        on_the_left = operand is left
        left, right = left[0], right[0]
        operand = left if on_the_left else right
    if operand is right and operand.ndim == 2 and weight.is_input_axis(operand, 0):
        return Use(left)
    if operand is left and operand.ndim == 2 and weight.is_input_axis(operand, 1):
        return Use(right.T if right.ndim == 2 else right.unsqueeze(0))
    return None


_COPIES = {aten._to_copy, aten.clone}
_HARMLESS = {aten.empty_like, aten.zeros_like, aten.ones_like, aten.new_empty, aten.new_zeros, aten.isnan, aten.equal}


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    flat = [item for value in values for item in (value if isinstance(value, list | tuple) else (value,))]
    return [value for value in flat if isinstance(value, Tensor)]


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided and not tensor.is_nested else -1


def _span(tensor: Tensor) -> tuple[int, int]:
    """First and last element in memory, the last not included."""
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    start = int(tensor.storage_offset())
    return start, start + int(steps) + 1


@contextmanager
def watching(
    model: nn.Module, layers: Mapping[str, nn.Module], kinds: Mapping[str, Kind], seen: Seen
) -> Iterator[Watch]:
    """Inside, every product with the weights of ``layers`` is seen; padding that torch's transformer is told of is not,
    nor what :meth:`Watch.begin` was told of.

    Torch's fused attention would hide its products, so it is not taken.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # in it, whole layers are dispatched, and no products
        stack.enter_context(torch.no_grad())
        for device in {kinds[name].weight_of(layer).device.type for name, layer in layers.items()}:
            stack.enter_context(torch.autocast(device, enabled=False))  # it would round what is seen
        stack.enter_context(_apart(model, layers, kinds))
        watch = Watch(layers, kinds, seen)
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        for module in model.modules():
            if isinstance(module, nn.TransformerEncoderLayer | nn.MultiheadAttention):
                begin, end = _padding_hooks(watch)
                stack.callback(module.register_forward_pre_hook(begin, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(end, always_call=True).remove)
        stack.enter_context(watch)
        yield watch


@contextmanager
def _apart(model: nn.Module, layers: Mapping[str, nn.Module], kinds: Mapping[str, Kind]) -> Iterator[None]:
    """Inside, no weight of ``layers`` shares its memory with another parameter, with which it would be confused."""
    weights = {name: kinds[name].weight_of(layer) for name, layer in layers.items()}
    shared = [weights[name] for name, layer in layers.items() if any(overlapping(model, layer, weights[name]))]
    memory = [weight.data for weight in shared]
    try:
        for weight in shared:
            weight.data = weight.data.clone()
        yield
    finally:
        for weight, data in zip(shared, memory, strict=True):
            weight.data = data


def _turned(mask: Tensor, time_first: bool) -> Tensor:
    """A mask (n, L), as (L, n) if the time comes first."""
    return mask.T if time_first else mask


def _fitting(mask: Tensor | None, x: Tensor, batch_first: bool) -> Tensor | None:
    """The mask (n, L) of the batch, where ``x`` has its positions: (n, L, d), or (L, n, d) if the time comes first."""
    fits = mask is not None and x.shape[:2] == _turned(mask, not batch_first).shape
    return mask if fits else None


def _padding_hooks(watch: Watch) -> tuple[Callable[..., None], Callable[..., None]]:
    """Hooks for a module of attention: which rows of its products are no padding, while it runs."""

    def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        attention = isinstance(module, nn.MultiheadAttention)
        names = (
            ("query", "key", "value", "key_padding_mask") if attention else ("src", "src_mask", "src_key_padding_mask")
        )
        given = dict(zip(names, args, strict=False)) | kwargs
        mask = given.get(names[-1])
        batch_first: bool = (module if attention else module.self_attn).batch_first  # type: ignore[union-attr, assignment]
        if attention and given["query"] is not given["key"]:
            real = None
        elif mask is None:
            real = _fitting(watch.mask, given[names[0]], batch_first)
        else:
            real = (~mask if mask.dtype == torch.bool else torch.isfinite(mask)) if mask.ndim == 2 else None
        # Attention multiplies (time, batch), an encoder layer what it was given.
        time_first = attention or not batch_first
        watch.padding.append(torch.empty(0, dtype=torch.bool) if real is None else _turned(real, time_first).flatten())

    def end(*_: Any) -> None:
        watch.padding.pop()

    return begin, end
