"""Tasks and streams of tasks: checked once, normalised where they are used; what inputs may be, fields.py says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, overload

import torch
from torch import Tensor

from nesskit.errors import DataError
from nesskit.streams.fields import Fields, Inputs, OnDisk, Stored, as_stored, in_memory, refuse_unusable, shape_of


class Examples(NamedTuple):
    """Inputs ``x`` (n, …) and labels ``y`` (n,), the labels counted from 0 within the task."""

    x: Any  # one of Stored (fields.py); who makes or takes a stream of images knows that it has tensors
    y: Tensor


@dataclass(frozen=True)
class Normalisation:
    """(x - mean) / std, with a mean and a std for each channel, applied to x in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        mean, std = tuple(self.mean), tuple(self.std)
        if len(mean) != len(std) or not mean:
            raise DataError(f"a normalisation needs a mean and a std for each channel, got {len(mean)} and {len(std)}")
        if not all(math.isfinite(value) for value in (*mean, *std)) or min(std) <= 0:
            raise DataError(f"a normalisation needs finite means and stds above 0, got {mean} and {std}")


Channels = tuple[Tensor, Tensor]  # mean and std, one a channel, to be broadcast over a batch


def channels_of(normalisation: Normalisation | None, x: Stored) -> Channels | None:
    """Mean and std as tensors that fit inputs like ``x``, where these are; None if nothing is normalised."""
    if normalisation is None:
        return None
    like = in_memory(x[:1])
    assert isinstance(like, Tensor), "a task refuses a normalisation of fields"
    shape = (-1, *[1] * (like.ndim - 2))
    mean = torch.tensor(normalisation.mean, device=x.device).view(shape)
    std = torch.tensor(normalisation.std, device=x.device).view(shape)
    return mean, std


@overload
def normalise(x: Tensor, normalisation: Normalisation | Channels | None) -> Tensor: ...
@overload
def normalise(x: Stored, normalisation: Normalisation | Channels | None) -> Inputs: ...
def normalise(x: Stored, normalisation: Normalisation | Channels | None) -> Inputs:
    """See :meth:`Task.normalise`.

    With :func:`channels_of` once instead of a normalisation every time, a GPU is not waited for.
    """
    x = in_memory(x)
    if isinstance(x, Fields):
        return x.prepared()
    if not (x.is_floating_point() or x.dtype in (torch.uint8, torch.bool)):
        return x  # numbers of tokens
    scaled = x.to(torch.float32) / 255 if x.dtype == torch.uint8 else x.to(torch.float32)
    channels = channels_of(normalisation, x) if isinstance(normalisation, Normalisation) else normalisation
    return scaled if channels is None else (scaled - channels[0]) / channels[1]


