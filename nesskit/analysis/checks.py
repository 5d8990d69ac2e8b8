"""What every analysis asks of its arguments, and the sentences it says when they do not fit."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nesskit.errors import NesskitError, SpectrumError
from nesskit.spectra.moment import Moment
from nesskit.spectra.profile import LayerProfile
from nesskit.spectra.spectrum import Spectrum

Array = NDArray[np.float64]
Matrix = Tensor | np.ndarray  # (d_out, d), or any weight with the outputs first, such as a convolution's
Inputs = Matrix | Iterable[Matrix]  # (n, d), whole or in pieces


def as_matrix(weight: Matrix, dimension: int | None = None, what: str = "the update") -> Tensor:
    """``weight`` (d_out, …) as float64 (d_out, d).

    Raises:
        SpectrumError: it is no matrix, holds NaN or infinite values, or is not as wide as ``dimension``.
    """
    tensor = weight.detach() if isinstance(weight, Tensor) else torch.as_tensor(np.ascontiguousarray(weight))
    if tensor.ndim < 2:
        raise SpectrumError(f"{what} must be (d_out, d) or a convolution's weight, got shape {tuple(tensor.shape)}")
    matrix = tensor.flatten(1).to(torch.float64)
    if dimension is not None and matrix.shape[1] != dimension:
        hint = " (with bias='augment' its last column must be the bias)" if dimension == matrix.shape[1] + 1 else ""
        raise SpectrumError(
            f"expected {what} with {dimension} columns, as many as the moment has, got {matrix.shape[1]}: "
            f"they belong to different layers or models{hint}"
        )
    if not torch.isfinite(matrix).all():
        raise SpectrumError(f"{what} holds NaN or infinite values")
    return matrix


def as_spectrum(source: Moment | Spectrum, layer: str = "") -> Spectrum:
    """The spectrum of ``source``.

    Raises:
        SpectrumError: no input was ever seen; names ``layer`` if it is given.
    """
    if isinstance(source, Moment) and source.count == 0 and layer:
        raise SpectrumError(
            f"layer '{layer}' was never run, so its inputs are unknown: collect moments with data that reaches it, "
            "or leave the layer out"
        )
    return source.spectrum() if isinstance(source, Moment) else source


def as_singular_values(source: Spectrum | Moment | LayerProfile | Sequence[float] | Array) -> Array:
    """(d,) σ₁ ≥ … ≥ σ_d of anything that has them.

    Raises:
        SpectrumError: there are none, or they are not finite, non-negative and descending.
    """
    if isinstance(source, LayerProfile):
        values = np.sqrt(source.sigma_squared)
    elif isinstance(source, Moment | Spectrum):
        values = as_spectrum(source).singular_values.cpu().numpy()
    else:
        values = np.asarray(source, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise SpectrumError(
            "the spectrum is empty: it needs at least one singular value, "
            "as Moment.spectrum() gives after data went through the layer"
        )
    if not np.isfinite(values).all() or (values < 0).any() or (np.diff(values) > 0).any():
        raise SpectrumError("singular values must be finite, non-negative and in descending order")
    return values


def check_rank(rank: int, dimension: int) -> int:
    """``rank`` if it is one of a layer with ``dimension`` inputs.

    Raises:
        SpectrumError: it is not a whole number between 0 and d.
    """
    if not isinstance(rank, int | np.integer) or not 0 <= rank <= dimension:
        raise SpectrumError(f"rank {rank} is out of range: this layer has {dimension} directions (0 … {dimension})")
    return int(rank)


def check_profiles(profiles: Sequence[LayerProfile]) -> Sequence[LayerProfile]:
    """``profiles`` if there are any and each is whole.

    Raises:
        NesskitError: there is none.
        SpectrumError: the vectors of one are empty or of different lengths; says which.
    """
    if not len(profiles):
        raise NesskitError(
            "there are no layer profiles: take a run of ness that has learned two tasks at least, "
            "or measure other updates with profile_layers(moments, weights, updates)"
        )
    for profile in profiles:
        sizes = {len(profile.sigma_squared), len(profile.update_energy), len(profile.weight_energy)}
        if len(sizes) != 1 or sizes == {0}:
            raise SpectrumError(
                f"the profile of layer '{profile.layer}', task {profile.task + 1}, is damaged: "
                f"its vectors must be equally long and not empty, got lengths {sorted(sizes)}"
            )
    return profiles


def check_same_layers(what: str, names: Collection[str], known: Collection[str]) -> None:
    """Both name the same layers.

    Raises:
        NesskitError: they do not; says which names have no partner.
    """
    strangers = sorted(set(names) ^ set(known))
    if strangers:
        raise NesskitError(
            f"{what} belong to different models or choices of layers: no partner for {', '.join(strangers)}. "
            "Collect both with the same model and the same layers=…"
        )


def ratio(numerator: float, denominator: float) -> float:
    """Their ratio; infinite where only the denominator is 0, NaN where both are or one is unknown."""
    if denominator == 0:
        return float("inf") if numerator > 0 else float("nan")
    return float(numerator / denominator)
