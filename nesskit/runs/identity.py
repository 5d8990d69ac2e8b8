"""Whether two runs are one, and where a run lies if the folder that it was given holds another one.

A run is its settings, its data, its network and the weights that it began with. The very model that was trained may
come back, too: then it has the weights that the run was left with.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from nesskit.runs.folder import RunFolder
from nesskit.runs.record import Run


def same_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configurations mean the same run: all but the name of the preset must agree."""
    return {**one, "preset": None} == {**other, "preset": None}


def difference(before: Run, run: Run) -> str:
    """What makes ``run`` another one than that which was recorded ``before``, in words; nothing if they are one.

    What ``before`` does not know (an older nesskit recorded less) makes no difference.
    """
    if not same_settings(before.config, run.config):
        return "other settings"
    if before.data and before.data != run.data:
        return "other data"
    then, now = before.network, run.network
    if not then:
        return ""
    if then["architecture"] != now["architecture"]:
        return "another network"
    known = (then["first_weights"], then.get("last_weights"))
    return "" if now["first_weights"] in known else "other initial weights"


def other_run(run: Run, folder: RunFolder) -> tuple[Run, str] | None:
    """The run in ``folder`` if it is another one with the same settings, and what is different; else None."""
    before = folder.read()
    if before is None or not same_settings(before.config, run.config):
        return None
    what = difference(before, run)
    return (before, what) if what else None


def folder_within(run: Run, folder: RunFolder) -> RunFolder:
    """The folder within ``folder`` that is the run's own: where it lies already, else one with a name of its own."""
    for path in sorted(folder.path.glob("run-*")):
        before = RunFolder(path).read()
        if before is not None and not difference(before, run):
            return RunFolder(path)
    identity = json.dumps([run.data, run.network], sort_keys=True)
    return RunFolder(folder.path / f"run-{hashlib.sha256(identity.encode()).hexdigest()[:10]}")
