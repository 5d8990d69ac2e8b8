"""What ``memory="moments"`` ignores: it keeps what layers saw back then, but upstream layers have moved since.

The same old data, seen through today's weights, give other moments. How far off the kept ones are decides whether old
data must be kept (``memory="data"``, the authors' way) or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from nesskit.analysis.checks import as_spectrum, check_same_layers, ratio
from nesskit.errors import SpectrumError
from nesskit.spectra.filters import HardFilter
from nesskit.spectra.moment import Moment


@dataclass(frozen=True)
class FeatureDrift:
    """A moment that was kept beside the same old inputs seen through today's weights, both per input.

    Attributes:
        layer: its name.
        change: ‖C_kept - C_now‖_F / ‖C_now‖_F; NaN where nothing is seen now.
        rank_kept: r that the filter frees by the kept moment.
        rank_now: r that it would free today.
        energy_believed: the share of Σ σ² in the free directions of the kept moment, by that moment itself.
        energy_found: the share of today's input energy that lies in those same directions: what the task is really
            allowed to disturb.
        dimension: d.
    """

    layer: str
    change: float
    rank_kept: int
    rank_now: int
    energy_believed: float
    energy_found: float
    dimension: int


def feature_drift(
    kept: Mapping[str, Moment], recomputed: Mapping[str, Moment], rule: HardFilter
) -> tuple[FeatureDrift, ...]:
    """What ``memory="moments"`` ignores: how old inputs of each layer look today.

    Args:
        kept: layer name → moment collected with the weights of back then.
        recomputed: the same old data seen through today's weights (``collect_moments`` again).
        rule: what decides which directions are free.

    Raises:
        NesskitError: the two name different layers.
        SpectrumError: moments of different models, or a layer that was never run; says which.
    """
    check_same_layers("moments kept and moments recomputed", kept, recomputed)
    return tuple(_feature_drift(name, kept[name], recomputed[name], rule) for name in kept)


def _feature_drift(name: str, kept: Moment, now: Moment, rule: HardFilter) -> FeatureDrift:
    old, new = as_spectrum(kept, name), as_spectrum(now, name)
    if len(old) != len(new):
        raise SpectrumError(
            f"layer '{name}': moments of dimension {len(old)} and {len(new)} belong to different models"
        )
    # Per input, so that a sample of the old data can stand for all of it.
    before, after = (m.matrix.cpu() / m.count for m in (kept, now))
    rank = rule.null_rank(old)
    free = old.null_basis(rank).cpu()
    change = ratio(float(torch.linalg.matrix_norm(before - after)), float(torch.linalg.matrix_norm(after)))
    believed, found = (ratio(float((free * (c @ free)).sum()), float(c.trace())) for c in (before, after))
    return FeatureDrift(name, change, rank, rule.null_rank(new), believed, found, len(old))
