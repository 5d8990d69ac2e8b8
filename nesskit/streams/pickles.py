"""Parsers of the pickled data sets, notMNIST and MiniImageNet, with an unpickler that runs no code of a file's choice.

An ordinary unpickler calls any function that the file names. This one knows the six names in which numpy arrays are
written, and answers them with stand-ins of its own: only bytes, shapes and types of plain numbers get through.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from nesskit.errors import DataError
from nesskit.streams.base import Examples
from nesskit.streams.reading import LARGEST_PIECE, checked_labels, opened

MOST_READS = 5_000_000  # by the unpickler: some 40 an image, and there are 50,000
NOTMNIST_SHAPE = (1, 32, 32)
MINIIMAGENET_SHAPE = (84, 84, 3)


def read_notmnist(path: Path) -> tuple[Examples, Examples]:
    """``notmnist.zip`` as (train, test) with x (n, 1, 32, 32) uint8; the labels 0 … 9 are the letters A … J.

    The converter (nkundiushuti/notmnist_convert) left the few pictures that it could not open as black squares with the
    label A. They are kept, since the published results contain them.

    Raises:
        DataError: a damaged archive, a missing member, anything but arrays in it, a wrong shape or label.
    """
    parts = []
    for member in ("notmnist_train.pkl", "notmnist_test.pkl"):
        with opened(path, "a zip archive of pickles"), zipfile.ZipFile(path) as archive:
            if member not in archive.namelist():
                raise DataError(f"{path} has no member {member}; the published archive does")
            with archive.open(member) as stream:
                content = _load(stream, f"{path}, {member}")
        parts.append(_examples(content, "features", NOTMNIST_SHAPE, 10, f"{path}, {member}"))
    return parts[0], parts[1]


def read_miniimagenet(path: Path) -> Examples:
    """``train.pkl`` or ``test.pkl`` of MiniImageNet as x (n, 3, 84, 84) uint8 and y (n,) int64 in 0 … 99.

    The pickle is a dict of ``images``, an array (n, 84, 84, 3) or a list of such pictures, and ``labels``, an array or
    a list (facebookresearch/Adversarial-Continual-Learning writes lists).

    Raises:
        DataError: a damaged file, anything but arrays in it, a wrong shape or label; names the index of the image.
    """
    with opened(path, "a pickle"), path.open("rb") as stream:
        content = _load(stream, str(path))
    x, y = _examples(content, "images", MINIIMAGENET_SHAPE, 100, str(path))
    return Examples(x, y)


class _NumberType:
    """Stands in for ``numpy.dtype``: a number type of fixed size, such as u1 or i8, and its byte order."""

    __slots__ = ("byte_order", "code")

    def __init__(self, code: str) -> None:
        if len(code) != 2 or code[0] not in "biuf" or code[1] not in "1248":
            raise DataError(f"numpy type {code!r} is not a plain number")
        self.code, self.byte_order = code, "|"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        byte_order = _text(state[1])
        if byte_order not in ("<", ">", "|", "="):
            raise DataError(f"{byte_order!r} is no byte order")
        self.byte_order = byte_order

    def array(self, content: Any, shape: Any, order: str) -> np.ndarray:
        """``content`` as an array, without a copy."""
        dtype = np.dtype(self.byte_order + self.code)
        array: np.ndarray = np.ndarray(shape, dtype, buffer=content, order="F" if order == "F" else "C")
        if array.nbytes != len(content):
            raise DataError(f"an array of shape {shape} comes with {len(content)} bytes, expected {array.nbytes}")
        return array


class _Array:
    """Stands in for ``numpy.ndarray``; what is built of it is in ``.value``."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: np.ndarray = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, number_type, is_fortran, content = state
        self.value = number_type.array(content, shape, "F" if is_fortran else "C")


