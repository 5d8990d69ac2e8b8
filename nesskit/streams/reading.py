"""What all parsers of data files share: reading no more than is there, checking labels, and one kind of error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from nesskit.errors import DataError

# No file of any stream holds a larger piece; a damaged header that asks for more must not exhaust the memory.
LARGEST_PIECE = 2 << 30
CHUNK = 1 << 20


@contextmanager
def opened(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a library raises while it reads ``path`` into a DataError.

    gzip, tarfile, zipfile, pickle and scipy raise errors of a dozen kinds on damaged files (and document few of them),
    so every one is caught; it stays visible as the cause. Little but calls of such libraries belongs inside.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{path} cannot be read as {kind}: {error or type(error).__name__}") from error


def read_exactly(stream: IO[bytes], size: int, what: str) -> bytearray:
    """The next ``size`` bytes of what is read within :func:`opened`, in a buffer that tensors share without a copy.

    Raises:
        EOFError: the stream ends before.
        ValueError: ``size`` is beyond anything that a data set holds.
    """
    if not 0 <= size <= LARGEST_PIECE:
        raise ValueError(f"{what} claims to be {size} bytes long, more than any data set here holds")
    buffer = bytearray(size)
    view, filled = memoryview(buffer), 0
    while filled < size:
        count = stream.readinto(view[filled : filled + CHUNK])  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"{what} ends after {filled} of {size} bytes")
        filled += count
    return buffer


def checked_labels(labels: Tensor, allowed: range, what: str) -> Tensor:
    """Labels (n,) as int64, each of them in ``allowed``; else a DataError that names the first that is not."""
    labels = labels.to(torch.int64)
    wrong = torch.nonzero((labels < allowed.start) | (labels >= allowed.stop))
    if len(wrong):
        index = int(wrong[0])
        expected = f"{allowed.start} … {allowed.stop - 1}"
        raise DataError(f"{what}: the label of sample {index} is {int(labels[index])}, expected {expected}")
    return labels
