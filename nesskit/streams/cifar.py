"""Parsers of the official binary archives of CIFAR-10 and CIFAR-100.

Each record is one label byte (CIFAR-100: a coarse and a fine one), then 3 × 32 × 32 pixels, channel by channel, row by
row. Format and data: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch

from nesskit.errors import DataError
from nesskit.streams.base import Examples
from nesskit.streams.reading import CHUNK, checked_labels, opened, read_exactly

IMAGE_SHAPE = (3, 32, 32)
IMAGE_BYTES = 3 * 32 * 32


class CifarArchive(NamedTuple):
    """Both parts of a CIFAR data set, x (n, 3, 32, 32) uint8, and the names of its classes in label order."""

    train: Examples
    test: Examples
    classes: tuple[str, ...]


def read_cifar100(path: Path) -> CifarArchive:
    """``cifar-100-binary.tar.gz``, with the fine labels 0 … 99. The images are views of the bytes read, no copies.

    Raises:
        DataError: a damaged archive, a missing member, a length that is no multiple of 3074, a label beyond 99.
    """
    folder = "cifar-100-binary"
    train, test, names = f"{folder}/train.bin", f"{folder}/test.bin", f"{folder}/fine_label_names.txt"
    members = _read_members(path, {train, test, names})
    return CifarArchive(
        _examples(members[train], f"{path}, {train}", label_bytes=2, classes=100),
        _examples(members[test], f"{path}, {test}", label_bytes=2, classes=100),
        _class_names(members[names], f"{path}, {names}", classes=100),
    )


def read_cifar10(path: Path) -> CifarArchive:
    """``cifar-10-binary.tar.gz``: the five training batches in their order, the test batch, labels 0 … 9.

    Raises:
        DataError: a damaged archive, a missing member, a length that is no multiple of 3073, a label beyond 9.
    """
    folder = "cifar-10-batches-bin"
    batches = [f"{folder}/data_batch_{number}.bin" for number in range(1, 6)]
    test, names = f"{folder}/test_batch.bin", f"{folder}/batches.meta.txt"
    members = _read_members(path, {*batches, test, names})
    parts = [_examples(members[batch], f"{path}, {batch}", label_bytes=1, classes=10) for batch in batches]
    return CifarArchive(
        Examples(torch.cat([part.x for part in parts]), torch.cat([part.y for part in parts])),
        _examples(members[test], f"{path}, {test}", label_bytes=1, classes=10),
        _class_names(members[names], f"{path}, {names}", classes=10),
    )


def _read_members(path: Path, wanted: Collection[str]) -> dict[str, bytearray]:
    """The wanted members, by exact name, in one pass through the archive; nothing is ever written to disk."""
    members: dict[str, bytearray] = {}
    with (
        opened(path, "a tar.gz archive"),
        gzip.open(path) as unpacked,
        tarfile.open(fileobj=unpacked, mode="r:") as archive,
    ):
        for member in archive:
            if member.name in wanted and member.isreg():
                stream = archive.extractfile(member)
                assert stream is not None  # a regular file always has one
                members[member.name] = read_exactly(stream, member.size, member.name)
        while unpacked.read(CHUNK):
            pass  # to the end, where gzip compares its own checksum
    missing = sorted(set(wanted) - set(members))
    if missing:
        raise DataError(f"{path} has no member {', '.join(missing)}; the official archive does")
    return members


def _examples(content: bytearray, what: str, label_bytes: int, classes: int) -> Examples:
    """Records as examples; the last of the label bytes is the label."""
    record = label_bytes + IMAGE_BYTES
    if not content or len(content) % record:
        raise DataError(f"{what} is {len(content)} bytes long, expected a multiple of {record}, one record an image")
    records = torch.frombuffer(content, dtype=torch.uint8).view(-1, record)
    labels = checked_labels(records[:, label_bytes - 1], range(classes), what)
    return Examples(records[:, label_bytes:].unflatten(1, IMAGE_SHAPE), labels)


def _class_names(content: bytearray, what: str, classes: int) -> tuple[str, ...]:
    names = tuple(content.decode("ascii", errors="replace").split())
    if len(names) != classes or len(set(names)) != classes:
        raise DataError(f"{what} has {len(set(names))} different class names, expected {classes}")
    return names
