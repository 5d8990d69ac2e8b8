"""Autograd functions of weights that learn only outside of occupied directions.

Notation: W (d_out, d) a weight, M (d, k) orthonormal columns, the directions that old inputs occupy, G = ∂loss/∂W. The
weight receives G - G M Mᵀ instead of G; everything else is as in the plain layer. Two ways to the same gradient, for
inputs X (n, d) and the gradient Y (n, d_out) of the outputs:

    Yᵀ (X - X M Mᵀ)          costs n · d · k beside a plain layer: less if there are few inputs
    Yᵀ X - (Yᵀ X) M Mᵀ       costs d_out · d · k
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def linear(x: Tensor, weight: Tensor, occupied: Tensor) -> Tensor:
    """x Wᵀ, (…, d) → (…, d_out). The weight's gradient is formed from the projected inputs x - x M Mᵀ.

    Args:
        x: inputs, (…, d).
        weight: W, (d_out, d).
        occupied: M, (d, k) with orthonormal columns; no gradient reaches it.
    """
    output: Tensor = _Linear.apply(x, weight, occupied)
    return output


def outside(weight: Tensor, occupied: Tensor) -> Tensor:
    """``weight`` itself, (d_out, …); its gradient G arrives as G - G M Mᵀ.

    Args:
        weight: W, (d_out, d) or a convolution's weight.
        occupied: M, (d, k) with orthonormal columns; no gradient reaches it.
    """
    same: Tensor = _Outside.apply(weight, occupied)
    return same


class _Linear(torch.autograd.Function):
    # Not with setup_context: that costs 30 µs a call, as much as a small layer itself.
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, occupied: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, occupied)
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, None]:
        x, weight, occupied = ctx.saved_tensors
        if gradient.dtype != weight.dtype:  # under autocast; in half precision a projection would be none
            x, gradient = x.to(weight.dtype), gradient.to(weight.dtype)
        to_x = gradient @ weight if ctx.needs_input_grad[0] else None
        if x.ndim != 2:
            x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])
        return to_x, gradient.T @ _project_out(x, occupied), None


class _Outside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, occupied: Tensor) -> Tensor:
        ctx.save_for_backward(occupied)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (occupied,) = ctx.saved_tensors
        return _project_out(gradient.flatten(1), occupied).view_as(gradient), None


def _project_out(rows: Tensor, occupied: Tensor) -> Tensor:
    """R - R M Mᵀ, as :func:`nesskit.spectra.projections.project_out`, in one operation less."""
    return torch.addmm(rows, rows @ occupied, occupied.T, alpha=-1)
