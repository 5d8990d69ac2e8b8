"""Second moments of layer inputs and their spectra (paper, Section 3: Eq. 4 and the online form of it).

Notation: a layer has seen inputs x₁ … x_N ∈ ℝᵈ, the columns of I (d × N). NESS needs the left singular vectors of I and
its singular values σ₁ ≥ … ≥ σ_d. Both come from the small matrix C = I Iᵀ = Σ x xᵀ = U diag(σ²) Uᵀ, which can be summed
up while the inputs stream by, so that no input has to be kept.

Everything here is float64: squaring I halves the digits. In float32 every σ below about 3e-4 σ₁ would be noise; here
every σ below about 1e-7 σ₁ still is, so thresholds under that tell nothing apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nesskit.errors import SpectrumError

# Matrices xᵀ x of at least this many columns are summed up block by block.
GRAM_BLOCK = 512


def float64_device(device: torch.device | str) -> torch.device:
    """``device`` if it computes in float64, else the CPU (Apple's MPS has no float64)."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device


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
        x = x if isinstance(x, Tensor) else torch.as_tensor(np.ascontiguousarray(x))  # torch takes no flipped arrays
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


@dataclass(frozen=True, eq=False)
class LayerProfile:
    """What one task did to one layer: 3 d numbers, enough for every interference curve without data or weights.

    All are in the order of the spectrum of the layer's *old* inputs (descending σ).

    Attributes:
        layer, task: name of the layer and index of the task (0 for the first).
        rank: r, how many directions the task was allowed to use.
        count: how many old inputs (samples × positions) the spectrum describes.
        sigma_squared: (d,) σ_i².
        update_energy: (d,) ‖ΔW u_i‖²; Σ over i is ‖ΔW‖_F².
        weight_energy: (d,) ‖W u_i‖² of the weight before the task; Σ σ_i² ‖W u_i‖² is ‖W I‖_F².
        outputs: d_out, so that the task trained r · d_out parameters; 0 if not known (records of older versions).
    """

    layer: str
    task: int
    rank: int
    count: int
    sigma_squared: np.ndarray
    update_energy: np.ndarray
    weight_energy: np.ndarray
    outputs: int = 0


def layer_profile(
    layer: str, task: int, rank: int, count: int, spectrum: Spectrum, update: Tensor, weight: Tensor
) -> LayerProfile:
    """Profile of ``update`` ΔW and ``weight`` W (each d_out × d) along the directions of ``spectrum``."""

    def energy(matrix: Tensor) -> np.ndarray:
        product = matrix.detach().to(spectrum.directions.device, torch.float64) @ spectrum.directions
        return product.square().sum(dim=0).cpu().numpy()

    sigma_squared = spectrum.singular_values.square().cpu().numpy()
    return LayerProfile(layer, task, rank, count, sigma_squared, energy(update), energy(weight), len(weight))
