"""Load a stream by name, or a user's own. Loaders are imported when a stream is loaded."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from nesskit import userfiles
from nesskit.errors import DataError, UnknownNameError, UserFileError
from nesskit.streams.names import LOADERS, SPLITS, WITH_AUTHORS_SPLIT

if TYPE_CHECKING:
    from nesskit.streams.base import TaskStream


def load_stream(name: str, seed: int = 0, validation_share: float = 0.0, split: str = "nesskit") -> TaskStream:
    """The stream called ``name``, or what a user's own function makes, ``path.py:function``.

    Args:
        name: one of ``LOADERS``, or a function of (seed, validation_share) that returns a TaskStream.
        seed: determines splits, pixel permutations and class orders.
        validation_share: the share of the training examples of each task that is set aside as ``task.valid``.
        split: which examples these are: ``nesskit`` draws them with a seed of each data set's own; ``authors`` takes
            those that the code of NESS takes for the same seed, on the benchmarks of the paper.

    Raises:
        UnknownNameError: no stream, or no split, of that name; says which is nearest.
        DataError: the data is missing or damaged, the share is not in [0, 1), or the authors never split that stream.
        UserFileError: the user's file is missing, fails to import or holds no such function.
    """
    if not isinstance(name, str):
        raise DataError(f"a stream has a name, such as {next(iter(LOADERS))}; got {name!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"seed must be a whole number of at least 0, got {seed!r}")
    reference = userfiles.parse_reference(name)
    if not reference and name not in LOADERS:
        raise UnknownNameError("stream", name, LOADERS)
    if not 0 <= validation_share < 1:
        raise DataError(f"validation_share must lie in [0, 1), got {validation_share}")
    if split not in SPLITS:
        raise UnknownNameError("split", str(split), SPLITS)
    if split == "authors" and name not in WITH_AUTHORS_SPLIT:
        raise DataError(f"the authors' split is one of {', '.join(WITH_AUTHORS_SPLIT)}; {name} has split nesskit alone")
    if reference:
        return _own_stream(reference, seed, validation_share)
    module, function = LOADERS[name].split(":")
    further = (split,) if name in WITH_AUTHORS_SPLIT else ()
    stream: TaskStream = getattr(importlib.import_module(module), function)(seed, validation_share, *further)
    return stream


def load_stream_function(reference: userfiles.Reference) -> Callable[[int, float], TaskStream]:
    """A user's function that makes a stream.

    Raises:
        UserFileError: the file is missing, fails to import or holds no such function.
    """

    def fits(found: Any) -> bool:
        try:
            inspect.signature(found).bind(0, 0.0)
        except (TypeError, ValueError):
            return False
        return not isinstance(found, type)

    kind = "stream: it must be a function of (seed, validation_share) that returns a TaskStream"
    function: Callable[[int, float], TaskStream] = userfiles.load(reference, kind, fits)
    return function


def _own_stream(reference: userfiles.Reference, seed: int, validation_share: float) -> TaskStream:
    """What a user's function makes, under the name and with the checksum of its file."""
    from nesskit.streams.base import TaskStream

    stream = load_stream_function(reference)(seed, validation_share)
    if not isinstance(stream, TaskStream):
        raise UserFileError(f"{reference} must return a TaskStream, but returned a {type(stream).__name__}")
    checksums = {**stream.checksums, reference.path: userfiles.checksum(reference.path)}
    return replace(stream, name=str(reference), checksums=checksums)
