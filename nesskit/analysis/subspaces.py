"""Subspaces of a layer's inputs: how two tasks' overlap, and how the null space shrinks from task to task.

Between two subspaces with orthonormal bases A (d × a) and B (d × b) there are min(a, b) principal angles
0 ≤ θ₁ ≤ θ₂ ≤ … ≤ 90°, whose cosines are the singular values of AᵀB (Björck and Golub 1973).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nesskit.analysis.checks import Array, as_spectrum, check_rank, ratio
from nesskit.errors import NesskitError, SpectrumError
from nesskit.spectra.filters import EnergyThreshold, HardFilter
from nesskit.spectra.moment import Moment
from nesskit.spectra.spectrum import Spectrum


@dataclass(frozen=True, eq=False)
class SubspaceOverlap:
    """Two subspaces of the inputs of one layer.

    Attributes:
        angles: (min(a, b),) principal angles in degrees, ascending.
        ranks: (a, b), how many directions each has.
        dimension: d.
    """

    angles: Array
    ranks: tuple[int, int]
    dimension: int

    @property
    def overlap(self) -> float:
        """‖AᵀB‖_F² / min(a, b), the mean of cos² θ: 1 if one contains the other, 0 if orthogonal; NaN if one is {0}."""
        return float(np.mean(np.cos(np.radians(self.angles)) ** 2)) if len(self.angles) else float("nan")

    @property
    def overlap_by_chance(self) -> float:
        """What random subspaces of these sizes would have on average: max(a, b) / d."""
        return max(self.ranks) / self.dimension


@dataclass(frozen=True, eq=False)
class NullSpaceHistory:
    """The null space of one layer after each of T tasks.

    Attributes:
        ranks: (T,) r, its size after tasks 1 … t.
        dimension: d.
        to_first: (T,) the null space after each task beside the one after the first.
        to_previous: (T - 1,) the null space after each task but the first beside the one before it.
    """

    ranks: np.ndarray
    dimension: int
    to_first: tuple[SubspaceOverlap, ...]
    to_previous: tuple[SubspaceOverlap, ...]

    @property
    def kept(self) -> Array:
        """(T,) ‖U₁ᵀU_t‖_F² / r₁: how much of the first null space is still free, 1 … 0; NaN if nothing ever was."""
        return np.array(
            [ratio(float((np.cos(np.radians(o.angles)) ** 2).sum()), float(self.ranks[0])) for o in self.to_first]
        )


def subspace_overlap(
    a: Moment | Spectrum, b: Moment | Spectrum, share: float = 0.95, rank: int | None = None
) -> SubspaceOverlap:
    """Principal angles between the dominant input spaces of two tasks in one layer.

    Args:
        a, b: what the layer saw of each task alone.
        share: of each, the fewest directions that hold this share of Σ σ².
        rank: of each, this many directions instead.

    Raises:
        SpectrumError: another dimension (moments of different layers or models), a rank out of range, no input seen.
    """
    one, other = as_spectrum(a), as_spectrum(b)
    return principal_angles(_dominant(one, share, rank), _dominant(other, share, rank))


def null_space_history(moments: Sequence[Moment], rule: HardFilter) -> NullSpaceHistory:
    """How the null space of one layer shrinks and turns while tasks add up.

    Args:
        moments: what the layer saw of each task alone, in the order of the tasks.
        rule: which directions of tasks 1 … t together are free.

    Raises:
        NesskitError: there is no moment.
        SpectrumError: moments of different layers or models, or one that has seen no input.
    """
    if not len(moments):
        raise NesskitError("there are no moments: keep one per task, as collect_moments(model, batches) gives them")
    bases, total = [], None
    for task, moment in enumerate(moments):
        if moment.count == 0:
            raise SpectrumError(
                f"the moment of task {task + 1} has seen no input: run its data through the layer first"
            )
        total = moment if total is None else total + moment
        spectrum = total.spectrum()
        bases.append(spectrum.null_basis(rule.null_rank(spectrum)))
    return NullSpaceHistory(
        np.array([basis.shape[1] for basis in bases]),
        moments[0].dimension,
        tuple(principal_angles(bases[0], basis) for basis in bases),
        tuple(principal_angles(before, after) for before, after in itertools.pairwise(bases)),
    )


def principal_angles(a: Tensor, b: Tensor) -> SubspaceOverlap:
    """Principal angles between the spans of ``a`` (d, a) and ``b`` (d, b), whose columns are orthonormal.

    Raises:
        SpectrumError: they have different d.
    """
    if len(a) != len(b):
        raise SpectrumError(f"spaces of dimension {len(a)} and {len(b)} belong to different layers or models")
    if a.shape[1] > b.shape[1]:
        angles = principal_angles(b, a).angles
        return SubspaceOverlap(angles, (a.shape[1], b.shape[1]), len(a))
    a, b = a.to(torch.float64), b.to(a.device, torch.float64)
    if not a.shape[1]:
        return SubspaceOverlap(np.empty(0), (0, b.shape[1]), len(a))
    cosines = torch.linalg.svdvals(b.T @ a).clamp(max=1)
    # Near 0 the cosine is flat, so that angles under 1e-8 would drown: there the sine is what can be measured.
    sines = torch.linalg.svdvals(a - b @ (b.T @ a)).flip(0).clamp(max=1)
    radians = torch.where(cosines.square() > 0.5, sines.arcsin(), cosines.arccos())
    return SubspaceOverlap(radians.rad2deg().cpu().numpy(), (a.shape[1], b.shape[1]), len(a))


def _dominant(spectrum: Spectrum, share: float, rank: int | None) -> Tensor:
    """(d, k) the directions of the k largest singular values."""
    d = len(spectrum)
    k = d - EnergyThreshold(share).null_rank(spectrum) if rank is None else check_rank(rank, d)
    return spectrum.directions[:, :k]
