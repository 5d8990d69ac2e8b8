"""Files and lines that are whole or not there.

A file is written beside its place, flushed to the disk, then renamed onto it; a line that could not be written whole is
taken back.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_whole(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a file, and put it at ``path`` when it is complete; what was there stays whole until then.

    The folder is made.

    Raises:
        OSError, RuntimeError: what making the folder or ``write`` raised; nothing is left beside ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove what writers that were killed have left beside the files of ``folder``; nobody may be writing there."""
    for path in folder.glob(".*.part"):
        path.unlink(missing_ok=True)


def append_line(path: Path, line: bytes) -> None:
    """Add ``line``, which ends in a newline, to a file that others read meanwhile; the file is made.

    After a line that somebody was killed in the middle of, a new one begins; readers skip what is torn.

    Raises:
        OSError: it could not be written; the file is as long as it was.
    """
    with path.open("a+b", buffering=0) as stream:
        end = stream.seek(0, os.SEEK_END)
        if end:
            stream.seek(end - 1)
            if stream.read(1) != b"\n":
                line = b"\n" + line
        try:
            written = stream.write(line)
            if written != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            stream.truncate(end)
            raise
