"""Streams of tasks by name. Loaders are imported when a stream is loaded."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from nesskit.errors import DataError, UnknownNameError
from nesskit.streams.fetch import check_stream, fetch_stream

if TYPE_CHECKING:
    from nesskit.streams.base import TaskStream

# name -> "module:function"; each function takes (seed, validation_share) and returns a TaskStream.
LOADERS = {
    "permuted-digits": "nesskit.streams.digits:permuted_digits",
    "split-digits": "nesskit.streams.digits:split_digits",
    "rotated-digits": "nesskit.streams.digits:rotated_digits",
    "split-cifar100": "nesskit.streams.images:split_cifar100",
    "five-datasets": "nesskit.streams.images:five_datasets",
    "split-miniimagenet": "nesskit.streams.images:split_miniimagenet",
}

__all__ = ["LOADERS", "check_stream", "fetch_stream", "load_stream"]


def load_stream(name: str, seed: int = 0, validation_share: float = 0.0) -> TaskStream:
    """The stream called ``name``.

    Args:
        name: one of ``LOADERS``.
        seed: determines splits, pixel permutations and class orders.
        validation_share: the share of the training examples of each task that is set aside as ``task.valid``.

    Raises:
        UnknownNameError: no stream of that name; says which is nearest.
        DataError: the data is missing or damaged, or the share is not in [0, 1).
    """
    if name not in LOADERS:
        raise UnknownNameError("stream", name, LOADERS)
    if not 0 <= validation_share < 1:
        raise DataError(f"validation_share must lie in [0, 1), got {validation_share}")
    module, function = LOADERS[name].split(":")
    stream: TaskStream = getattr(importlib.import_module(module), function)(seed, validation_share)
    return stream
