"""All layers of a network under one rule: any ε is a look-up in sums that are made once.

This is what a slider moves over. :class:`NetworkCurves` holds the curves of every layer for one task. Its method ``at``
says what a filter would free, cost and keep; ``frontier`` does that for every ε of a rule at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch

from nesskit.analysis.checks import Array, check_profiles, ratio
from nesskit.analysis.interference import Frontier, InterferenceCurve, interference_of_profile
from nesskit.analysis.spectra import OwnCoordinates
from nesskit.errors import NesskitError
from nesskit.spectra.filters import Filter, HardFilter, Probe, Threshold
from nesskit.spectra.profile import LayerProfile
from nesskit.spectra.spectrum import Spectrum


@dataclass(frozen=True)
class LayerPoint:
    """What one filter does to one layer and one update.

    Attributes:
        layer: its name.
        rank: r, directions with a weight above 0.
        dimension: d.
        outputs: d_out; 0 if not known.
        cut: the σ up to which directions are free; NaN for a filter that has no such cut.
        interference: ‖ΔW I‖_F of the filtered update.
        bound: what Eq. 7 allows it, σ_j ‖ΔW‖_F; also no single old output moves farther than this.
        energy_kept: ‖ΔW‖_F² of the filtered update.
        energy: ‖D‖_F² of the whole update.
        output_norm: ‖W I‖_F.
    """

    layer: str
    rank: int
    dimension: int
    outputs: int
    cut: float
    interference: float
    bound: float
    energy_kept: float
    energy: float
    output_norm: float

    @property
    def parameters(self) -> int:
        """d · d_out, the weights of the layer."""
        return self.dimension * self.outputs

    @property
    def trainable(self) -> int:
        """r · d_out, the entries of V."""
        return self.rank * self.outputs

    @property
    def trainable_share(self) -> float:
        """r / d, the share of the layer's parameters that is trained."""
        return self.rank / self.dimension

    @property
    def relative_interference(self) -> float:
        """‖ΔW I‖_F / ‖W I‖_F."""
        return ratio(self.interference, self.output_norm)

    @property
    def relative_bound(self) -> float:
        """The bound over ‖W I‖_F."""
        return ratio(self.bound, self.output_norm)

    @property
    def energy_share(self) -> float:
        """Energy kept over that of the whole update; NaN for an update of zeros."""
        return ratio(self.energy_kept, self.energy)


@dataclass(frozen=True)
class NetworkPoint:
    """What one filter does to all layers; sums of squares run over layers, so that large layers count for more."""

    rule: Filter
    layers: tuple[LayerPoint, ...]

    @property
    def ranks(self) -> tuple[int, ...]:
        """Free directions of every layer."""
        return tuple(layer.rank for layer in self.layers)

    @property
    def rank(self) -> int:
        """Free directions of all layers."""
        return sum(self.ranks)

    @property
    def dimension(self) -> int:
        """Directions of all layers."""
        return sum(layer.dimension for layer in self.layers)

    @property
    def trainable(self) -> int:
        """Entries of V in all layers."""
        return sum(layer.trainable for layer in self.layers)

    @property
    def trainable_share(self) -> float:
        """Share of the layers' parameters that is trained; NaN if a layer's number of outputs is not known."""
        known = all(layer.outputs for layer in self.layers)
        return ratio(self.trainable, sum(layer.parameters for layer in self.layers)) if known else float("nan")

    @property
    def interference(self) -> float:
        """√(Σ interference²)."""
        return _root_of_squares([layer.interference for layer in self.layers])

    @property
    def bound(self) -> float:
        """√(Σ bound²)."""
        return _root_of_squares([layer.bound for layer in self.layers])

    @property
    def relative_interference(self) -> float:
        """√(Σ interference²) over √(Σ ‖W I‖_F²)."""
        return ratio(self.interference, _root_of_squares([layer.output_norm for layer in self.layers]))

    @property
    def energy_kept(self) -> float:
        """Σ energy kept."""
        return sum(layer.energy_kept for layer in self.layers)

    @property
    def energy_share(self) -> float:
        """Energy kept over that of the whole update; NaN for an update of zeros."""
        return ratio(self.energy_kept, sum(layer.energy for layer in self.layers))


@dataclass(frozen=True, eq=False)
class NetworkFrontier(Frontier):
    """A whole network under one threshold rule: point k frees the first k directions to become free as ε grows.

    Attributes:
        rule: the rule's name.
        eps: (n + 1,) the smallest ε at which each point is reached; n is the number of directions in all layers.
        trainable_share: (n + 1,) share of the layers' parameters that is trained; NaN if that is not known.
    """

    rule: str
    eps: Array
    trainable_share: Array


