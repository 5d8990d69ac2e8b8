"""Parser of IDX files, the format of MNIST and Fashion-MNIST, gzipped or not.

A file is two zero bytes, the type of the values (8: uint8), the number of dimensions, each dimension as a big-endian
32-bit integer, then the values. Format: Y. LeCun, C. Cortes and C. Burges, the MNIST database.
"""

from __future__ import annotations

import gzip
import math
import struct
from pathlib import Path
from typing import IO, cast

import torch
from torch import Tensor

from nesskit.errors import DataError
from nesskit.streams.base import Examples
from nesskit.streams.reading import checked_labels, opened, read_exactly

GZIP_MAGIC = b"\x1f\x8b"
UINT8 = 8


def read_idx_examples(images: Path, labels: Path, classes: int = 10) -> Examples:
    """A file of images and its file of labels as x (n, 1, 28, 28) uint8, y (n,) int64.

    Raises:
        DataError: a damaged file, another format or size, unequal numbers of images and labels, a label out of range.
    """
    x, y = read_idx(images, dimensions=3), read_idx(labels, dimensions=1)
    if x.shape[1:] != (28, 28):
        raise DataError(f"{images} holds images of {x.shape[1]} × {x.shape[2]} pixels, expected 28 × 28")
    if len(x) != len(y):
        raise DataError(f"{images} holds {len(x)} images, but {labels} holds {len(y)} labels")
    return Examples(x.unsqueeze(1), checked_labels(y, range(classes), str(labels)))


def read_idx(path: Path, dimensions: int) -> Tensor:
    """An IDX file of unsigned bytes with that many dimensions, as a uint8 tensor.

    Raises:
        DataError: a damaged file, another type or number of dimensions, more or fewer values than the header says.
    """
    with opened(path, "an IDX file"), path.open("rb") as file:
        packed = file.read(2) == GZIP_MAGIC
        file.seek(0)
        with cast("IO[bytes]", gzip.GzipFile(fileobj=file)) if packed else file as stream:
            shape, values = _read_values(stream, dimensions)
            if stream.read(1):
                raise ValueError(f"it goes on after the {len(values)} values that its header announces")
    if not values:
        raise DataError(f"{path} holds no value: its dimensions are {' × '.join(map(str, shape))}")
    return torch.frombuffer(values, dtype=torch.uint8).view(shape)


def _read_values(stream: IO[bytes], dimensions: int) -> tuple[tuple[int, ...], bytearray]:
    magic = bytes(read_exactly(stream, 4, "the magic number"))
    expected = bytes([0, 0, UINT8, dimensions])
    if magic != expected:
        raise ValueError(f"it begins with {magic.hex()}, expected {expected.hex()}: {dimensions}-dimensional uint8")
    shape = struct.unpack(f">{dimensions}I", read_exactly(stream, 4 * dimensions, "the list of dimensions"))
    return shape, read_exactly(stream, math.prod(shape), "the list of values")
