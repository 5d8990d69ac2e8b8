"""Parser of the cropped digits of SVHN, MATLAB files with ``X`` (32, 32, 3, n) and ``y`` (n, 1).

Data: Y. Netzer et al., Reading Digits in Natural Images with Unsupervised Feature Learning, 2011. Format: MathWorks,
MAT-File Format, level 5. Only what these files need of it is read here: scipy's reader can bring down the whole process
on a damaged file (seen with version 1.17), and this way the training path does without scipy.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch

from nesskit.errors import DataError
from nesskit.streams.base import Examples
from nesskit.streams.reading import CHUNK, LARGEST_PIECE, checked_labels, opened, read_exactly

HEADER_BYTES = 128
LONGEST_NAME = 63  # of a variable in MATLAB, and far more than its flags and dimensions take
LEVEL_5_LITTLE_ENDIAN = b"\x00\x01IM"  # the last bytes of the header
INT32, UINT32, MATRIX, COMPRESSED = 5, 6, 14, 15
NUMERIC_CLASSES = range(6, 16)  # the others are cells, structs, text and the like
NUMBER_TYPES = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", INT32: "<i4", UINT32: "<u4", 7: "<f4", 9: "<f8"}


def read_svhn(path: Path) -> Examples:
    """``train_32x32.mat`` or ``test_32x32.mat`` as x (n, 3, 32, 32) uint8, a view of the bytes read, and y (n,) int64.

    The file calls the digit 0 ten; here it is 0.

    Raises:
        DataError: a damaged file, a missing variable, another shape or type, a label beyond 1 … 10.
    """
    with opened(path, "a MATLAB file of level 5"), path.open("rb") as file:
        variables = _variables(file, {"X", "y"})
    for name in ("X", "y"):
        if name not in variables:
            raise DataError(f"{path} has no variable {name}; the official file does")
    images, labels = variables["X"], variables["y"]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3) or not images.size:
        raise DataError(f"{path}: X is {images.dtype} {images.shape}, expected uint8 (32, 32, 3, n)")
    if labels.dtype.kind not in "iu" or labels.size != images.shape[3]:
        raise DataError(f"{path}: y is {labels.dtype} {labels.shape}, expected {images.shape[3]} integers")
    y = checked_labels(torch.from_numpy(labels.reshape(-1).astype(np.int64)), range(1, 11), f"{path}, y")
    return Examples(torch.from_numpy(images).permute(3, 2, 0, 1), y % 10)


def _variables(file: IO[bytes], wanted: set[str]) -> dict[str, np.ndarray]:
    """The wanted variables, in one pass that ends when all have been found."""
    header = read_exactly(file, HEADER_BYTES, "the header")
    if not header.endswith(LEVEL_5_LITTLE_ENDIAN):
        raise ValueError(f"its header ends with {header[-4:].hex()}, expected {LEVEL_5_LITTLE_ENDIAN.hex()}")
    variables: dict[str, np.ndarray] = {}
    while len(variables) < len(wanted) and (tag := file.read(8)):
        kind, size = struct.unpack("<II", tag)
        end = file.tell() + size
        stream: IO[bytes] = file
        if kind == COMPRESSED:
            stream = cast("IO[bytes]", io.BufferedReader(_Inflating(file, size), CHUNK))
            kind, _ = struct.unpack("<II", read_exactly(stream, 8, "a compressed variable"))
        if kind != MATRIX:
            raise ValueError(f"it holds an element of kind {kind}, expected a variable")
        name, values = _matrix(stream, wanted)
        if values is not None:
            variables[name] = values
            if stream is not file and stream.read(1):  # also makes zlib compare its checksum
                raise ValueError(f"the compressed variable {name} goes on after its values")
        file.seek(end)
    return variables


def _matrix(stream: IO[bytes], wanted: set[str]) -> tuple[str, np.ndarray | None]:
    """Name and values of one variable, in its own shape; None instead of the values of one that is not wanted."""
    flags = _element(stream, "the flags of a variable", LONGEST_NAME)[1]
    shape = _numbers(*_element(stream, "the dimensions of a variable", LONGEST_NAME)).tolist()
    name = _element(stream, "the name of a variable", LONGEST_NAME)[1].decode("ascii", errors="replace")
    if name not in wanted:
        return name, None
    if len(flags) != 8 or flags[0] not in NUMERIC_CLASSES:
        raise ValueError(f"the variable {name} is no array of numbers")
    values = _numbers(*_element(stream, f"the variable {name}"))
    if min(shape, default=0) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"the variable {name} has {len(values)} values for its dimensions {shape}")
    return name, values.reshape(shape, order="F")


def _element(stream: IO[bytes], what: str, limit: int = LARGEST_PIECE) -> tuple[int, bytearray]:
    """Kind and content of the next element, which may lie in its own tag. Elements fill multiples of 8 bytes."""
    tag = read_exactly(stream, 8, what)
    kind, size = struct.unpack("<II", tag)
    if kind >> 16:
        return kind & 0xFFFF, tag[4 : 4 + min(kind >> 16, 4)]
    if size > limit:
        raise ValueError(f"{what} claims to be {size} bytes long, more than the {limit} that it may be")
    content = read_exactly(stream, size, what)
    read_exactly(stream, -size % 8, what)
    return kind, content


def _numbers(kind: int, content: bytearray) -> np.ndarray:
    if kind not in NUMBER_TYPES:
        raise ValueError(f"it holds values of kind {kind}, which are no plain numbers")
    return np.frombuffer(content, NUMBER_TYPES[kind])


class _Inflating(io.RawIOBase):
    """The next ``size`` bytes of a file, unpacked by zlib while they are read, not all at once."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._left, self._zlib = file, size, zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """As in ``io.RawIOBase``."""
        while not self._zlib.eof:
            packed = self._zlib.unconsumed_tail or self._next_chunk()
            plain = self._zlib.decompress(packed, len(buffer))
            if plain:
                buffer[: len(plain)] = plain
                return len(plain)
        return 0

    def _next_chunk(self) -> bytes:
        chunk = self._file.read(min(CHUNK, self._left))
        if not chunk:
            raise EOFError("a compressed variable ends too early")
        self._left -= len(chunk)
        return chunk
