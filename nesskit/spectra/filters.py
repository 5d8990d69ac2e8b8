"""Spectral filters: which directions of a layer's input space a new task may use, and how much.

A filter gives every direction a weight in [0, 1]: 1 is free, 0 is forbidden. The hard ones free the ``null_rank``
directions of smallest singular value and nothing else. On the command line and in records a filter is written as
``name:value`` (``frobenius:0.03``); :func:`parse_filter` and ``str(filter)`` convert. A filter of your own, a frozen
dataclass derived from :class:`Filter` or :class:`HardFilter`, is named by its file: ``path.py:Name:value``.

Notation: σ₁ ≥ … ≥ σ_d are the singular values of the old inputs I, u_i their directions.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, is_dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nesskit import userfiles
from nesskit.errors import SettingsError, SpectrumError, UnknownNameError

if TYPE_CHECKING:  # this module stays free of torch: the command line imports it to print its help
    from torch import Tensor

    from nesskit.spectra.spectrum import Spectrum


@dataclass(frozen=True, eq=False)
class Probe:
    """What some filters need to know beside the spectrum.

    Attributes:
        weight: (d_out, d) the layer's weight W before the new task.
        update: (d_out, d) a direction D in which the new task would change it, for example its gradient. Only the
            direction counts, not the length. None where no rule asks for it.
        tasks: how many earlier tasks the spectrum's inputs come from, at least 1.
    """

    weight: Tensor
    update: Tensor | None = None
    tasks: int = 1


class Filter(ABC):
    """Contract of all filters; each is a frozen dataclass whose fields are its numbers."""

    name: ClassVar[str]
    needs_probe: ClassVar[bool] = False
    """Whether ``weights`` must be given a probe."""
    needs_update: ClassVar[bool] = False
    """Whether that probe must carry an update, which costs a pass over the new task's training examples."""

    @abstractmethod
    def weights(self, spectrum: Spectrum, probe: Probe | None = None) -> Tensor:
        """(d,) weights in [0, 1], in the order of ``spectrum`` (descending σ)."""

    def __str__(self) -> str:
        values = [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]
        return ":".join([self.name, *map(_text, values)])


class HardFilter(Filter):
    """A filter that frees the directions of the smallest singular values and forbids the others."""

    @abstractmethod
    def null_rank(self, spectrum: Spectrum, probe: Probe | None = None) -> int:
        """r, how many of the smallest directions are free (0 … d)."""

    def weights(self, spectrum: Spectrum, probe: Probe | None = None) -> Tensor:
        """1 for the ``null_rank`` smallest directions, 0 for the others."""
        weights = spectrum.singular_values.new_zeros(len(spectrum))
        weights[len(spectrum) - self.null_rank(spectrum, probe) :] = 1
        return weights


class Threshold(HardFilter):
    """Frees every direction whose singular value is at most a cut."""

    eps: float

    def __post_init__(self) -> None:
        _require_positive("eps", self.eps)

    @abstractmethod
    def scale(self, spectrum: Spectrum) -> float:
        """What ε is measured in."""

    def cut(self, spectrum: Spectrum) -> float:
        """The largest singular value that still counts as small: ε times the scale."""
        return self.eps * self.scale(spectrum)

    def null_rank(self, spectrum: Spectrum, probe: Probe | None = None) -> int:
        """How many singular values lie at or under the cut."""
        return int((spectrum.singular_values <= self.cut(spectrum)).sum())

    def eps_to_free(self, spectrum: Spectrum) -> Tensor:
        """(d,) the ε from which on each direction is free: σ over the scale."""
        return spectrum.singular_values / (self.scale(spectrum) or 1.0)


@dataclass(frozen=True)
class FrobeniusThreshold(Threshold):
    """σ_i ≤ ε ‖I‖_F, the rule of the paper's text (Eq. 5)."""

    name = "frobenius"
    eps: float

    def scale(self, spectrum: Spectrum) -> float:
        """‖I‖_F = √(Σ σ²)."""
        return spectrum.frobenius_norm


@dataclass(frozen=True)
class NuclearThreshold(Threshold):
    """σ_i ≤ ε Σ σ, the rule of the authors' code; the published ε₁ belong to this one."""

    name = "nuclear"
    eps: float

    def scale(self, spectrum: Spectrum) -> float:
        """‖I‖_* = Σ σ."""
        return spectrum.nuclear_norm


