"""How a run is less or other than its benchmark, which must stand wherever its numbers stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nesskit.errors import NesskitError
from nesskit.settings import (
    flatten,
)

if TYPE_CHECKING:
    from nesskit.runs.record import Run
from nesskit.experiments.configure import configure


def remarks(run: Run) -> list[str]:
    """How a run is less or other than its benchmark with its preset (unfinished, reduced, changed); empty: neither."""
    found = []
    if not run.finished:
        state = "unfinished" if run.status == "running" else run.status
        reason = run.status_reason.removeprefix("stopped ")
        found.append(": ".join(filter(None, [state, reason, f"{run.tasks_done} of {len(run.tasks)} tasks learned"])))
    if run.config.get("tasks") is not None:
        found.append(f"reduced to the first {run.config['tasks']} tasks of the benchmark")
    return found + _changes_from_preset(run)


def is_reduced(run: Run) -> bool:
    """Whether a run had less training than its preset asks for: fewer tasks or fewer epochs."""
    return not run.finished or any(remark.startswith("reduced") for remark in remarks(run))


def _changes_from_preset(run: Run) -> list[str]:
    """Where the settings differ from the preset that the run names; fewer epochs are called a reduction."""
    try:
        preset = configure(run.config["benchmark"], run.config["method"], run.config["preset"])
    except (KeyError, NesskitError):  # made by fit() without a benchmark, or by a nesskit with other presets
        return []
    expected, found = flatten(preset.to_dict()), []
    for key, value in flatten(run.config).items():
        before = expected.get(key, value)
        if value != before and key not in ("seed", "tasks"):
            reduction = "reduced, " if key == "training.epochs" and value < before else ""
            found.append(f"{reduction}{key.rpartition('.')[2]} = {_as_text(value)} (preset: {_as_text(before)})")
    return found


def _as_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
