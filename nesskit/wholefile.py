"""Files that are whole or not there: written beside their place, flushed to the disk, then renamed onto it."""

from __future__ import annotations

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