@dataclass(frozen=True)
class RelativeThreshold(Threshold):
    """σ_i ≤ ε σ₁, the usual rule for a numerical null space."""

    name = "relative"
    eps: float

    def scale(self, spectrum: Spectrum) -> float:
        """σ₁."""
        return float(spectrum.singular_values[0])


@dataclass(frozen=True)
class EnergyThreshold(HardFilter):
    """GPM's rule (Saha et al. 2021, k-rank criterion): forbid the fewest directions that hold ``share`` of Σ σ²."""

    name = "energy"
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise SettingsError(f"share must lie in (0, 1], got {self.share}")

    def null_rank(self, spectrum: Spectrum, probe: Probe | None = None) -> int:
        """d - k for the smallest k with Σ_{i ≤ k} σ_i² ≥ share · Σ σ²."""
        energy = spectrum.singular_values.square().cumsum(0)
        occupied = int((energy < self.share * energy[-1]).sum()) + 1
        return len(spectrum) - occupied if energy[-1] > 0 else len(spectrum)


@dataclass(frozen=True)
class SmallestMultiple(HardFilter):
    """σ_i² ≤ factor · σ_min², the rule of Adam-NSCL (Wang et al. 2021).

    σ_min is the smallest singular value that is more than round-off. Directions in which nothing was seen are always
    free; measured by them, no other would ever be.
    """

    name = "smallest"
    factor: float

    def __post_init__(self) -> None:
        if not (self.factor >= 1 and math.isfinite(self.factor)):
            raise SettingsError(f"factor must be a finite number of at least 1, got {self.factor}")

    def null_rank(self, spectrum: Spectrum, probe: Probe | None = None) -> int:
        """How many σ² lie at or under ``factor`` times the smallest that is more than round-off."""
        energy = spectrum.singular_values.square()
        seen = energy[energy > len(energy) * 2.0**-52 * energy[0]]
        return int((energy <= self.factor * seen[-1]).sum()) if len(seen) else len(energy)


@dataclass(frozen=True)
class FixedRank(HardFilter):
    """Frees the ``rank`` smallest directions, whatever their singular values."""

    name = "rank"
    rank: int

    def __post_init__(self) -> None:
        if not isinstance(self.rank, Integral) or self.rank < 0:
            raise SettingsError(f"rank must be a whole number of at least 0, got {self.rank}")

    def null_rank(self, spectrum: Spectrum, probe: Probe | None = None) -> int:
        """``rank``; an error if the layer has fewer directions."""
        if self.rank > len(spectrum):
            raise SpectrumError(
                f"rank {self.rank} is out of range: this layer has {len(spectrum)} directions (0 … {len(spectrum)})"
            )
        return self.rank


@dataclass(frozen=True)
class SoftFilter(Filter):
    """w_i = 1 / (1 + σ_i²/τ²), the exact minimiser of ‖D - X‖_F² + ‖X I‖_F²/τ² over updates X.

    ``scale`` says what τ is measured in: ``"absolute"`` (as σ itself) or ``"frobenius"`` (as a share of ‖I‖_F).
    """

    name = "soft"
    tau: float
    scale: Literal["absolute", "frobenius"] = "absolute"

    def __post_init__(self) -> None:
        _require_positive("tau", self.tau)
        if self.scale not in ("absolute", "frobenius"):
            raise UnknownNameError("scale", self.scale, ["absolute", "frobenius"])

    def weights(self, spectrum: Spectrum, probe: Probe | None = None) -> Tensor:
        """1 / (1 + σ²/τ²); all ones where nothing was seen in any direction."""
        tau = self.tau * (spectrum.frobenius_norm if self.scale == "frobenius" else 1.0)
        if tau == 0:
            return spectrum.singular_values.new_ones(len(spectrum))
        return 1 / (1 + (spectrum.singular_values / tau).square())


