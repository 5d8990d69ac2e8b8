"""Tasks and streams of tasks: tensors in memory, checked once, normalised where they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, overload

import torch
from torch import Tensor

from nesskit.errors import DataError


class Examples(NamedTuple):
    """Inputs ``x`` (n, …) and labels ``y`` (n,), the labels counted from 0 within the task."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Normalisation:
    """(x - mean) / std, with a mean and a std for each channel, applied to x in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def normalise(x: Tensor, normalisation: Normalisation | None) -> Tensor:
    """See :meth:`Task.normalise`."""
    scaled = x.to(torch.float32) / 255 if x.dtype == torch.uint8 else x.to(torch.float32)
    if normalisation is None:
        return scaled
    channels = (-1, *[1] * (x.ndim - 2))
    mean = torch.tensor(normalisation.mean, device=x.device).view(channels)
    std = torch.tensor(normalisation.std, device=x.device).view(channels)
    return (scaled - mean) / std


@dataclass(frozen=True, eq=False)
class Task:
    """One task of a stream.

    Attributes:
        name: what a person calls it.
        classes: names of its classes; label k means ``classes[k]``.
        train, valid, test: examples; ``valid`` may be empty. x is uint8 (0 … 255) or floating, y is int64. The test
            examples are in random order, so that a batch of them is a fair sample (BatchNorm may depend on it).
        normalisation: what :meth:`normalise` does; None: nothing beyond uint8 → [0, 1].

    Raises:
        DataError: no training or test example, a label out of range, NaN or infinite inputs, sizes that differ.
    """

    name: str
    classes: tuple[str, ...]
    train: Examples
    valid: Examples
    test: Examples
    normalisation: Normalisation | None = None

    def __post_init__(self) -> None:
        for part in ("train", "valid", "test"):
            self._check(part, getattr(self, part))

    def _check(self, part: str, examples: Examples) -> None:
        where = f"task '{self.name}', {part} examples"
        x, y = examples
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
        if x.is_floating_point() and not torch.isfinite(x).all():
            raise DataError(f"{where}: the inputs hold NaN or infinite values")
        if x.shape[1:] != self.train.x.shape[1:]:
            raise DataError(
                f"{where}: shape {tuple(x.shape[1:])} differs from {tuple(self.train.x.shape[1:])} in training"
            )

    def normalise(self, x: Tensor) -> Tensor:
        """Raw inputs (n, …) as the network sees them: float32, on the device that ``x`` is on.

        Grey images (n, 1, h, w) with a mean and std of three channels become (n, 3, h, w) by broadcasting.
        """
        return normalise(x, self.normalisation)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input as the network sees it."""
        return tuple(self.normalise(self.train.x[:1]).shape[1:])


@dataclass(frozen=True, eq=False)
class TaskStream(Sequence[Task]):
    """Tasks in the order in which they are learned.

    Attributes:
        name: the name that :func:`nesskit.load_stream` knows it by.
        tasks: any sequence, so a long stream may make its tasks on demand.
        checksums: SHA-256 of every data source, for the record of a run.
    """

    name: str
    tasks: Sequence[Task]
    checksums: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.tasks):
            raise DataError(f"stream '{self.name}' has no task")

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
        return TaskStream(self.name, self.tasks[:count], self.checksums)


def split_validation(examples: Examples, share: float) -> tuple[Examples, Examples]:
    """The last ``share`` of ``examples`` as validation, rounded down: (train, valid). They must be in random order."""
    count = int(share * len(examples.y))  # rounded down as in the authors' code: 3662 of SVHN's 73257 at 5 %
    cut = len(examples.y) - count
    return Examples(examples.x[:cut], examples.y[:cut]), Examples(examples.x[cut:], examples.y[cut:])
