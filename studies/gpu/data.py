"""The data of a benchmark on a machine without internet: a file, whole or in parts, joined and verified."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from nesskit.errors import DataError
from nesskit.streams.fetch import SUMS, RegistryEntry, read_sums, registry, sha256_of
from nesskit.wholefile import write_whole

PIECE = 1 << 20  # bytes read at once
_PART = re.compile(r"part[-_.]?(\d+)", re.IGNORECASE)


def mirror_of(given: Path, benchmark: str, place: Path) -> Path:
    """A folder that serves as ``NESSKIT_MIRROR``, with the one archive of ``benchmark`` that ``given`` holds.

    ``given`` has the archive under its name, or its parts: files ``part0``, ``part1``, … with anything before that in
    their names, or folders of such names with one file each. They are joined in ``place``. What it must come to stands
    in a ``SHA256SUMS`` in ``given``, which may name the parts as well, else in nesskit's registry.

    Raises:
        DataError: there is nothing of that kind, or a part is missing or damaged; says which.
    """
    if not given.is_dir():
        raise DataError(f"--data {given} is no folder: give the one that holds the archive or its parts")
    (entry,) = (entry for entry in registry().values() if benchmark in entry.streams)
    sums = _sums(given)
    expected = sums.get(entry.name, entry.sha256)
    whole = given / entry.name
    if not whole.is_file():
        whole = _joined(_parts(given, entry), given, sums, expected, place / entry.name)
    elif sha256_of(whole) != expected:
        raise DataError(f"{whole} is damaged or another file: its SHA-256 is not {expected}. Copy it there again")
    place.mkdir(parents=True, exist_ok=True)
    if whole.parent != place:
        (place / entry.name).unlink(missing_ok=True)
        (place / entry.name).symlink_to(whole.absolute())
    (place / SUMS).write_text(f"{expected}  {entry.name}\n", encoding="utf-8")
    return place


def _sums(folder: Path) -> dict[str, str]:
    """What a SHA256SUMS in ``folder`` says, by name; nothing without one."""
    try:
        return read_sums(folder) if (folder / SUMS).is_file() else {}
    except ValueError as error:
        raise DataError(f"{folder / SUMS} is no list of checksums: {error}") from error


def _parts(folder: Path, entry: RegistryEntry) -> list[Path]:
    """The parts in ``folder``, in their order."""
    numbered: dict[int, Path] = {}
    for path in sorted([*folder.glob("*"), *folder.glob("*/*")]):
        numbers = _PART.findall(str(path.relative_to(folder)))
        if not numbers or not path.is_file() or path.name == SUMS or path.name.startswith("README"):
            continue
        number = int(numbers[-1])
        if number in numbered:
            raise DataError(f"part {number} of {entry.name} is there twice, {numbered[number]} and {path}: remove one")
        numbered[number] = path
    if not numbered:
        raise DataError(f"{folder} holds neither {entry.name} nor parts of it (part0, part1, …): copy them there")
    first = min(numbered) and 1  # they are counted from 0 or from 1
    missing = sorted(set(range(first, max(numbered))) - numbered.keys())
    if missing:
        raise DataError(f"part {missing[0]} of {entry.name} is missing in {folder}: copy it there as well")
    return [numbered[number] for number in sorted(numbered)]


def _joined(parts: Sequence[Path], folder: Path, sums: Mapping[str, str], expected: str, target: Path) -> Path:
    """The parts as one file with the expected checksum; a file that is there already is taken."""
    if target.is_file() and sha256_of(target) == expected:
        return target
    digest = hashlib.sha256()

    def write(stream: BinaryIO) -> None:
        for part in parts:
            _append(part, sums.get(part.relative_to(folder).as_posix(), ""), digest, stream)
        if digest.hexdigest() != expected:
            size = sum(part.stat().st_size for part in parts)
            raise DataError(
                f"the {len(parts)} parts of {target.name} in {folder}, {size} bytes, come to another SHA-256 than "
                f"{expected}: one is damaged, or the first or last are missing. Copy them there again"
            )

    write_whole(target, write)
    return target


def _append(part: Path, expected: str, whole: hashlib._Hash, stream: BinaryIO) -> None:
    """Copy ``part`` to the end of ``stream``; its own checksum, where one is known, must be right."""
    own = hashlib.sha256()
    with part.open("rb") as source:
        while piece := source.read(PIECE):
            own.update(piece)
            whole.update(piece)
            stream.write(piece)
    if expected and own.hexdigest() != expected:
        raise DataError(f"{part} is damaged: its SHA-256 is not {expected}. Copy it there again")