@dataclass(frozen=True, eq=False)
class LayerCurve(InterferenceCurve):
    """The curve of one layer, and everything that a filter asks about it."""

    profile: LayerProfile

    @classmethod
    def of(cls, profile: LayerProfile) -> LayerCurve:
        """The curve of ``profile``."""
        curve = interference_of_profile(profile)
        return cls(**{field.name: getattr(curve, field.name) for field in fields(curve)}, profile=profile)

    @cached_property
    def singular_values(self) -> Array:
        """(d,) σ₁ ≥ … ≥ σ_d."""
        return np.sqrt(self.profile.sigma_squared)

    @cached_property
    def spectrum(self) -> Spectrum:
        """For filters: the spectrum in its own coordinates, where direction i is the i-th unit vector."""
        return OwnCoordinates(self.singular_values)

    @property
    def probe(self) -> Probe:
        """For filters: a weight and an update with one output, which have the profile's energies in every direction."""
        energies = (self.profile.weight_energy, self.profile.update_energy)
        weight, update = (torch.from_numpy(np.sqrt(energy))[None] for energy in energies)
        return Probe(weight, update, tasks=max(1, self.profile.task))

    def null_rank(self, rule: HardFilter) -> int:
        """How many directions ``rule`` frees."""
        if isinstance(rule, Threshold):
            return int(np.searchsorted(self._ascending, rule.cut(self.spectrum), side="right"))
        return rule.null_rank(self.spectrum, self.probe if rule.needs_probe else None)

    def at(self, rule: Filter) -> LayerPoint:
        """What ``rule`` frees, costs and keeps."""
        filtered = self._restricted(rule) if isinstance(rule, HardFilter) else self._weighted(rule)
        rank, interference, bound, energy = filtered
        return LayerPoint(
            self.profile.layer,
            rank,
            self.dimension,
            self.profile.outputs,
            rule.cut(self.spectrum) if isinstance(rule, Threshold) else float("nan"),
            interference,
            bound,
            energy,
            float(self.energy_kept[-1]),
            self.output_norm,
        )

    def _restricted(self, rule: HardFilter) -> tuple[int, float, float, float]:
        """Rank, interference, bound and energy kept of D U_r U_rᵀ."""
        rank = self.null_rank(rule)
        energy = float(self.energy_kept[rank])
        largest_free = float(self._ascending[rank - 1]) if rank else 0.0
        return rank, float(self.interference[rank]), largest_free * energy**0.5, energy

    def _weighted(self, rule: Filter) -> tuple[int, float, float, float]:
        """The same of D U diag(w) Uᵀ; no input moves by more than max_i w_i σ_i ‖D‖_F."""
        weights = rule.weights(self.spectrum, self.probe if rule.needs_probe else None).numpy()
        energies = weights**2 * self.profile.update_energy
        bound = float((weights * self.singular_values).max() * self.energy_kept[-1] ** 0.5)
        interference = float(np.sqrt(self.profile.sigma_squared @ energies))
        return int((weights > 0).sum()), interference, bound, float(energies.sum())

    @cached_property
    def _ascending(self) -> Array:
        return self.singular_values[::-1].copy()


@dataclass(frozen=True, eq=False)
class NetworkCurves:
    """The curves of every layer for one task."""

    layers: tuple[LayerCurve, ...]

    @classmethod
    def of(cls, profiles: Sequence[LayerProfile]) -> NetworkCurves:
        """From the profiles of one task; see :func:`profiles_by_task`.

        Raises:
            NesskitError: there is no profile, or they are of several tasks.
        """
        tasks = sorted({profile.task for profile in check_profiles(profiles)})
        if len(tasks) > 1:
            raise NesskitError(
                f"these profiles are of tasks {', '.join(str(task + 1) for task in tasks)}: "
                "choose one, profiles_by_task(profiles)[task]"
            )
        return cls(tuple(LayerCurve.of(profile) for profile in profiles))

    def __getitem__(self, layer: str) -> LayerCurve:
        for curve in self.layers:
            if curve.profile.layer == layer:
                return curve
        raise NesskitError(f"there is no profile of layer '{layer}'; there are {', '.join(self.names)}")

    @property
    def names(self) -> list[str]:
        """The layers, in the order of the network."""
        return [curve.profile.layer for curve in self.layers]

    def at(self, rule: Filter) -> NetworkPoint:
        """What ``rule``, the same in every layer, frees, costs and keeps."""
        return NetworkPoint(rule, tuple(curve.at(rule) for curve in self.layers))

    def frontier(self, rule: type[Threshold]) -> NetworkFrontier:
        """All of that for every ε of a threshold rule: the directions of all layers, in the order they become free."""
        unit = rule(1.0)  # type: ignore[call-arg]
        scaled = [unit.eps_to_free(curve.spectrum).numpy() for curve in self.layers]
        eps = np.concatenate(scaled)
        order = np.argsort(eps, kind="stable")

        def sums(values: list[Array]) -> Array:
            return np.concatenate([[0.0], np.cumsum(np.concatenate(values)[order])])

        profiles = [curve.profile for curve in self.layers]
        outputs = [np.full(len(p.sigma_squared), p.outputs or np.nan) for p in profiles]
        trained = sums(outputs)
        return NetworkFrontier(
            interference=np.sqrt(sums([p.sigma_squared * p.update_energy for p in profiles])),
            energy_kept=sums([p.update_energy for p in profiles]),
            output_norm=_root_of_squares([curve.output_norm for curve in self.layers]),
            rule=rule.name,
            eps=np.concatenate([[0.0], eps[order]]),
            trainable_share=trained / trained[-1],
        )


def _root_of_squares(values: Sequence[float]) -> float:
    return float(np.sqrt(np.sum(np.square(values))))
