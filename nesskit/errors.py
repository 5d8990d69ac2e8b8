"""The errors that nesskit raises on purpose.

Each is one clear sentence that names the thing and the way out. The command line prints that sentence without a
traceback; everything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

MOST = 20  # names that are listed


class NesskitError(ValueError):
    """Base of all errors below; a ``ValueError``, so that library users need not know it."""


class UnknownNameError(NesskitError):
    """A name that is not in a list of names; says which name is nearest."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean '{nearest[0]}'?" if nearest else "nothing similar is known."
        # A list that nobody reads to its end helps nobody: of many names those that are most alike.
        shown = names if len(names) <= MOST or not nearest else difflib.get_close_matches(name, names, 5, cutoff=0.3)
        others = f" and {len(names) - len(shown)} more" if len(shown) < len(names) else ""
        super().__init__(f"unknown {kind} '{name}': {hint} Known: {', '.join(shown)}{others}.")


class SettingsError(NesskitError):
    """A setting whose value makes no sense, alone or beside another."""


class UserFileError(NesskitError):
    """A user's own file that cannot be used: missing, broken, changed, or without what was asked of it."""


class SpectrumError(NesskitError):
    """Layer inputs or spectra that cannot be computed with (none seen, not finite, wrong shape)."""


class AdaptationError(NesskitError):
    """A layer that cannot carry a NESS update."""


class DataError(NesskitError):
    """Data that is missing, damaged, or not what it says it is."""


class TrainingError(NesskitError):
    """Training that cannot go on, for example because the loss is not finite."""


class RunFolderError(NesskitError):
    """A run folder that is damaged, foreign, or in use; it is left untouched."""