class _StandIn:
    """Stands in for a function of numpy; a pickle can call it, but not change it."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setstate__(self, _: Any) -> None:
        raise DataError("it tries to change a function")


def _number_type(code: Any, *_: Any) -> _NumberType:
    return _NumberType(_text(code))


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _scalar(number_type: _NumberType, content: bytes) -> int | float | bool:
    value: int | float | bool = number_type.array(content, (), "C").item()
    return value


def _frombuffer(content: bytes, number_type: _NumberType, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.value = number_type.array(content, shape, order)
    return array


def _encode(text: str, encoding: Any) -> bytes:
    """How Python 3 writes bytes into a pickle for Python 2."""
    if _text(encoding) != "latin1":
        raise DataError(f"it asks for the encoding {encoding!r}, expected latin1")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], _StandIn | str] = {
    ("numpy", "ndarray"): "numpy.ndarray",  # an argument of _reconstruct, never called
    ("numpy", "dtype"): _StandIn(_number_type),
    ("numpy.core.multiarray", "_reconstruct"): _StandIn(_reconstruct),
    ("numpy.core.multiarray", "scalar"): _StandIn(_scalar),
    ("numpy.core.numeric", "_frombuffer"): _StandIn(_frombuffer),
    ("_codecs", "encode"): _StandIn(_encode),
}


class _Bounded:
    """A stream of which no more is read than a data set needs: a small file can ask for much, and hold many objects."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._bytes, self._reads = stream, LARGEST_PIECE, MOST_READS

    def read(self, size: int) -> bytes:
        """As in a file."""
        return self._counted(self._stream.read(max(0, min(size, self._bytes + 1))))

    def readline(self) -> bytes:
        """As in a file."""
        return self._counted(self._stream.readline(self._bytes + 1))

    def readinto(self, buffer: Any) -> int:
        """As in a file."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def _counted(self, content: bytes) -> bytes:
        self._bytes -= len(content)
        self._reads -= 1
        if self._bytes < 0 or self._reads < 0:
            raise DataError("it holds more than any data set here")
        return content


class _ArrayUnpickler(pickle._Unpickler):
    """Loads arrays of numbers in plain containers and refuses everything else, naming it.

    The pure-Python twin of ``pickle.Unpickler``: the one in C takes as much memory as a damaged file asks for.
    """

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a global of numpy; a DataError for every other."""
        where = module.replace("numpy._core", "numpy.core")  # what numpy 2 calls it
        if (where, name) not in _STAND_INS:
            raise DataError(f"it asks for {module}.{name}, which is neither a numpy array nor a plain container")
        return _STAND_INS[where, name]


def _load(stream: IO[bytes], what: str) -> dict[str, Any]:
    """The dict that is all of ``stream``. Byte strings of Python 2 stay bytes: decoding gigabytes would double them."""
    try:
        content = _ArrayUnpickler(_Bounded(stream), encoding="bytes").load()
        rest = stream.read(1)
    except DataError as error:
        raise DataError(f"{what} is refused: {error}") from error
    if not isinstance(content, dict) or rest:
        raise DataError(f"{what} is not one pickled dict")
    return {_text(key): value for key, value in content.items()}


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _examples(content: dict[str, Any], images: str, shape: tuple[int, ...], classes: int, what: str) -> Examples:
    for key in (images, "labels"):
        if key not in content:
            raise DataError(f"{what} has no '{key}'; it has {', '.join(sorted(content)) or 'nothing'}")
    x = _image_tensor(content[images], shape, f"{what}, '{images}'")
    y = _label_tensor(content["labels"], f"{what}, 'labels'")
    if len(x) != len(y):
        raise DataError(f"{what} has {len(x)} images but {len(y)} labels")
    return Examples(x, checked_labels(y, range(classes), what))


def _image_tensor(value: Any, shape: tuple[int, ...], what: str) -> Tensor:
    """An array (n, *shape) or a list of arrays of that shape as a uint8 tensor, colour channels first."""
    if isinstance(value, _Array) and value.value.ndim:
        value = list(value.value)
    if not isinstance(value, list) or not value:
        raise DataError(f"{what} is not an array or list of images, or is empty")
    pictures = [image.value if isinstance(image, _Array) else image for image in value]
    for index, image in enumerate(pictures):
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.shape != shape:
            found = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
            raise DataError(f"{what}: image {index} is {found}, expected uint8 {shape}")
    channels_last = shape[-1] == 3
    tensor = torch.empty(len(pictures), *((3, *shape[:2]) if channels_last else shape), dtype=torch.uint8)
    for target, image in zip(tensor.numpy(), pictures, strict=True):
        target[...] = image.transpose(2, 0, 1) if channels_last else image
    return tensor


def _label_tensor(value: Any, what: str) -> Tensor:
    """An array or a list of integers as an int64 tensor (n,)."""
    if isinstance(value, _Array) and value.value.dtype.kind in "iu":
        return torch.from_numpy(value.value.reshape(-1).astype(np.int64))
    if isinstance(value, list) and all(isinstance(label, int) and abs(label) < 2**62 for label in value):
        return torch.tensor(value, dtype=torch.int64)
    raise DataError(f"{what} is not an array or list of integers")
