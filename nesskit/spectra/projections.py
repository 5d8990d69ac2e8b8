"""Bases of occupied directions, and projections away from them: pure functions of tensors that methods are built on.

Notation: M (d, k) has orthonormal columns, the directions that a layer's old inputs occupy. A gradient or update G is
(d_out, d), or a convolution's weight. G - G M Mᵀ moves no output for an input within the span of M.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nesskit.errors import SpectrumError
from nesskit.spectra.moment import Moment


def project_out(gradient: Tensor, basis: Tensor, importance: Tensor | None = None) -> Tensor:
    """G - G M diag(λ) Mᵀ, in the shape of ``gradient`` (Saha et al. 2021, Eq. 6 and 7; with λ, Saha and Roy 2023).

    Args:
        gradient: G, (d_out, d) or a convolution's weight.
        basis: M, (d, k) with orthonormal columns.
        importance: λ, (k,) in [0, 1]; by default 1 for every direction.
    """
    matrix = gradient.flatten(1)
    along = matrix @ basis
    if importance is not None:
        along = along * importance
    return (matrix - along @ basis.T).view_as(gradient)


def project_onto(update: Tensor, basis: Tensor) -> Tensor:
    """G U Uᵀ, in the shape of ``update``: what is left of G within the span of U.

    Args:
        update: G, (d_out, d) or a convolution's weight.
        basis: U, (d, r) with orthonormal columns; columns √w u instead weigh a direction by w.
    """
    return (update.flatten(1) @ basis @ basis.T).view_as(update)


def energy_along(basis: Tensor, moment: Moment) -> Tensor:
    """(k,) mᵢᵀ C mᵢ, the inputs' energy along each column of M (d, k), in float64."""
    columns = basis.to(moment.matrix)
    return (columns * (moment.matrix @ columns)).sum(dim=0)


def grow_basis(basis: Tensor, moment: Moment, share: float) -> Tensor:
    """M and the fewest new directions with which it holds ``share`` of the energy of new inputs.

    With R the new inputs and R̂ = R - M MᵀR (Saha et al. 2021, Eq. 8), the smallest k is taken for which
    ‖M MᵀR‖_F² + ‖R̂_k‖_F² ≥ ε ‖R‖_F² (Eq. 9; for an empty M that is Eq. 5). Both norms come from C = R Rᵀ.

    Args:
        basis: M, (d, m) with orthonormal columns; m = 0 before anything was learned.
        moment: C of the new inputs.
        share: ε, in (0, 1].

    Returns:
        (d, m + k), float64, with orthonormal columns; the first m are M.

    Raises:
        SpectrumError: the basis has other rows than the moment, or no input was seen.
    """
    if basis.shape[0] != moment.dimension:
        raise SpectrumError(
            f"a basis of directions with {basis.shape[0]} entries and a moment of dimension {moment.dimension} "
            "belong to different layers"
        )
    basis = basis.to(moment.matrix)
    rest = outside(moment, basis).spectrum()
    energy = float(moment.matrix.trace())
    held = energy - float(rest.singular_values.square().sum())
    sums = held + rest.singular_values.square().cumsum(0)
    missing = int((sums < share * energy).sum()) + 1 if held < share * energy else 0
    new = rest.directions[:, : min(missing, len(basis) - basis.shape[1])]
    return torch.cat([basis, orthogonal_to(basis, new)], dim=1)


def orthogonal_to(basis: Tensor, new: Tensor) -> Tensor:
    """(d, k) orthonormal columns with which M (d, m) spans what it spans with ``new`` (d, k); each up to its sign.

    A share near 1 asks for directions whose energy is all round-off, which may lie within the span of M: a projection
    away from such a basis makes some gradients longer. QR of M and new together finds what is orthogonal to M.
    """
    return torch.linalg.qr(torch.cat([basis, new], dim=1)).Q[:, basis.shape[1] :]


def outside(moment: Moment, basis: Tensor) -> Moment:
    """The moment of R̂ = R - M MᵀR, what inputs have outside of the span of M (d, m): (1 - M Mᵀ) C (1 - M Mᵀ)."""
    half = moment.matrix - basis @ (basis.T @ moment.matrix)
    whole = half - (half @ basis) @ basis.T
    rest = Moment(moment.dimension, moment.matrix.device)
    rest.matrix, rest.count = (whole + whole.T) / 2, moment.count
    return rest
