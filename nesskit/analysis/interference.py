"""Interference and plasticity for every rank at once, without data.

A layer has seen the inputs I (d × N) with C = I Iᵀ = U diag(σ²) Uᵀ, and something wants to change its weight by D
(d_out × d). If D is restricted to the r directions of smallest σ, U_r, then

    ‖D U_r U_rᵀ I‖_F² = Σ_{i in the r smallest} σ_i² ‖D u_i‖²      interference: how far the old outputs move
    ‖D U_r‖_F²        = Σ_{i in the r smallest} ‖D u_i‖²           energy kept: how much of the change is left

so one product D U and two cumulative sums answer for every r. The slope of interference² over energy is σ_i², which
grows with r: the curve is convex, and no set of whole eigen-directions lies below it.

Groups of a convolution are pooled, as their moment is: every output is charged with the patches of every group, so for
them interference and outputs are upper bounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from nesskit.analysis.checks import Array, Matrix, as_matrix, as_spectrum, check_profiles, check_rank
from nesskit.errors import SpectrumError
from nesskit.spectra.moment import Moment
from nesskit.spectra.profile import LayerProfile
from nesskit.spectra.spectrum import Spectrum


@dataclass(frozen=True, eq=False)
class Frontier:
    """What a change of weights costs and what is left of it, from nothing free to everything free.

    Attributes:
        interference: (n,) ‖D P I‖_F ascending from 0, where P projects onto what is free at each point.
        energy_kept: (n,) ‖D P‖_F², ascending from 0.
        output_norm: ‖W I‖_F, the size of the old outputs; NaN where no weight is known.
    """

    interference: Array
    energy_kept: Array
    output_norm: float

    @property
    def energy_share(self) -> Array:
        """(n,) energy kept as a share of ‖D‖_F²; NaN for a change of zeros."""
        return _shares(self.energy_kept, self.energy_kept[-1])

    @property
    def interference_share(self) -> Array:
        """(n,) interference as a share of that of the whole change; NaN if that is 0."""
        return _shares(self.interference, self.interference[-1])

    @property
    def relative_interference(self) -> Array:
        """(n,) ‖D P I‖_F / ‖W I‖_F, the change of the old outputs in their own size; NaN where that is unknown or 0."""
        return _shares(self.interference, self.output_norm)

    @property
    def knee(self) -> int:
        """The point where most is kept for the least: the greatest energy share minus interference share.

        In a picture of one share over the other that is the point farthest from the chord between the two ends. The
        first such point, so 0 for a change of zeros; everything free where nothing interferes.
        """
        return int(np.argmax(np.nan_to_num(self.energy_share) - np.nan_to_num(self.interference_share)))


@dataclass(frozen=True, eq=False)
class InterferenceCurve(Frontier):
    """Interference and energy kept of one layer at every rank: (d + 1,) each, entry r with r directions free."""

    @property
    def dimension(self) -> int:
        """d."""
        return len(self.interference) - 1

    @property
    def ranks(self) -> np.ndarray:
        """(d + 1,) 0 … d."""
        return np.arange(len(self.interference))


def interference_by_rank(update: Matrix, moment: Moment | Spectrum, weight: Matrix | None = None) -> InterferenceCurve:
    """What restricting ``update`` to the r smallest directions of the old inputs costs and keeps, for every r.

    Args:
        update: D, (d_out, d): a trained ΔW, a gradient, or any other change; the weight of a convolution as it is.
        moment: of the layer's old inputs, or their spectrum.
        weight: W, like ``update``, before the change: makes interference relative to the old outputs.

    Raises:
        SpectrumError: no input was seen, or the shapes do not belong to one layer.
    """
    spectrum = as_spectrum(moment)
    sigma_squared = spectrum.singular_values.square().cpu().numpy()
    update_energy = energy_along(update, spectrum)
    if weight is None:
        return curve_of_energies(sigma_squared, update_energy)
    return curve_of_energies(sigma_squared, update_energy, energy_along(weight, spectrum, "the weight"))


def interference_of_profile(profile: LayerProfile) -> InterferenceCurve:
    """The same from what a run has kept about a layer: no data, no weights."""
    (profile,) = check_profiles([profile])
    return curve_of_energies(profile.sigma_squared, profile.update_energy, profile.weight_energy)


def measured_interference(update: Matrix, inputs: Matrix, rank: int) -> float:
    """‖D U_r U_rᵀ I‖_F the long way: SVD of the raw inputs, and every input through the restricted update.

    Args:
        update: D, (d_out, d).
        inputs: (n, d) one old input a row.
        rank: r, 0 … d.

    Raises:
        SpectrumError: the rank is out of range, there is no input, or the shapes do not belong to one layer.
    """
    rows = as_matrix(inputs, what="the inputs")
    if not len(rows):
        raise SpectrumError("there are no inputs to measure with: pass at least one row")
    d = rows.shape[1]
    # Fewer rows than columns: the missing directions are the null space, which only the full matrices hold.
    directions = torch.linalg.svd(rows, full_matrices=len(rows) < d).Vh
    free = directions[d - check_rank(rank, d) :]
    restricted = as_matrix(update, d).to(free.device) @ free.T @ free
    return float(torch.linalg.matrix_norm(rows @ restricted.T))


def energy_along(weight: Matrix, spectrum: Spectrum, what: str = "the update") -> Array:
    """(d,) ‖D u_i‖² for the rows of ``weight``, D (d_out, d)."""
    matrix = as_matrix(weight, len(spectrum), what).to(spectrum.directions.device)
    return (matrix @ spectrum.directions).square().sum(dim=0).cpu().numpy()


def curve_of_energies(
    sigma_squared: Array, update_energy: Array, weight_energy: Array | None = None
) -> InterferenceCurve:
    """The curve from σ_i², ‖D u_i‖² and, if the weight is known, ‖W u_i‖², each (d,), σ descending."""
    outputs = float("nan") if weight_energy is None else float(np.sqrt(sigma_squared @ weight_energy))
    interference = np.sqrt(sums_from_smallest(sigma_squared * update_energy))
    return InterferenceCurve(interference, sums_from_smallest(update_energy), outputs)


def sums_from_smallest(values: Array) -> Array:
    """(d + 1,) entry r is the sum over the last r of ``values`` (d,), which belong to the r smallest directions."""
    return np.concatenate([[0.0], np.cumsum(values[::-1])])


def _shares(values: Array, whole: float) -> Array:
    return values / whole if whole > 0 else np.full_like(values, np.nan)
