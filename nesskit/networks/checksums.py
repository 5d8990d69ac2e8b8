"""What makes one network another: what it computes, and the weights that it has.

Two checksums, so that a run that lies on disk is gone on with by the network that it was begun with, and by no other.
"""

from __future__ import annotations

import hashlib
import re
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

from torch import Tensor, nn

from nesskit.streams.checksums import update

ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # where an object lies in memory, which says nothing about it
LIBRARIES = ("torch", "nesskit")  # whose versions a run's record names already


def network_checksum(model: nn.Module) -> str:
    """SHA-256 of what ``model`` prints as, of the functions that its modules hold, and of what their ``forward`` does.

    It is the same in every process and for every weight; comments, names of files and addresses in memory do not count.
    """
    parts = [repr(model)]
    for name, module in model.named_modules():
        held = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        parts += [f"{name}.{key} = {_function(value)}" for key, value in held.items() if _is_function(value)]
        if type(module).__module__.partition(".")[0] not in LIBRARIES:
            parts.append(f"{name}: {_function(type(module).forward)}")
    return hashlib.sha256(ADDRESS.sub("", "\n".join(parts)).encode()).hexdigest()


def weights_checksum(model: nn.Module) -> str:
    """SHA-256 of every tensor of the model's state: its name, type, shape and values."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            digest.update(name.encode())
            update(digest, value)
        else:  # what a module of the user's adds to its state
            digest.update(ADDRESS.sub("", f"{name} {value!r}").encode())
    return digest.hexdigest()


def _is_function(value: Any) -> bool:
    return isinstance(value, FunctionType | BuiltinFunctionType)


def _function(function: Any) -> str:
    """A function in words: what it is called, and what it does if it is written in Python."""
    code = getattr(function, "__code__", None)
    return f"{function.__qualname__} {'' if code is None else _code(code)}"


def _code(code: CodeType) -> str:
    constants = [_code(value) if isinstance(value, CodeType) else _constant(value) for value in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _constant(value: object) -> str:
    return repr(sorted(map(repr, value)) if isinstance(value, frozenset) else value)
