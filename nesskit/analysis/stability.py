"""The stability bound of Eq. 7 beside what really happened.

For an update ΔW = U V in the r smallest directions, every old input x satisfies

    ‖ΔW x‖₂ ≤ σ_j ‖V‖₂ ≤ ε₁ ‖I‖_F ‖V‖₂                             (Eq. 7; σ_j is the largest free σ)

The first step is tight only for an input that alone makes up σ_j, which is a sum over all N inputs. For the root mean
square over the inputs the same argument gives √N less: rms ‖ΔW x‖₂ = ‖ΔW I‖_F / √N ≤ σ_j ‖V‖_F / √N.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nesskit.analysis.checks import Inputs, Matrix, as_matrix, as_spectrum, check_profiles, check_rank, ratio
from nesskit.errors import SpectrumError
from nesskit.spectra.filters import HardFilter, Threshold
from nesskit.spectra.moment import Moment
from nesskit.spectra.profile import LayerProfile
from nesskit.spectra.spectrum import Spectrum


@dataclass(frozen=True)
class StabilityBound:
    """How far old outputs of one layer may move according to Eq. 7, and how far they did, in units of the outputs.

    Attributes:
        layer, task: which layer, and index of the task that made the update.
        rank: r, the free directions.
        sigma: σ_j, the largest free singular value; 0 if none is free.
        cut: ε₁ ‖I‖_F, or what another threshold rule has in its place; NaN for other ways to choose r.
        spectral_norm: ‖V‖₂ = ‖ΔW‖₂; NaN where only a profile is known.
        frobenius_norm: ‖V‖_F, at least ‖V‖₂.
        worst: the largest ‖ΔW x‖₂ of an old input; NaN where only a profile is known.
        mean: the mean of ‖ΔW x‖₂; NaN where only a profile is known.
        rms: the root of the mean of ‖ΔW x‖₂².
        count: how many old inputs.
    """

    layer: str
    task: int
    rank: int
    sigma: float
    cut: float
    spectral_norm: float
    frobenius_norm: float
    worst: float
    mean: float
    rms: float
    count: int

    @property
    def bound(self) -> float:
        """σ_j ‖V‖₂ for every single input; with ‖V‖_F where ‖V‖₂ is not known, which is weaker but holds too."""
        return self.sigma * (self.frobenius_norm if np.isnan(self.spectral_norm) else self.spectral_norm)

    @property
    def threshold_bound(self) -> float:
        """ε₁ ‖I‖_F ‖V‖₂, the right-hand side of Eq. 7; NaN where r was not chosen by a threshold."""
        return self.cut * (self.frobenius_norm if np.isnan(self.spectral_norm) else self.spectral_norm)

    @property
    def rms_bound(self) -> float:
        """σ_j ‖V‖_F / √N for the root mean square."""
        return self.sigma * self.frobenius_norm / self.count**0.5

    @property
    def slack(self) -> float:
        """The bound over the worst input: 1 would be tight."""
        return ratio(self.bound, self.worst)

    @property
    def mean_slack(self) -> float:
        """The bound over the mean input."""
        return ratio(self.bound, self.mean)

    @property
    def rms_slack(self) -> float:
        """The bound for the root mean square over the root mean square."""
        return ratio(self.rms_bound, self.rms)


def stability_bound(
    update: Matrix,
    moment: Moment | Spectrum,
    free: int | HardFilter,
    inputs: Inputs,
    layer: str = "",
    task: int = 0,
) -> StabilityBound:
    """Eq. 7 and what it bounds, for one layer and every one of its old inputs.

    Args:
        update: D, (d_out, d). It is restricted to the free directions first, which leaves NESS's own ΔW as it is.
        moment: of the old inputs, or their spectrum.
        free: r, or the filter that chose it.
        inputs: the same old inputs, (n, d) one a row, or an iterable of such pieces; for a convolution one patch of
            one group a row, see :func:`collect_inputs`.
        layer, task: for the result.

    Raises:
        SpectrumError: shapes that do not belong to one layer, a rank out of range, or no input.
    """
    spectrum = as_spectrum(moment, layer)
    d = len(spectrum)
    rank = free.null_rank(spectrum) if isinstance(free, HardFilter) else check_rank(free, d)
    basis = spectrum.null_basis(rank).cpu()
    coefficients = (as_matrix(update, d).cpu() @ basis).T
    moved = [(rows @ basis @ coefficients).norm(dim=1) for rows in _pieces(inputs, d)]
    if not sum(map(len, moved)):
        raise SpectrumError("there are no old inputs to measure with: pass at least one row")
    moves = torch.cat(moved)
    return StabilityBound(
        layer,
        task,
        rank,
        sigma=float(spectrum.singular_values[d - rank]) if rank else 0.0,
        cut=free.cut(spectrum) if isinstance(free, Threshold) else float("nan"),
        spectral_norm=float(torch.linalg.matrix_norm(coefficients, 2)) if rank else 0.0,
        frobenius_norm=float(torch.linalg.matrix_norm(coefficients)),
        worst=float(moves.max()),
        mean=float(moves.mean()),
        rms=float(moves.square().mean().sqrt()),
        count=len(moves),
    )


def stability_of_profile(profile: LayerProfile) -> StabilityBound:
    """The same from what a run has kept: the root mean square, not the worst input, and the bound with ‖V‖_F.

    After a soft filter every direction counts as free, so that σ_j is σ₁: true, but weak.
    """
    (profile,) = check_profiles([profile])
    d = len(profile.sigma_squared)
    rank = check_rank(profile.rank, d)
    nan = float("nan")
    return StabilityBound(
        profile.layer,
        profile.task,
        rank,
        sigma=float(np.sqrt(profile.sigma_squared[d - rank])) if rank else 0.0,
        cut=nan,
        spectral_norm=nan,
        frobenius_norm=float(np.sqrt(profile.update_energy.sum())),
        worst=nan,
        mean=nan,
        rms=float(np.sqrt(profile.sigma_squared @ profile.update_energy / profile.count)),
        count=profile.count,
    )


def _pieces(inputs: Inputs, dimension: int) -> Iterator[Tensor]:
    whole = isinstance(inputs, Tensor | np.ndarray)
    pieces: Iterable[Matrix] = [inputs] if whole else inputs  # type: ignore[list-item]
    for piece in pieces:
        yield as_matrix(piece, dimension, "the inputs").cpu()
