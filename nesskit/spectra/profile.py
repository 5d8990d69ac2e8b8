"""What one task did to one layer, seen along the directions of its old inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nesskit.spectra.spectrum import Spectrum


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
