"""Objects from a user's own file: ``path.py:Name`` stands for a method, a filter or a stream wherever a name does.

A file is read, hashed and executed as one piece: the SHA-256 that a run keeps is that of what ran. It covers that one
file, which must therefore hold all that is yours. torch is loaded only if the file itself imports it.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from nesskit.errors import UserFileError

REFERENCE = re.compile(r"(?P<path>.+\.py):(?P<name>\w+)(?::(?P<values>.*))?", re.DOTALL)


class Reference(NamedTuple):
    """``path.py:Name`` or, for a filter, ``path.py:Name:0.1``, in its parts."""

    path: str
    name: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.path}:{self.name}"


def parse_reference(text: str) -> Reference | None:
    """The parts of ``text``; None if it is an ordinary name.

    Raises:
        UserFileError: it names a file but nothing in it.
    """
    found = REFERENCE.fullmatch(text)
    if found:
        values = found["values"]
        return Reference(found["path"], found["name"], tuple(values.split(":")) if values is not None else ())
    if text.endswith(".py") or ".py:" in text:
        raise UserFileError(f"'{text}' should say what to take from the file, as path.py:Name")
    return None


def load(reference: Reference, kind: str, fits: Callable[[Any], bool]) -> Any:
    """The object that ``reference`` names, executed anew only if its file has changed.

    Args:
        reference: where it is.
        kind: what it should be, for the error message.
        fits: whether an object is that.

    Raises:
        UserFileError: the file is missing or fails to import, there is no such name in it, or it is something else.
    """
    module = _module(reference.path)
    if not hasattr(module, reference.name):
        raise UserFileError(f"{reference.path} has no '{reference.name}'")
    found = getattr(module, reference.name)
    if not fits(found):
        raise UserFileError(f"'{reference.name}' in {reference.path} is no {kind}")
    return found


def folder_name(name: str) -> str:
    """``name`` itself, or ``file-Name`` for what comes from a file: a name that a folder may have."""
    reference = parse_reference(name)
    return f"{Path(reference.path).stem}-{reference.name}" if reference else name


def checksum(path: str) -> str:
    """SHA-256 of a user's file.

    Raises:
        UserFileError: it cannot be read.
    """
    return hashlib.sha256(_read(path)).hexdigest()


def _module(path: str) -> ModuleType:
    """The file as a module that stands in ``sys.modules`` under a name that its content determines."""
    source = _read(path)
    name = f"nesskit_userfile_{hashlib.sha256(path.encode() + source).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(Path(path).resolve())
    sys.modules[name] = module  # dataclasses look for their module there
    try:
        exec(compile(source, module.__file__, "exec", dont_inherit=True), module.__dict__)
    except Exception as error:
        del sys.modules[name]
        raise UserFileError(f"{path} fails to import: {type(error).__name__}: {error}") from error
    return module


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserFileError(f"{path} cannot be read: {error.strerror}") from error
