"""Where the threshold explorer finds layer profiles: run folders, recorded runs, bare profiles, a model in memory."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from nesskit.analysis import NetworkCurves, layer_weights, profile_layers, profiles_by_task
from nesskit.analysis.checks import Matrix, check_profiles, check_same_layers
from nesskit.errors import NesskitError
from nesskit.experiments.benchmarks import BENCHMARKS
from nesskit.experiments.configure import configure
from nesskit.experiments.remarks import preset_of
from nesskit.plots import rule_name
from nesskit.runs.folder import load_run
from nesskit.runs.profile_file import pack_profiles
from nesskit.runs.record import Run
from nesskit.runs.results import load_result, results_folder
from nesskit.settings import NESSSettings, RunSettings
from nesskit.spectra.filters import Filter, FrobeniusThreshold, Threshold, parse_filter
from nesskit.spectra.moment import Moment
from nesskit.spectra.profile import LayerProfile
from nesskit.widgets.explorer.state import LARGEST, RULES, SMALLEST


@dataclass(frozen=True, eq=False)
class Source:
    """Something to explore.

    Attributes:
        label: what a person calls it.
        curves: task index → the curves of all layers.
        tasks: names by index; empty if not known.
        settings: what to train again with another threshold; None if that is not known.
        rule: the filter that the update was trained with, if any.
        seconds: how long the run took; 0 if there was none.
        device: what a recorded run was made on; empty for all others.
        own_model: whether model and moments were given in memory.
    """

    label: str
    curves: Mapping[int, NetworkCurves]
    tasks: Sequence[str] = ()
    settings: RunSettings | None = None
    rule: Filter | None = None
    seconds: float = 0.0
    device: str = ""
    own_model: bool = False

    def task_name(self, task: int) -> str:
        """``task 2 (permutation 1)``."""
        return f"task {task + 1}" + (f" ({self.tasks[task]})" if task < len(self.tasks) else "")

    @property
    def restricted(self) -> bool:
        """Whether the update was kept out of some directions, so that no ε can show what it would do there."""
        profiles = [curve.profile for curves in self.curves.values() for curve in curves.layers]
        return any(profile.rank < len(profile.sigma_squared) for profile in profiles)


def source_of_run(run: Run) -> Source:
    """A run of NESS.

    Raises:
        NesskitError: it has no profiles.
    """
    if not run.profiles:
        name = run.config.get("benchmark") or run.config.get("stream") or "permuted-digits"
        raise NesskitError(
            f"{run_label(run.config)} has no layer profiles: choose a run of ness that has learned two tasks at least, "
            f"or make the base run of {name} below"
        )
    settings, rule = _settings(run.config), run.config.get("options", {}).get("filter")
    curves = _curves(run.profiles)
    return Source(run_label(run.config), curves, run.tasks, settings, parse_filter(rule) if rule else None, run.seconds)


def source_of_profiles(profiles: Sequence[LayerProfile]) -> Source:
    """Bare profiles, of one task or several."""
    return Source("layer profiles", _curves(profiles))


def source_of_model(
    model: nn.Module, moments: Mapping[str, Moment], updates: Mapping[str, Matrix] | None = None
) -> Source:
    """A model and the moments of its layers' old inputs.

    Without ``updates`` the explorer looks at a change of weights that is as long as the weight and points in every
    input direction alike.

    Raises:
        NesskitError: the moments are of another model, or a layer was never run; says which.
    """
    known = layer_weights(model)
    if not set(moments) <= set(known):
        check_same_layers("the model and the moments", known, moments)
    weights = {name: known[name] for name in moments}
    profiles = profile_layers(moments, weights, weights if updates is None else updates, task=1)
    if updates is None:
        profiles = [dataclasses.replace(p, update_energy=_everywhere_alike(p)) for p in profiles]
    return Source("your model", _curves(profiles), own_model=True)


def find_runs(runs: Path | str, benchmark: str = "", results: Path | str | None = None) -> dict[str, Path]:
    """Label → place of every run with profiles, sorted; of one benchmark if it is named.

    First the folders of those under ``runs``, then the files of those that are recorded in ``results`` (None:
    ``data/results``).
    """
    found: dict[str, Path] = {}
    for root, profiles in ((Path(runs), "*/*/profiles.npz"), (Path(results or results_folder()), "*.npz")):
        for path in sorted(root.glob(f"{benchmark or '*'}/{profiles}")):
            place = path.parent if path.name == "profiles.npz" else path.with_suffix(".json")
            name = place.name.removesuffix(".json")
            label = _label(place) or f"{place.parent.relative_to(root)}/{name}"  # choosing it will say what is wrong
            found[label if label not in found else f"{label} ({name})"] = place
    return found


def _label(place: Path) -> str:
    """What a person calls the run at ``place``; empty if it is damaged."""
    try:
        if place.suffix == ".json":
            return _recorded_label(_load_recorded(place, profiles=False))
        return run_label(json.loads((place / "record.json").read_text(encoding="utf-8"))["config"])
    except (NesskitError, OSError, ValueError, KeyError, TypeError):
        return ""


def load_source(path: Path | str) -> Source:
    """The run in the folder ``path``, or the recorded one in the file ``path``."""
    if Path(path).suffix != ".json":
        return source_of_run(load_run(path))
    run = _load_recorded(path)
    return dataclasses.replace(source_of_run(run), label=_recorded_label(run), device=run.environment["device"])


def _load_recorded(path: Path | str, profiles: bool = True) -> Run:
    """A recorded run, with its preset under the name that it has today."""
    run = load_result(path, profiles)
    run.config["preset"] = preset_of(run)
    return run


def _recorded_label(run: Run) -> str:
    return f"{run_label(run.config)}, recorded on {run.environment['device']}"


def run_label(config: Mapping[str, Any]) -> str:
    """``permuted-digits, Frobenius ε = 0.0251, seed 0``; of another method than ness with its name."""
    parts = [str(config.get("benchmark") or config.get("stream") or "run")]
    rule, method = config.get("options", {}).get("filter"), str(config.get("method", "ness"))
    parts += [method] if method != "ness" else []
    parts += [_rule_text(parse_filter(rule))] if rule else []
    if config.get("preset") not in (None, "default"):
        parts.append(str(config["preset"]))
    return ", ".join([*parts, f"seed {config.get('seed', 0)}"])


def packed(
    source: Source, dtype: type[np.floating] = np.float64, encode: Callable[[bytes], bytes | str] = bytes
) -> dict[str, Any]:
    """What the browser draws ``source`` from: its tasks by name and its profiles, vectors as bytes of ``dtype``."""
    profiles = [curve.profile for curves in source.curves.values() for curve in curves.layers]
    columns = pack_profiles(profiles, dtype)
    vectors = {name: encode(value.tobytes()) for name, value in columns.items() if isinstance(value, np.ndarray)}
    return {"tasks": [[task, source.task_name(task)] for task in source.curves], "profiles": columns | vectors}


def start_of(source: Source) -> dict[str, Any]:
    """The threshold that ``source`` was trained with, as a part of a :class:`State`; nothing if it shows no cut."""
    rule = source.rule
    if isinstance(rule, Threshold) and rule.eps < 1 and rule.name in RULES:
        return {"rule": rule.name, "eps": min(max(rule.eps, SMALLEST), LARGEST)}
    return {}


def base_settings(benchmark: str) -> RunSettings:
    """The run that shows most: every direction is free, so each task's update is what the task wants by itself."""
    return configure(benchmark, "ness", filter=FrobeniusThreshold(1.0))


def with_rule(settings: RunSettings, rule: Filter) -> RunSettings:
    """The same run with another threshold."""
    return dataclasses.replace(settings, options=dataclasses.replace(settings.options, filter=rule))  # type: ignore[call-arg]


def _rule_text(rule: Filter) -> str:
    if isinstance(rule, Threshold) and rule.eps >= 1:
        return "all directions free"
    return rule_name(rule)  # type: ignore[arg-type]


def _settings(config: Mapping[str, Any]) -> RunSettings | None:
    if config.get("benchmark") not in BENCHMARKS:
        return None
    try:
        settings = RunSettings.from_dict(config)
    except (NesskitError, KeyError, TypeError):  # made by another version of nesskit
        return None
    return settings if isinstance(settings.options, NESSSettings) else None


def _curves(profiles: Sequence[LayerProfile]) -> dict[int, NetworkCurves]:
    by_task = profiles_by_task(check_profiles(profiles))
    return {task: NetworkCurves.of(same) for task, same in by_task.items()}


def _everywhere_alike(profile: LayerProfile) -> Any:
    return 0 * profile.weight_energy + profile.weight_energy.mean()
