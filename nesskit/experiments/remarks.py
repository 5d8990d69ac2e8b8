"""How a run is less or other than its benchmark, which must stand wherever its numbers stand."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from nesskit.errors import NesskitError
from nesskit.experiments.benchmarks import BENCHMARKS
from nesskit.experiments.configure import configure, get_benchmark
from nesskit.settings import METHOD_SETTINGS, RunSettings, flatten

if TYPE_CHECKING:
    from nesskit.runs.record import Run


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


def preset_of(run: Run) -> str:
    """The benchmark's preset whose settings the run has, be it for less training; if there is none, what it names.

    A preset's name is no part of a run: what it stands for may come to stand under another name.
    """
    named = str(run.config.get("preset"))
    try:
        others = [name for name in get_benchmark(run.config["benchmark"]).presets if name != named]
    except (KeyError, NesskitError):  # made by fit() without a benchmark, or with a user's file that is gone
        return named
    return next((name for name in (named, *others) if _has_settings_of(name, run)), named)


def _has_settings_of(name: str, run: Run) -> bool:
    changes = _changes_from(name, run)
    return changes is not None and all(change.startswith("reduced") for change in changes)


def _changes_from_preset(run: Run) -> list[str]:
    """Where the settings differ from the run's preset; fewer epochs are called a reduction."""
    return _changes_from(preset_of(run), run) or []


def _changes_from(name: str, run: Run) -> list[str] | None:
    """Where the settings differ from the preset called ``name``; None if it does not exist (any more)."""
    try:
        expected = _settings_of_preset(run.config["benchmark"], run.config["method"], name)
    except (KeyError, NesskitError):  # made by fit() without a benchmark, or by a nesskit with other presets
        return None
    found = []
    for key, value in flatten(complete(run.config)).items():
        before = expected.get(key, value)
        if value != before and key not in ("seed", "tasks", "preset"):
            reduction = "reduced, " if key == "training.epochs" and value < before else ""
            found.append(f"{reduction}{key.rpartition('.')[2]} = {_as_text(value)} (preset: {_as_text(before)})")
    return found


def _settings_of_preset(benchmark: str, method: str, preset: str) -> dict[str, Any]:
    """What the preset stands for, on one level; a table asks for the same again and again."""
    if benchmark in BENCHMARKS and method in METHOD_SETTINGS:
        return _settings_of_own_preset(benchmark, method, preset)
    return flatten(configure(benchmark, method, preset).to_dict())  # of a user's file, which may change


@functools.cache
def _settings_of_own_preset(benchmark: str, method: str, preset: str) -> dict[str, Any]:
    return flatten(configure(benchmark, method, preset).to_dict())


def complete(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """``config`` with the defaults of what it does not name: they are what an older nesskit did."""
    try:
        return RunSettings.from_dict(config).to_dict()
    except (NesskitError, KeyError, TypeError):  # of a user's file that is gone, or of another version
        return config


def _as_text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
