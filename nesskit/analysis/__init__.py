"""Why NESS works, in numbers: pure functions of arrays, moments, spectra and layer profiles.

Every function returns a small frozen dataclass of plain numbers and numpy arrays, which :mod:`nesskit.plots` draws.

| question | function |
| --- | --- |
| what does an update cost and keep at every rank? | :func:`interference_by_rank`, :func:`interference_of_profile` |
| the same, measured the long way | :func:`measured_interference` |
| and for all layers at every ε? | :class:`NetworkCurves` |
| does the bound of Eq. 7 hold, and how tight is it? | :func:`stability_bound`, :func:`stability_of_profile` |
| what moves a deep layer's outputs? | :func:`output_drift` |
| are kept moments still true? | :func:`feature_drift` |
| do two tasks use the same directions? | :func:`subspace_overlap` |
| is what was similar to a pretrained network similar still? | :func:`kept_similarity` |
| how does room to learn run out? | :func:`null_space_history`, :func:`capacity` |
| how many directions do inputs use at all? | :func:`effective_rank`, :func:`stable_rank`, :func:`spectrum_decay` |
"""

from __future__ import annotations

from nesskit.analysis.curves import LayerCurve, LayerPoint, NetworkCurves, NetworkFrontier, NetworkPoint
from nesskit.analysis.drift import LayerDrift, OutputDrift, output_drift
from nesskit.analysis.features import FeatureDrift, feature_drift
from nesskit.analysis.inputs import collect_inputs
from nesskit.analysis.interference import (
    Frontier,
    InterferenceCurve,
    interference_by_rank,
    interference_of_profile,
    measured_interference,
)
from nesskit.analysis.profiles import Capacity, capacity, layer_weights, profile_layers, profiles_by_task
from nesskit.analysis.similarity import kept_similarity, pair_similarities, rank_correlation
from nesskit.analysis.spectra import SpectrumDecay, effective_rank, spectrum_decay, stable_rank
from nesskit.analysis.stability import StabilityBound, stability_bound, stability_of_profile
from nesskit.analysis.subspaces import (
    NullSpaceHistory,
    SubspaceOverlap,
    null_space_history,
    principal_angles,
    subspace_overlap,
)

__all__ = [
    "Capacity",
    "FeatureDrift",
    "Frontier",
    "InterferenceCurve",
    "LayerCurve",
    "LayerDrift",
    "LayerPoint",
    "NetworkCurves",
    "NetworkFrontier",
    "NetworkPoint",
    "NullSpaceHistory",
    "OutputDrift",
    "SpectrumDecay",
    "StabilityBound",
    "SubspaceOverlap",
    "capacity",
    "collect_inputs",
    "effective_rank",
    "feature_drift",
    "interference_by_rank",
    "interference_of_profile",
    "kept_similarity",
    "layer_weights",
    "measured_interference",
    "null_space_history",
    "output_drift",
    "pair_similarities",
    "principal_angles",
    "profile_layers",
    "profiles_by_task",
    "rank_correlation",
    "spectrum_decay",
    "stability_bound",
    "stability_of_profile",
    "stable_rank",
    "subspace_overlap",
]
