"""nesskit: continual learning in the null space.

Learn each new task where old tasks' layer inputs have small singular values (NESS, CPAL 2026), and see why that works.
Names are imported when they are first used, so ``import nesskit`` costs nothing and loads no torch.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

__version__ = "0.1.0"

# Threads that wait for their next piece of work should sleep: by default they spin, and beside another busy process on
# a small machine a training step then takes up to 60 times as long (speed/threads.py). Heeded only before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# public name -> module it lives in
_HOMES = {
    "nesskit.adaptation.adapt": (
        "Adaptation",
        "AdaptationWarning",
        "adapted_layers",
        "adapt",
        "merge",
    ),
    "nesskit.adaptation.capture": (
        "collect_moments",
        "merge_moments",
    ),
    "nesskit.adaptation.layers": (
        "NESSConv2d",
        "NESSLinear",
    ),
    "nesskit.analysis": (
        "NetworkCurves",
        "capacity",
        "collect_inputs",
        "effective_rank",
        "feature_drift",
        "interference_by_rank",
        "interference_of_profile",
        "layer_weights",
        "measured_interference",
        "null_space_history",
        "output_drift",
        "profile_layers",
        "profiles_by_task",
        "spectrum_decay",
        "stability_bound",
        "stability_of_profile",
        "stable_rank",
        "subspace_overlap",
    ),
    "nesskit.errors": ("NesskitError",),
    "nesskit.experiments.benchmarks": ("BENCHMARKS",),
    "nesskit.experiments.configure": ("configure",),
    "nesskit.experiments.running": (
        "compare",
        "run",
        "sweep",
    ),
    "nesskit.methods": (
        "Finetune",
        "Joint",
        "Method",
        "NESS",
    ),
    "nesskit.networks": (
        "TaskModel",
        "build_model",
    ),
    "nesskit.plots": (
        "plot_accuracy_matrix",
        "plot_accuracy_over_time",
        "plot_final_accuracy",
    ),
    "nesskit.report.page": ("write_report",),
    "nesskit.runs.folder": ("load_run",),
    "nesskit.runs.metrics": (
        "average_accuracy",
        "backward_transfer",
        "forgetting",
        "learning_accuracy",
    ),
    "nesskit.runs.record": ("Run",),
    "nesskit.settings": (
        "MethodSettings",
        "NESSSettings",
        "NetworkSettings",
        "TrainingSettings",
    ),
    "nesskit.spectra.filters": (
        "EnergyThreshold",
        "Filter",
        "FixedRank",
        "FrobeniusThreshold",
        "HardFilter",
        "InterferenceBudget",
        "NuclearThreshold",
        "Probe",
        "RelativeThreshold",
        "SoftFilter",
    ),
    "nesskit.spectra.moment": ("Moment",),
    "nesskit.spectra.profile": ("LayerProfile",),
    "nesskit.spectra.spectrum": ("Spectrum",),
    "nesskit.streams": ("load_stream",),
    "nesskit.streams.base": (
        "Examples",
        "Normalisation",
        "Task",
        "TaskStream",
    ),
    "nesskit.training.fit": ("fit",),
    "nesskit.training.limits": ("Limits",),
    "nesskit.training.optim": ("SAM",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'nesskit' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
