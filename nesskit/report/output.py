"""Where pages and pictures are written."""

from __future__ import annotations

from pathlib import Path

from nesskit.errors import NesskitError
from nesskit.wholefile import write_whole


def write_output(path: Path, content: bytes) -> Path:
    """``content`` at ``path``, whole; NesskitError if it cannot be written."""
    try:
        write_whole(path, lambda stream: stream.write(content))
    except OSError as error:
        raise NesskitError(f"cannot write {path}: {error.strerror}") from error
    return path
