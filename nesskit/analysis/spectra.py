"""How many directions a layer's inputs really use: effective rank and the decay of the spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nesskit.analysis.checks import Array, as_singular_values
from nesskit.errors import SettingsError
from nesskit.spectra.moment import Moment
from nesskit.spectra.profile import LayerProfile
from nesskit.spectra.spectrum import Spectrum

Source = Spectrum | Moment | LayerProfile | Sequence[float] | Array  # anything with singular values, or themselves

ROUND_OFF = 1e-7  # of σ₁: what a zero singular value may come out as, since squaring the inputs halves the digits


@dataclass(frozen=True, eq=False)
class SpectrumDecay:
    """How fast the singular values of a layer's inputs fall.

    Attributes:
        relative: (d,) σ_i / σ₁; all 0 where nothing was seen in any direction.
        energy: (d,) the share of Σ σ² that the i largest directions hold; NaN where that sum is 0.
        effective_rank, stable_rank: see the functions of these names.
        numerical_rank: directions with σ above round-off (1e-7 σ₁); the others are an exact null space.
        exponent: α of the power law σ_i ∝ i^-α that fits the directions above round-off best (least squares of the
            logarithms); NaN with fewer than two.
    """

    relative: Array
    energy: Array
    effective_rank: float
    stable_rank: float
    numerical_rank: int
    exponent: float

    def directions_for(self, share: float) -> int:
        """How many of the largest directions hold ``share`` of the energy Σ σ²; 0 where there is none."""
        if not 0 < share <= 1:
            raise SettingsError(f"share must lie in (0, 1], got {share}")
        # The last sum may miss 1 by round-off: all directions together hold everything.
        return min(int((self.energy < share).sum()) + 1, self.numerical_rank) if self.numerical_rank else 0


def effective_rank(source: Source) -> float:
    """exp(-Σ p_i ln p_i) with p_i = σ_i / Σ σ, between 1 and d (Roy and Vetterli 2007); 0 if every σ is 0."""
    values = as_singular_values(source)
    if not values[0]:
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def stable_rank(source: Source) -> float:
    """‖I‖_F² / σ₁², between 1 and the rank, and hardly moved by small directions; 0 if every σ is 0."""
    values = as_singular_values(source)
    return float(((values / values[0]) ** 2).sum()) if values[0] else 0.0


def spectrum_decay(source: Source) -> SpectrumDecay:
    """Everything about how the singular values of ``source`` fall.

    Raises:
        SpectrumError: the spectrum is empty.
    """
    values = as_singular_values(source)
    relative = values / values[0] if values[0] else np.zeros_like(values)
    energy = np.cumsum(relative**2)
    above = int((relative > ROUND_OFF).sum())
    return SpectrumDecay(
        relative,
        energy / energy[-1] if values[0] else np.full_like(values, np.nan),
        effective_rank(values),
        stable_rank(values),
        above,
        _power_law(relative[:above]),
    )


class OwnCoordinates(Spectrum):
    """Singular values (d,) as a spectrum whose directions are the unit vectors: all that most filters need.

    Norms are kept, since a slider asks for them again and again; directions are made when a filter asks for them.
    """

    def __init__(self, singular_values: Array) -> None:
        object.__setattr__(self, "singular_values", torch.from_numpy(as_singular_values(singular_values)))

    @property
    def directions(self) -> Tensor:
        """(d, d) the identity."""
        return torch.eye(len(self), dtype=torch.float64)

    @cached_property
    def frobenius_norm(self) -> float:
        """‖I‖_F."""
        return super().frobenius_norm

    @cached_property
    def nuclear_norm(self) -> float:
        """‖I‖_* = Σ σ."""
        return super().nuclear_norm


def _power_law(relative: Array) -> float:
    if len(relative) < 2:
        return float("nan")
    slope, _ = np.polyfit(np.log(np.arange(1, len(relative) + 1)), np.log(relative), 1)
    return float(-slope)