@dataclass(frozen=True)
class InterferenceBudget(HardFilter):
    """The largest rank at which *no* update as long as the weight moves *any* old task's outputs by over ``budget``.

    Forgetting is measured task by task, but I = [I_1 … I_t] pools the t old tasks, and an update may spend all of its
    interference on one of them. The outputs of an old task are of size ‖W I‖_F / √t (root mean square over the tasks),
    and no update D moves them by more than ‖D I_s‖_F ≤ ‖D I‖_F ≤ σ_j ‖D‖_F if σ_j is the largest free σ. So the rule is

        σ_i ≤ budget · ‖W I‖_F / (√t ‖W‖_F),

    with ‖W I‖_F = √(Σ σ_i² ‖W u_i‖²), and every update within it obeys, for each old task s,

        ‖ΔW I_s‖_F ≤ budget · (‖W I‖_F / √t) · ‖ΔW‖_F / ‖W‖_F.

    Unlike ε₁ the budget means the same in every layer and whatever the number of tasks: it knows how strongly the
    weight uses its inputs, how many directions they spread over (where W treats all d alike, the cut is
    budget/√(d t) · ‖I‖_F) and how many tasks there are to protect. Of the probe it needs the weight and that number.
    The bound is for one new task and one layer, on the inputs remembered: layers before it move too. The default was
    chosen by ``studies/budget.py``; ``data/results/budget.md`` says how, and how it does beside single ε₁.
    """

    name = "budget"
    needs_probe = True
    budget: float = 0.283

    def __post_init__(self) -> None:
        _require_positive("budget", self.budget)

    def cut(self, spectrum: Spectrum, probe: Probe | None = None) -> float:
        """The largest singular value that still counts as small; 0 if the layer's outputs are. Needs a probe."""
        if probe is None:
            raise SpectrumError("InterferenceBudget needs the layer's weight: pass probe=Probe(weight)")
        if probe.tasks < 1:
            raise SpectrumError(f"the probe's inputs must come from at least 1 task, got {probe.tasks}")
        weight, d = probe.weight.detach().to(spectrum.directions), len(spectrum)
        if weight.ndim != 2 or weight.shape[1] != d:
            raise SpectrumError(f"the probe's weight {tuple(weight.shape)} must be (d_out, {d})")
        outputs = (weight @ spectrum.directions * spectrum.singular_values).norm()  # ‖W I‖_F = ‖W U Σ‖_F
        return float(self.budget * outputs / (weight.norm() or 1.0)) / math.sqrt(probe.tasks)

    def null_rank(self, spectrum: Spectrum, probe: Probe | None = None) -> int:
        """How many singular values lie at or under the cut; needs a probe."""
        return int((spectrum.singular_values <= self.cut(spectrum, probe)).sum())


FILTERS: dict[str, type[Filter]] = {
    rule.name: rule
    for rule in (
        FrobeniusThreshold,
        NuclearThreshold,
        RelativeThreshold,
        EnergyThreshold,
        SmallestMultiple,
        FixedRank,
        SoftFilter,
        InterferenceBudget,
    )
}


def parse_filter(text: str) -> Filter:
    """The filter that ``text`` names, for example ``frobenius:0.03``, ``soft:0.01:frobenius``, just ``budget``, or one
    of your own, ``path.py:Name:0.1``.

    Raises:
        UnknownNameError: no such rule; says which is nearest.
        SettingsError: a number is missing, superfluous, not a number or out of range.
        UserFileError: your file is missing, fails to import or holds no such filter.
    """
    reference = userfiles.parse_reference(text)
    name, *values = [str(reference), *reference.values] if reference else text.split(":")
    if not reference and name not in FILTERS:
        raise UnknownNameError("filter", name, FILTERS)
    rule = _own_filter(reference) if reference else FILTERS[name]
    expected = fields(rule)  # type: ignore[arg-type]
    example = f"{name}:{'10' if rule in (FixedRank, SmallestMultiple) else '0.01'}"
    if not values and all(field.default is not MISSING for field in expected[:1]):
        return rule()
    if not values:
        raise SettingsError(f"filter '{text}' needs a value for {expected[0].name}, for example {example}")
    if len(values) > len(expected):
        raise SettingsError(f"filter '{text}' has too many values; write for example {example}")
    arguments = []
    for field, value in zip(expected, values, strict=False):
        try:
            arguments.append(_KINDS.get(field.type, str)(value))
        except ValueError:
            raise SettingsError(f"filter '{text}': '{value}' is not a number; write for example {example}") from None
    return rule(*arguments)


def _own_filter(reference: userfiles.Reference) -> type[Filter]:
    """A user's filter, which then goes by the name under which it was found."""

    def fits(found: object) -> bool:
        return isinstance(found, type) and issubclass(found, Filter) and is_dataclass(found)

    rule: type[Filter] = userfiles.load(reference, "filter: it must be a dataclass derived from nesskit.Filter", fits)
    rule.name = str(reference)
    return rule


# The type of a field, as such or as text (where annotations are not evaluated) → what reads it.
_KINDS: dict[Any, Callable[[str], Any]] = {float: float, "float": float, int: int, "int": int}


def _text(value: float | str) -> str:
    """Equal numbers as equal texts, whether they were given as 1 or as 1.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _require_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise SettingsError(f"{name} must be a finite number above 0, got {value}")
