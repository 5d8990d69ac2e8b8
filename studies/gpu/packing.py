"""What is brought home: run folders in a few archives, none larger than a file may be, and back again."""

from __future__ import annotations

import functools
import io
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from nesskit.errors import RunFolderError
from nesskit.wholefile import write_whole

LARGEST = 15_000_000  # bytes of a file: under 16 MB
MOST = 6  # files beside the two summaries
RESULTS = ("record.json", "events.jsonl", "profiles.npz")
CHECKPOINT = "checkpoint.pt"
RUNS, CHECKPOINTS = "runs-{}.tar.gz", "checkpoints.tar.part{}"


def pack(runs: Path, target: Path, checkpoints: bool = False) -> list[str]:
    """Every run under ``runs`` without its checkpoint, as archives in ``target``; what did not fit, in words.

    With ``checkpoints`` these come too, as long as there is room: first those of runs that are to go on.
    """
    folders = sorted(path.parent for path in runs.glob("**/record.json"))
    volumes = list(_volumes(folders))
    _remove_others(target, RUNS, len(volumes[:MOST]))
    for number, volume in enumerate(volumes[:MOST], 1):
        write_whole(target / RUNS.format(number), functools.partial(_write, volume, runs))
    left_out = [f"the results of {path.relative_to(runs)}" for volume in volumes[MOST:] for path in volume]
    room = MOST - len(volumes[:MOST])
    return left_out + _pack_checkpoints(folders if checkpoints else (), runs, target, room)


def unpack(source: Path, runs: Path) -> None:
    """What :func:`pack` has left in ``source``, back under ``runs``; a run that is there already stays as it is.

    Raises:
        RunFolderError: an archive is damaged.
    """
    beside = runs.with_name(f".{runs.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        for path in _numbered(source, RUNS):
            with tarfile.open(path, "r:gz") as archive:
                archive.extractall(beside, filter="data")
        parts = b"".join(path.read_bytes() for path in _numbered(source, CHECKPOINTS))
        if parts:
            with tarfile.open(fileobj=io.BytesIO(parts)) as archive:
                archive.extractall(beside, filter="data")
    except (tarfile.TarError, OSError, EOFError) as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise RunFolderError(f"an archive in {source} is damaged ({error}): copy it there again") from error
    for record in list(beside.glob("**/record.json")):
        own = runs / record.parent.relative_to(beside)
        if not own.exists():
            own.parent.mkdir(parents=True, exist_ok=True)
            record.parent.rename(own)
    shutil.rmtree(beside, ignore_errors=True)


def _volumes(folders: Iterable[Path]) -> Iterator[list[Path]]:
    """Run folders in groups that fit into a file each; a tar.gz is no larger than what is in it."""
    group: list[Path] = []
    size = 0
    for folder in folders:
        own = sum(path.stat().st_size + 2048 for path in _results(folder))
        if group and size + own > LARGEST:
            yield group
            group, size = [], 0
        group.append(folder)
        size += own
    if group:
        yield group


def _results(folder: Path) -> list[Path]:
    return [folder / name for name in RESULTS if (folder / name).is_file()]


def _write(folders: Iterable[Path], root: Path, stream: BinaryIO) -> None:
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for path in (path for folder in folders for path in _results(folder)):
            archive.add(path, path.relative_to(root))


def _pack_checkpoints(folders: Sequence[Path], root: Path, target: Path, room: int) -> list[str]:
    """Checkpoints in at most ``room`` files: one tar, cut in pieces; what did not fit."""
    _remove_others(target, CHECKPOINTS, 0)
    there = [folder / CHECKPOINT for folder in folders if (folder / CHECKPOINT).is_file()]
    fitting, left_out = [], []
    size = tarfile.RECORDSIZE  # of its end
    for path in sorted(there, key=_is_finished):
        own = path.stat().st_size
        if size + own + 2048 <= room * LARGEST:
            fitting.append(path)
            size += own + 2048
        else:
            left_out.append(f"the checkpoint of {path.parent.relative_to(root)}, {own / 1e6:.1f} MB")
    if fitting:
        _write_in_pieces(fitting, root, target)
    return left_out


def _is_finished(checkpoint: Path) -> bool:
    return '"status": "finished"' in (checkpoint.parent / RESULTS[0]).read_text(encoding="utf-8")


def _write_in_pieces(paths: Sequence[Path], root: Path, target: Path) -> None:
    whole = target / ".checkpoints.tar.part"
    with tarfile.open(whole, "w") as archive:
        for path in paths:
            archive.add(path, path.relative_to(root))
    with whole.open("rb") as stream:
        for number, piece in enumerate(iter(lambda: stream.read(LARGEST), b"")):
            (target / CHECKPOINTS.format(number)).write_bytes(piece)
    whole.unlink()


def _numbered(folder: Path, name: str) -> list[Path]:
    """The files of that name with whatever number, in their order."""
    before, after = name.split("{}")
    return sorted(folder.glob(name.format("*")), key=lambda path: int(path.name[len(before) : -len(after) or None]))


def _remove_others(folder: Path, name: str, kept: int) -> None:
    """Remove archives of an earlier packing beyond the first ``kept``."""
    for path in _numbered(folder, name)[kept:]:
        path.unlink()
