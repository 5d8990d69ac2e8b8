"""Singular values and directions of layer inputs (paper, Eq. 4).

The left singular vectors of I and its singular values σ₁ ≥ … ≥ σ_d come from the eigen-decomposition of the second
moment: C = I Iᵀ = U diag(σ²) Uᵀ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nesskit.errors import SpectrumError
from nesskit.spectra.precision import float64_device


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of a layer's inputs and their directions (Eq. 4).

    Attributes:
        singular_values: (d,) σ₁ ≥ … ≥ σ_d ≥ 0, float64.
        directions: (d, d) orthonormal; column i belongs to singular value i, and its largest entry is positive.
    """

    singular_values: Tensor
    directions: Tensor

    def __post_init__(self) -> None:
        values = torch.as_tensor(self.singular_values, dtype=torch.float64)
        directions = torch.as_tensor(self.directions, dtype=torch.float64)
        d = values.numel()
        if values.ndim != 1 or d == 0 or directions.shape != (d, d):
            raise SpectrumError(
                "a spectrum needs d ≥ 1 singular values and d × d directions, "
                f"got shapes {tuple(values.shape)} and {tuple(directions.shape)}"
            )
        if not torch.isfinite(values).all() or (values < 0).any() or (values.diff() > 0).any():
            raise SpectrumError("singular values must be finite, non-negative and in descending order")
        # On a few vectors, whatever they are: all of DᵀD would take as long as half the decomposition.
        along = torch.linspace(-1, 1, d).to(directions).unsqueeze(1)
        some = torch.cat([along.cos(), along, (9 * along).sin(), (40 * along).sin()], dim=1)
        if not (directions.T @ (directions @ some) - some).abs().max() < 1e-4:  # nor with a NaN in it
            raise SpectrumError("the directions must be orthonormal: columns of length 1 at right angles")
        object.__setattr__(self, "singular_values", values)
        object.__setattr__(self, "directions", directions)

    @classmethod
    def of(cls, matrix: Tensor) -> Spectrum:
        """The spectrum of inputs whose second moment is ``matrix`` (d × d, symmetric): σ = √λ."""
        eigenvalues, directions = _eigh(matrix)
        # C is positive semi-definite, so a negative eigenvalue is round-off around zero. The clamped value must be the
        # one that is used: the square root of a negative one is NaN, and a NaN norm silently freezes the layer.
        singular_values = eigenvalues.clamp(min=0).sqrt()
        return cls(singular_values.flip(0), _fix_signs(directions.flip(1)))

    def __len__(self) -> int:
        return len(self.singular_values)

    @property
    def frobenius_norm(self) -> float:
        """‖I‖_F = √(Σ σ²), the scale of the paper's threshold."""
        return float(self.singular_values.square().sum().sqrt())

    @property
    def nuclear_norm(self) -> float:
        """‖I‖_* = Σ σ, the scale of the authors' code."""
        return float(self.singular_values.sum())

    def null_basis(self, rank: int) -> Tensor:
        """U_t: the directions of the ``rank`` smallest singular values (Eq. 5), (d, rank) with UᵀU = 1.

        Raises:
            SpectrumError: ``rank`` is not between 0 and d.
        """
        d = len(self)
        if not 0 <= rank <= d:
            raise SpectrumError(f"rank {rank} is out of range: this layer has {d} directions (0 … {d})")
        return self.directions[:, d - rank :]


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues and eigenvectors in float64, on the CPU where the device's own solver fails."""
    matrix = matrix.to(float64_device(matrix.device), torch.float64)
    if not torch.isfinite(matrix).all():
        raise SpectrumError("the moment holds NaN or infinite values")
    try:
        eigenvalues, directions = torch.linalg.eigh(matrix)
        if torch.isfinite(eigenvalues).all() and torch.isfinite(directions).all():
            return eigenvalues, directions
    except RuntimeError:  # torch.linalg.LinAlgError is one
        # GPU solvers give up on some low-rank matrices that the CPU's solver handles.
        if matrix.device.type == "cpu":
            raise
    eigenvalues, directions = torch.linalg.eigh(matrix.cpu())
    return eigenvalues.to(matrix.device), directions.to(matrix.device)


def _fix_signs(directions: Tensor) -> Tensor:
    """Eigenvectors are unique up to sign: make the entry of largest magnitude in each column positive.

    Of entries that are as large but for round-off, as in (1, -1)/√2, the first decides.
    """
    sizes = directions.abs()
    rows = (sizes > (1 - 1e-6) * sizes.amax(dim=0)).to(torch.uint8).argmax(dim=0, keepdim=True)
    signs = directions.gather(0, rows).sign()
    return directions * signs
