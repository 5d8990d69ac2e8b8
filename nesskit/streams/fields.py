"""Inputs of more than one tensor, and inputs that are not in memory; both are cut into rows as one tensor is.

What lies in a stream (:data:`Stored`) is a tensor, or :class:`Fields`, such as token ids beside a mask, or
:class:`OnDisk`, which a dataset reads. What a network is given (:data:`Inputs`) has been read. All three have rows
``x[rows]``, their number ``len(x)``, ``split``, ``to``, ``clone``, ``device`` and ``nbytes``, so that who hands out
batches or remembers examples need not ask which it has.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, ItemsView, Iterator, KeysView, Mapping, Sequence, ValuesView
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.data import DataLoader, Dataset, IterableDataset

from nesskit.errors import DataError

MASK = "attention_mask"  # (n, L), 0 where a sentence has ended: the name that transformers give it


class Fields(Mapping[str, Tensor]):
    """Several tensors of as many rows, by name: the keyword arguments of a network, ``network(**fields)``.

    As in a data frame, iteration goes over the names, but ``len`` is the number of rows; ``fields["input_ids"]`` is one
    tensor, ``fields[rows]`` are the Fields of these rows.

    Args:
        tensors: name → (n, …), as tensors or arrays; their types stay what they are.

    Raises:
        DataError: there is none, a name is no string, or their lengths differ.
    """

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors: dict[str, Tensor] = {name: torch.as_tensor(tensor) for name, tensor in tensors.items()}
        if not self._tensors:
            raise DataError("a dict of inputs is empty: name at least one tensor, such as input_ids")
        nameless = [name for name in self._tensors if not isinstance(name, str)]
        if nameless:
            raise DataError(
                f"a dict of inputs has the key {nameless[0]!r}: name each tensor as the network's forward does"
            )
        scalars = [name for name, tensor in self._tensors.items() if not tensor.ndim]
        if scalars:
            raise DataError(f"the field '{scalars[0]}' is a single number: a field has one row a sample, (n, …)")
        if len({len(tensor) for tensor in self._tensors.values()}) > 1:
            lengths = ", ".join(f"{name} has {len(tensor)}" for name, tensor in self._tensors.items())
            raise DataError(f"the fields of inputs differ in their numbers of rows: {lengths}")

    @overload
    def __getitem__(self, key: str) -> Tensor: ...
    @overload
    def __getitem__(self, key: slice | Tensor) -> Fields: ...
    def __getitem__(self, key: str | slice | Tensor) -> Tensor | Fields:
        if isinstance(key, str):
            return self._tensors[key]
        return self.each(lambda tensor: tensor[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __len__(self) -> int:
        return len(next(iter(self._tensors.values())))

    # Views of a mapping take their length from it; here it is that of the rows.
    def keys(self) -> KeysView[str]:
        """The names."""
        return self._tensors.keys()

    def values(self) -> ValuesView[Tensor]:
        """The tensors."""
        return self._tensors.values()

    def items(self) -> ItemsView[str, Tensor]:
        """Names and tensors."""
        return self._tensors.items()

    # Equality of tensors is no single truth, so two Fields are equal if they are one.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Fields({described(self)})"

    def each(self, change: Callable[[Tensor], Tensor]) -> Fields:
        """Every tensor changed."""
        return Fields({name: change(tensor) for name, tensor in self._tensors.items()})

    def to(self, device: torch.device | str) -> Fields:
        """On ``device``; their types stay what they are."""
        return self.each(lambda tensor: tensor.to(device))

    def clone(self) -> Fields:
        """A copy."""
        return self.each(Tensor.clone)

    def split(self, size: int) -> tuple[Fields, ...]:
        """In pieces of ``size`` rows."""
        return tuple(self[start : start + size] for start in range(0, len(self), size)) or (self,)

    @property
    def device(self) -> torch.device:
        """Where the first tensor lies."""
        return next(iter(self._tensors.values())).device

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    @property
    def mask(self) -> Tensor | None:
        """The (n, L) ``attention_mask``, if there is one."""
        mask = self._tensors.get(MASK)
        return mask if mask is not None and mask.ndim == 2 else None

    @property
    def lengths(self) -> Tensor | None:
        """How many columns each row (n,) has up to its last one that is no padding; None if there is no mask."""
        if self.mask is None:
            return None
        columns = torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)
        return torch.where(self.mask != 0, columns, 0).amax(dim=1) if len(columns) else columns.new_zeros(len(self))

    def prepared(self) -> Fields:
        """As a network sees them: without columns that are padding in every row, floating-point ones as float32.

        Integers keep their type: they may be indices. Which fields have such columns :meth:`with_columns` says.
        """
        fields = self.each(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)
        lengths = fields.lengths
        return fields if lengths is None or not len(self) else fields.with_columns(max(int(lengths.max()), 1))

    def with_columns(self, count: int) -> Fields:
        """With ``count`` columns, cut or padded by zeros on the right, where the mask (n, L) has L.

        These are the fields whose shape begins with (n, L): token ids, types of tokens, embeddings (n, L, d).
        """
        mask = self.mask
        if mask is None or mask.shape[1] == count:
            return self

        def change(tensor: Tensor) -> Tensor:
            if tensor.shape[:2] != mask.shape:
                return tensor
            return pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, count - tensor.shape[1]))  # a negative one cuts

        return self.each(change)


class OnDisk:
    """Inputs that a map-style dataset reads when a batch of them is made, and that are forgotten after it.

    Args:
        dataset: its items are single inputs, tensors or dicts of tensors of the same shapes, without labels. With
            ``__getitems__`` it reads many at once.
        rows: which of its items, (n,); None: all.
        device: where they are put once they are read.

    Raises:
        DataError: the dataset has no length, or is one to be iterated over.
    """

    def __init__(self, dataset: Dataset[Any], rows: Tensor | None = None, device: torch.device | str = "cpu") -> None:
        if isinstance(dataset, IterableDataset):
            raise DataError(
                "inputs cannot come from an IterableDataset, whose rows cannot be chosen: give a map-style dataset, "
                "with __getitem__ and __len__"
            )
        if rows is None and not hasattr(dataset, "__len__"):
            raise DataError(f"the dataset {type(dataset).__name__} has no __len__, so its rows cannot be chosen")
        self.dataset, self.device = dataset, torch.device(device)
        self.rows = torch.arange(len(dataset)) if rows is None else rows  # type: ignore[arg-type]
        self._measured: list[Tensor | None] = []  # the lengths, once they are known, of whatever device

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | Tensor) -> OnDisk:
        """These rows, which are still not read."""
        chosen = self.rows[rows.cpu() if isinstance(rows, Tensor) else rows]
        return OnDisk(self.dataset, chosen, self.device)

    def to(self, device: torch.device | str) -> OnDisk:
        """Put on ``device`` once they are read."""
        moved = copy.copy(self)
        moved.device = torch.device(device)
        return moved

    def split(self, size: int) -> tuple[OnDisk, ...]:
        """In pieces of ``size`` rows."""
        return tuple(OnDisk(self.dataset, rows, self.device) for rows in self.rows.split(size))

    def clone(self) -> Inputs:
        """A copy, which is in memory: see :meth:`read`."""
        return self.read()

    def read(self) -> Inputs:
        """The rows, stacked.

        Raises:
            DataError: there are none, they do not fit together, or are no dense, real and finite inputs.
        """
        numbers = self.rows.tolist()
        if not numbers:
            raise DataError("no row of a dataset was asked for, so its inputs have no shape")
        together = getattr(self.dataset, "__getitems__", None)
        items = together(numbers) if together else [self.dataset[number] for number in numbers]
        x = _stacked(items)
        refuse_unusable(x, f"rows of the dataset {type(self.dataset).__name__}")
        return x.to(self.device)

    @property
    def lengths(self) -> Tensor | None:
        """Those of :meth:`Fields.lengths`, for which all rows are read once, a few at a time."""
        if not self._measured:
            first = self[:1].read() if len(self) else None
            masked = isinstance(first, Fields) and first.mask is not None
            self._measured.append(self._read_lengths() if masked else None)
        return self._measured[0]

    def _read_lengths(self, at_once: int = 8) -> Tensor:
        parts = (part.read() for part in self.split(at_once))
        return torch.cat([part.lengths for part in parts if isinstance(part, Fields) and part.lengths is not None])

    @property
    def nbytes(self) -> int:
        """Bytes of all that would be read, taking each row for as large as the first."""
        return len(self) * self[:1].read().nbytes if len(self) else 0


Inputs = Tensor | Fields
Stored = Tensor | Fields | OnDisk


def _stacked(items: Sequence[Any]) -> Inputs:
    """Single inputs as rows."""
    try:
        if isinstance(items[0], Mapping):
            return Fields({name: torch.stack([torch.as_tensor(item[name]) for item in items]) for name in items[0]})
        return torch.stack([torch.as_tensor(item) for item in items])
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            "items of a dataset must be inputs alone, tensors of one shape or dicts of such, with the labels in a "
            f"tensor beside it; what came was {type(items[0]).__name__} ({reason})"
        ) from error


def as_stored(x: Any) -> Stored:
    """What a person gives as inputs as what lies in a stream.

    Args:
        x: a tensor or array (n, …), a dict of them, a map-style dataset, or a loader, of which the dataset is taken and
            nothing else: neither its order nor its batches.
    """
    if isinstance(x, Tensor | Fields | OnDisk):
        return x
    if isinstance(x, DataLoader):
        return OnDisk(x.dataset)
    if isinstance(x, Dataset):
        return OnDisk(x)
    return Fields(x) if isinstance(x, Mapping) else torch.as_tensor(x)


def in_memory(x: Stored) -> Inputs:
    """The inputs, read if they are not."""
    return x.read() if isinstance(x, OnDisk) else x


def packed_inputs(x: Stored) -> Tensor | dict[str, Tensor]:
    """The inputs as a checkpoint keeps them, in memory: :func:`as_stored` makes them what they were."""
    read = in_memory(x)
    return dict(read) if isinstance(read, Fields) else read


def joined(parts: Sequence[Inputs]) -> Inputs:
    """Inputs one below the other; sentences padded to different lengths are padded to the longest of them.

    Raises:
        DataError: some are tensors and some are Fields, or their names differ.
    """
    fields = [part for part in parts if isinstance(part, Fields)]
    if not fields:
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    names = fields[0].keys()
    if len(fields) < len(parts) or any(part.keys() != names for part in fields):
        raise DataError(
            f"inputs of tasks that are computed with together must have the same fields: {', '.join(names)}"
        )
    masks = [part.mask for part in fields]
    columns = max((mask.shape[1] for mask in masks if mask is not None), default=0)
    alike = [part.with_columns(columns) for part in fields]
    return Fields({name: torch.cat([part[name] for part in alike]) for name in names})


def refuse_unusable(x: Inputs, where: str) -> None:
    """A DataError for inputs that are sparse, complex, NaN or infinite; ``where`` says which they are."""
    for name, tensor in x.items() if isinstance(x, Fields) else [("", x)]:
        subject, verb = (f"the field '{name}'", "holds") if name else ("the inputs", "hold")
        if tensor.layout is not torch.strided or tensor.is_complex():
            raise DataError(f"{where}: {subject} must be dense and real, got {tensor.dtype}, {tensor.layout}")
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise DataError(f"{where}: {subject} {verb} NaN or infinite values")


def shape_of(x: Inputs) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
    """The shape of one input; of each field."""
    return {name: tuple(t.shape[1:]) for name, t in x.items()} if isinstance(x, Fields) else tuple(x.shape[1:])


def described(x: Inputs) -> str:
    """Types and shapes of single inputs, for a message."""
    if isinstance(x, Fields):
        return ", ".join(f"{name}: {described(tensor)}" for name, tensor in x.items())
    return f"{x.dtype} of shape {tuple(x.shape[1:])}"
