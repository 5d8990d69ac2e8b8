"""What the threshold explorer looks at, and what it reads there: plain values and pure functions, no widget."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nesskit.analysis import LayerPoint, NetworkCurves, NetworkPoint
from nesskit.analysis.curves import BesideOutputs
from nesskit.errors import SettingsError, UnknownNameError
from nesskit.spectra.filters import FrobeniusThreshold, NuclearThreshold, RelativeThreshold, Threshold

RULES: dict[str, type[Threshold]] = {
    rule.name: rule for rule in (FrobeniusThreshold, NuclearThreshold, RelativeThreshold)
}
SMALLEST, LARGEST = 1e-5, 1.0  # of ε: at 1 every rule frees everything


@dataclass(frozen=True)
class State:
    """Where the explorer stands.

    Attributes:
        rule: name of a threshold rule.
        eps: ε₁, within the range of the slider.
        task: index of the task whose update is looked at.
        layer: a layer's name; empty: all layers.
        side_by_side: whether the Frobenius and the nuclear rule are shown beside ``rule``, at the same ε.
    """

    rule: str = FrobeniusThreshold.name
    eps: float = 0.01
    task: int = 1
    layer: str = ""
    side_by_side: bool = False

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise UnknownNameError("rule", self.rule, RULES)
        if not SMALLEST <= self.eps <= LARGEST:  # also refuses NaN
            raise SettingsError(f"ε = {self.eps:g} is out of range: choose one between {SMALLEST:g} and {LARGEST:g}")

    @property
    def rules(self) -> tuple[Threshold, ...]:
        """The chosen rule, and those beside it."""
        beside = [name for name in ("frobenius", "nuclear") if self.side_by_side and name != self.rule]
        return tuple(RULES[name](self.eps) for name in (self.rule, *beside))  # type: ignore[call-arg]


@dataclass(frozen=True)
class Reading(BesideOutputs):
    """What one rule does to the chosen layer, or to all of them (sums of squares then run over layers).

    Attributes:
        rule: with its ε.
        rank, dimension: r of d directions are free.
        trainable, trainable_share: entries of V, and their share of the parameters.
        interference, bound: ‖ΔW I‖_F and what Eq. 7 allows it.
        output_norm: ‖W I‖_F.
        energy_share: of the update, kept.
        ranks: r of every layer, in their order.
    """

    rule: Threshold
    rank: int
    dimension: int
    trainable: int
    trainable_share: float
    interference: float
    bound: float
    output_norm: float
    energy_share: float
    ranks: tuple[int, ...]


def points_at(curves: NetworkCurves, state: State) -> tuple[NetworkPoint, ...]:
    """What each shown rule does to every layer."""
    return tuple(curves.at(rule) for rule in state.rules)


def read(point: NetworkPoint, layer: str) -> Reading:
    """The numbers of ``point`` for one layer, or for all if ``layer`` is empty."""
    seen: NetworkPoint | LayerPoint = point
    chosen = point.layers
    if layer:
        (seen,) = chosen = tuple(p for p in point.layers if p.layer == layer)
    return Reading(
        point.rule,  # type: ignore[arg-type]
        seen.rank,
        seen.dimension,
        seen.trainable,
        seen.trainable_share,
        seen.interference,
        math.hypot(*(p.bound for p in chosen)),
        math.hypot(*(p.output_norm for p in chosen)),
        seen.energy_share,
        tuple(p.rank for p in point.layers),
    )
