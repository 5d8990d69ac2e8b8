"""Layer profiles: made of any update, sorted by task, and what they say about capacity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from nesskit.adaptation.adapt import adaptable_layers
from nesskit.adaptation.weights import known_kind
from nesskit.analysis.checks import Array, Matrix, as_matrix, as_spectrum, check_profiles, check_same_layers
from nesskit.errors import NesskitError, SpectrumError
from nesskit.spectra.moment import Moment
from nesskit.spectra.profile import LayerProfile, layer_profile


def profile_layers(
    moments: Mapping[str, Moment], weights: Mapping[str, Matrix], updates: Mapping[str, Matrix], task: int = 0
) -> list[LayerProfile]:
    """Profiles of any update, as a run of NESS keeps them of its own: of fine-tuning's, say, or of a gradient.

    Args:
        moments: layer name → moment of its old inputs.
        weights: layer name → W before the update, (d_out, d) or as the layer holds it; see :func:`layer_weights`.
        updates: layer name → D, like its weight. All its directions count as free: rank = d.
        task: index of the task that made the updates.

    Raises:
        NesskitError: the three name different layers.
        SpectrumError: shapes that differ, or a layer that was never run; says which.
    """
    check_same_layers("moments and weights", moments, weights)
    check_same_layers("moments and updates", moments, updates)
    return [_profile(name, task, moments[name], weights[name], updates[name]) for name in moments]


def layer_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weight of every layer that can be adapted, (d_out, d): what an update is the difference of."""
    weights = {}
    for name, layer in adaptable_layers(model).items():
        kind = known_kind(layer)
        weights[name] = kind.layout.matrix(layer, kind.weight_of(layer).detach()).clone()
    return weights


def profiles_by_task(profiles: Sequence[LayerProfile]) -> dict[int, list[LayerProfile]]:
    """Task index → the profiles of its layers, in the order of the network; the first task has none.

    Raises:
        NesskitError: there is no profile.
    """
    tasks = sorted({profile.task for profile in check_profiles(profiles)})
    return {task: [profile for profile in profiles if profile.task == task] for task in tasks}


@dataclass(frozen=True, eq=False)
class Capacity:
    """How much each task was free to train (L layers, T tasks; NaN where a layer has no profile of a task).

    Attributes:
        layers: (L,) names.
        tasks: (T,) indices; the first task of a stream, which trains everything, has no profile.
        rank: (L, T) r, the free directions.
        dimension: (L,) d.
        outputs: (L,) d_out; NaN if not known.
    """

    layers: tuple[str, ...]
    tasks: tuple[int, ...]
    rank: Array
    dimension: Array
    outputs: Array

    @property
    def free_share(self) -> Array:
        """(L, T) r / d, which is also the share of a layer's parameters that a task trains."""
        return self.rank / self.dimension[:, np.newaxis]

    @property
    def trainable(self) -> Array:
        """(L, T) r · d_out, the entries of V."""
        return self.rank * self.outputs[:, np.newaxis]

    @property
    def network_trainable(self) -> Array:
        """(T,) trainable parameters of all layers; NaN if a layer's outputs are not known."""
        return self.trainable.sum(axis=0)

    @property
    def network_share(self) -> Array:
        """(T,) trainable parameters over all parameters of these layers; NaN if a layer's outputs are not known."""
        return self.network_trainable / (self.dimension @ self.outputs)


def capacity(profiles: Sequence[LayerProfile], outputs: Mapping[str, int] | None = None) -> Capacity:
    """Free rank and trainable parameters of every layer for every task.

    Args:
        profiles: of one run.
        outputs: layer name → d_out, for records of older versions, whose profiles do not hold it.

    Raises:
        NesskitError: there is no profile, or they are of several runs.
        SpectrumError: the dimension of a layer changes, so the profiles are of different models.
    """
    layers = list(dict.fromkeys(profile.layer for profile in check_profiles(profiles)))
    tasks = sorted({profile.task for profile in profiles})
    rank = np.full((len(layers), len(tasks)), np.nan)
    dimensions: dict[str, int] = {}
    known = dict(outputs or {})
    for profile in profiles:
        place, d = (layers.index(profile.layer), tasks.index(profile.task)), len(profile.sigma_squared)
        if dimensions.setdefault(profile.layer, d) != d:
            raise SpectrumError(
                f"layer '{profile.layer}' has {dimensions[profile.layer]} inputs in one profile and {d} in another: "
                "take the profiles of one run"
            )
        if not np.isnan(rank[place]):
            raise NesskitError(
                f"there are two profiles of layer '{profile.layer}', task {profile.task + 1}: "
                "take the profiles of one run"
            )
        rank[place] = profile.rank
        if profile.outputs:
            known[profile.layer] = profile.outputs
    return Capacity(
        tuple(layers),
        tuple(tasks),
        rank,
        np.array([dimensions[layer] for layer in layers], dtype=np.float64),
        np.array([known.get(layer, np.nan) for layer in layers], dtype=np.float64),
    )


def _profile(layer: str, task: int, moment: Moment, weight: Matrix, update: Matrix) -> LayerProfile:
    spectrum = as_spectrum(moment, layer)
    d = len(spectrum)
    try:
        matrices = as_matrix(update, d), as_matrix(weight, d, "the weight")
    except SpectrumError as error:
        raise SpectrumError(f"layer '{layer}': {error}") from error
    if matrices[0].shape != matrices[1].shape:
        raise SpectrumError(
            f"layer '{layer}': update and weight have {len(matrices[0])} and {len(matrices[1])} outputs"
        )
    return layer_profile(layer, task, d, moment.count, spectrum, *matrices)
