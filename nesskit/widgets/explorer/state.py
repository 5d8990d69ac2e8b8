"""Where the threshold explorer stands: plain values, no widget."""

from __future__ import annotations

from dataclasses import dataclass

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