@dataclass(frozen=True, eq=False)
class Task:
    """One task of a stream.

    Attributes:
        name: what a person calls it.
        classes: names of its classes; label k means ``classes[k]``.
        train, valid, test: examples, as tensors or numpy arrays; ``valid`` may be empty. x is uint8 (0 … 255) or
            floating, or int64 (n, length) for tokens, y is int64 (n,). The test examples are in random order, so that
            a batch of them is a fair sample (BatchNorm may depend on it). x may also be a dict of tensors, the keyword
            arguments of a network, which become :class:`Fields`; integers among them stay what they are. Or a map-style
            ``torch.utils.data.Dataset`` of single inputs, which are read batch by batch (:class:`OnDisk`); of a
            ``DataLoader`` its dataset is taken.
        normalisation: what :meth:`normalise` does; None: nothing beyond uint8 → [0, 1].

    Raises:
        DataError: no training or test example, a label out of range, labels that are one-hot, NaN or infinite inputs,
            images of other integers than uint8 or with their channels last, sizes that differ, fields of other names or
            lengths, a dataset whose rows cannot be chosen. Of a dataset the first row is looked at here, every other
            one when it is read.
    """

    name: str
    classes: tuple[str, ...]
    train: Examples
    valid: Examples
    test: Examples
    normalisation: Normalisation | None = None

    def __post_init__(self) -> None:
        for part in ("train", "valid", "test"):
            object.__setattr__(self, part, self._as_tensors(part, getattr(self, part)))
            self._check(part, getattr(self, part))

    def _as_tensors(self, part: str, examples: Examples) -> Examples:
        """The examples as tensors; numpy arrays share their memory."""
        where = f"task '{self.name}', {part} examples"
        try:
            x, y = examples
            return Examples(as_stored(x), y if isinstance(y, Tensor) else torch.as_tensor(y))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{where} must be a pair of inputs and labels, as tensors or arrays: {error}") from error

    def _check(self, part: str, examples: Examples) -> None:
        where = f"task '{self.name}', {part} examples"
        x, y = examples
        if (isinstance(x, Tensor) and not x.ndim) or y.ndim != 1:
            shape = tuple(y.shape)
            hint = "they look one-hot: give the number of each class, y.argmax(1)" if y.ndim == 2 else "one a sample"
            raise DataError(f"{where}: labels must be of shape (n,), got {shape}; {hint}")
        if len(x) != len(y):
            raise DataError(f"{where}: {len(x)} inputs but {len(y)} labels")
        if len(x) == 0 and part != "valid":
            raise DataError(f"{where}: there is no sample; every task needs some to train and to test on")
        if y.dtype != torch.int64:
            raise DataError(f"{where}: labels must be int64, got {y.dtype}")
        if len(y) and not (int(y.min()) >= 0 and int(y.max()) < len(self.classes)):
            raise DataError(
                f"{where}: labels run from {int(y.min())} to {int(y.max())}, "
                f"but {len(self.classes)} classes allow 0 … {len(self.classes) - 1}"
            )
        if isinstance(x, OnDisk) and not len(x):
            return  # of no row there is no shape
        self.check_inputs(where, x)

    def check_inputs(self, where: str, x: Stored) -> None:
        """Inputs ``x`` (n, …) are such as those that the task trains on; ``where`` says in an error which they are.

        Raises:
            DataError: they are not.
        """
        seen, trained = _looked_at(where, x), _looked_at(where, self.train.x)
        self._check_inputs(where, seen)
        found, expected = shape_of(seen), shape_of(trained)
        if found != expected:
            raise DataError(f"{where}: shape {found} differs from {expected} in training")

    def _check_inputs(self, where: str, x: Inputs) -> None:
        refuse_unusable(x, where)
        if isinstance(x, Fields):
            if self.normalisation is not None:
                raise DataError(
                    f"{where}: a normalisation is for images, given as one tensor, and these are the fields "
                    f"{', '.join(x)}: scale them yourself"
                )
            return
        counted = not x.is_floating_point() and x.dtype not in (torch.uint8, torch.bool)
        if counted and (x.ndim > 2 or self.normalisation is not None):
            raise DataError(
                f"{where}: images must be uint8 (0 … 255) or floating, got {x.dtype}: convert them with "
                ".to(torch.uint8), or scale them yourself"
            )
        if counted and x.dtype not in (torch.int32, torch.int64):
            raise DataError(f"{where}: inputs must be uint8, floating, or int64 for tokens, got {x.dtype}")
        channels = len(self.normalisation.mean) if self.normalisation else 0
        if channels and (x.ndim < 2 or (channels not in (1, x.shape[1]) and x.shape[1] != 1)):
            last = "; they look like channels last: permute them to (n, channels, height, width)"
            hint = last if x.ndim == 4 and x.shape[-1] == channels else ""
            raise DataError(
                f"{where}: a normalisation of {channels} channels does not fit inputs of shape "
                f"{tuple(x.shape[1:])}{hint}"
            )

    @overload
    def normalise(self, x: Tensor) -> Tensor: ...
    @overload
    def normalise(self, x: Stored) -> Inputs: ...
    def normalise(self, x: Stored) -> Inputs:
        """Raw inputs (n, …) as the network sees them: float32, on the device that ``x`` is on; tokens as they are.

        Grey images (n, 1, h, w) with a mean and std of three channels become (n, 3, h, w) by broadcasting. Fields lose
        columns in which every row is padding, see :meth:`Fields.prepared`; what is not in memory is read.
        """
        return normalise(x, self.normalisation)

    @property
    def input_shape(self) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
        """Shape of one input as the network sees it; of each field, with all of its padding."""
        first = in_memory(self.train.x[:1])
        return shape_of(first if isinstance(first, Fields) else self.normalise(first))


