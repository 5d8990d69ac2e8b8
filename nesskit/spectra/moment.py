"""Second moments of layer inputs (paper, Section 3: the online form of Eq. 4).

Notation: a layer has seen inputs x₁ … x_N ∈ ℝᵈ, the columns of I (d × N). All that NESS needs of them is in the small
matrix C = I Iᵀ = Σ x xᵀ, which can be summed up while the inputs stream by, so that no input has to be kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nesskit.errors import SpectrumError
from nesskit.spectra.precision import float64_device
from nesskit.spectra.spectrum import Spectrum

# Matrices xᵀ x of at least this many columns are summed up block by block.
GRAM_BLOCK = 512


def add_gram_(matrix: Tensor, x: Tensor) -> None:
    """``matrix`` (d, d) += xᵀ x of ``x`` (n, d): once d is large block by block, and of two mirrored blocks only one.

    ``matrix`` must be symmetric, as every sum of such products is.
    """
    d = x.shape[1]
    if d < GRAM_BLOCK:
        matrix.addmm_(x.T, x)
        return
    half = d // 2
    left, right = x[:, :half], x[:, half:]
    add_gram_(matrix[:half, :half], left)
    add_gram_(matrix[half:, half:], right)
    matrix[:half, half:].addmm_(left.T, right)
    matrix[half:, :half] = matrix[:half, half:].T


class Moment:
    """The streaming second moment C = Σ x xᵀ of one layer's inputs.

    Args:
        dimension: d, the number of inputs of the layer (for a convolution: C_in/groups · k_h · k_w).
        device: where C is kept and summed; the CPU if that device has no float64.

    ``a + b`` is the moment of both: of two tasks, two halves of a data set, or two machines.
    """

    def __init__(self, dimension: int, device: torch.device | str = "cpu") -> None:
        if dimension < 1:
            raise SpectrumError(f"a moment needs at least one dimension, got {dimension}")
        self.matrix = torch.zeros(dimension, dimension, dtype=torch.float64, device=float64_device(device))
        self.count = 0

    @property
    def dimension(self) -> int:
        """d, the number of rows of C."""
        return self.matrix.shape[0]

    @property
    def nbytes(self) -> int:
        """What this moment occupies, in bytes (8 d²), however many inputs it has seen."""
        return self.matrix.nbytes

    @torch.no_grad()
    def update(self, x: Tensor | np.ndarray, count: int | None = None) -> None:
        """Add inputs: C ← C + Σ x xᵀ.

        Args:
            x: (n, d), any floating or integer type.
            count: how many samples the rows stand for, n if not given (the groups of a convolution contribute
                several rows to one output position).

        Raises:
            SpectrumError: x has another width than d, or holds NaN or infinite values.
        """
        try:
            if not isinstance(x, Tensor):
                x = torch.as_tensor(np.ascontiguousarray(x))  # torch takes no flipped arrays
        except (TypeError, ValueError) as error:
            raise SpectrumError(f"inputs must be a tensor or an array of numbers, got {type(x).__name__}") from error
        if x.is_complex() or x.layout is not torch.strided:
            raise SpectrumError(f"inputs must be real and dense, got {x.dtype}, {x.layout}")
        if x.ndim != 2 or x.shape[1] != self.dimension:
            raise SpectrumError(f"expected inputs of shape (n, {self.dimension}), got {tuple(x.shape)}")
        x = x.to(self.matrix.device, torch.float64)
        _require_finite(x)
        add_gram_(self.matrix, x)
        self.count += len(x) if count is None else count

    @torch.no_grad()
    def add(self, product: Tensor, count: int) -> None:
        """Add inputs whose Σ x xᵀ is known already: ``product`` (d, d), float64, of ``count`` samples.

        Raises:
            SpectrumError: it has another shape, or the inputs held NaN or infinite values.
        """
        if product.shape != self.matrix.shape:
            width = self.dimension
            raise SpectrumError(f"expected a product of shape ({width}, {width}), got {tuple(product.shape)}")
        _require_finite(product.diagonal())  # Σ x², finite exactly where all x are
        self.matrix += product
        self.count += count

    def __add__(self, other: Moment) -> Moment:
        if not isinstance(other, Moment):
            return NotImplemented
        if other.dimension != self.dimension:
            raise SpectrumError(
                f"moments of dimension {self.dimension} and {other.dimension} belong to different layers"
            )
        total = Moment(self.dimension, self.matrix.device)
        total.matrix = self.matrix + other.matrix.to(self.matrix.device)
        total.count = self.count + other.count
        return total

    def spectrum(self) -> Spectrum:
        """Singular values and left singular vectors of all inputs seen (Eq. 4).

        Raises:
            SpectrumError: no input has been seen yet.
        """
        if self.count == 0:
            raise SpectrumError("this moment has seen no input yet: run data through the layer first")
        return Spectrum.of(self.matrix)

    def state_dict(self) -> dict[str, Any]:
        """``matrix`` (d, d) and ``count``, for a checkpoint."""
        return {"matrix": self.matrix, "count": self.count}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any], device: torch.device | str = "cpu") -> Moment:
        """The moment that ``state_dict`` was taken of."""
        moment = cls(len(state["matrix"]), device)
        moment.matrix.copy_(state["matrix"])
        moment.count = state["count"]
        return moment

    def __repr__(self) -> str:
        return f"Moment(dimension={self.dimension}, count={self.count})"


def _require_finite(x: Tensor) -> None:
    # Through the norm, which needs no other tensor of this size; float64 holds the square of any float32.
    if not torch.isfinite(torch.linalg.vector_norm(x)):
        raise SpectrumError("the inputs hold NaN or infinite values")
