"""Where float64 is computed: squaring I halves the digits, so moments and spectra need all of them.

In float32 every σ below about 3e-4 σ₁ would be noise; in float64 every σ below about 1e-7 σ₁ still is, so thresholds
under that tell nothing apart.
"""

from __future__ import annotations

import torch


def at_least_float32(tensor: torch.Tensor) -> torch.dtype:
    """The type of ``tensor``, or float32 if that is a half-precision one, in which a projection would be none."""
    return tensor.dtype if tensor.dtype.itemsize >= 4 else torch.float32


def float64_device(device: torch.device | str) -> torch.device:
    """``device`` if it computes in float64, else the CPU (Apple's MPS has no float64)."""
    device = torch.device(device)
    return torch.device("cpu") if device.type == "mps" else device