@dataclass(frozen=True, eq=False)
class TaskStream(Sequence[Task]):
    """Tasks in the order in which they are learned.

    Attributes:
        name: the name that :func:`nesskit.load_stream` knows it by.
        tasks: any sequence, so a long stream may make its tasks on demand.
        checksums: SHA-256 of every data source, for the record of a run.
        tokenizer: what made tokens of the sentences, as :func:`nesskit.pretrained` knows it; None: there are none, or
            nobody knows.
        reference: inputs (n, …) of no task, as those of a task, that stand for what a pretrained network knows already:
            a method may protect them before the first task. They are normalised as the first task's are.
        held_out: further inputs of no task, 3 or more. Nobody trains on them or protects them: by them is measured how
            much of what a network knew at first is kept.

    Raises:
        DataError: there is no task, or the inputs of no task are not such as the first task's.
    """

    name: str
    tasks: Sequence[Task]
    checksums: Mapping[str, str] = field(default_factory=dict)
    tokenizer: str | None = None
    reference: Stored | None = None
    held_out: Stored | None = None

    def __post_init__(self) -> None:
        if not len(self.tasks):
            raise DataError(f"stream '{self.name}' has no task")
        for part, least in (("reference", 1), ("held_out", 3)):
            given = getattr(self, part)
            if given is not None:
                object.__setattr__(self, part, self._of_no_task(f"stream '{self.name}', {part} inputs", given, least))

    def _of_no_task(self, where: str, given: Any, least: int) -> Stored:
        """Inputs that belong to no task, checked as those of the first are."""
        try:
            x = as_stored(given)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{where} must be a tensor, an array or a dict of them, without labels: {error}") from error
        if (isinstance(x, Tensor) and not x.ndim) or len(x) < least:
            raise DataError(f"{where}: there must be at least {least}, of shape (n, …)")
        self.tasks[0].check_inputs(where, x)
        return x

    def __len__(self) -> int:
        return len(self.tasks)

    @overload
    def __getitem__(self, index: int) -> Task: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Task]: ...
    def __getitem__(self, index: int | slice) -> Task | Sequence[Task]:
        return self.tasks[index]

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def first(self, count: int) -> TaskStream:
        """The stream of the first ``count`` tasks."""
        if not 1 <= count <= len(self):
            raise DataError(
                f"stream '{self.name}' has {len(self)} tasks, so a number of tasks must be 1 … {len(self)}, got {count}"
            )
        return replace(self, tasks=self.tasks[:count])


def _looked_at(where: str, x: Stored) -> Inputs:
    """All inputs in memory, or the first of those that are not."""
    try:
        return in_memory(x[:1]) if isinstance(x, OnDisk) else x
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def split_validation(examples: Examples, share: float) -> tuple[Examples, Examples]:
    """The last ``share`` of ``examples`` as validation, rounded down: (train, valid). They must be in random order."""
    x, y = as_stored(examples.x), examples.y
    count = int(share * len(y))  # rounded down as in the authors' code: 3662 of SVHN's 73257 at 5 %
    cut = len(y) - count
    return Examples(x[:cut], y[:cut]), Examples(x[cut:], y[cut:])
