"""All settings of a run, as frozen dataclasses that JSON round-trips.

The Python functions, the flags of the command line and the controls of the widgets are made from these fields, so a
setting that is added here appears everywhere. This module imports no torch: printing a help text must be fast.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import numbers
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from nesskit.errors import SettingsError, UnknownNameError
from nesskit.filters import Filter, FrobeniusThreshold, HardFilter, parse_filter

T = TypeVar("T")


@dataclass(frozen=True)
class TrainingSettings:
    """How every task is trained, whatever the method."""

    epochs: int = 30
    """Epochs per task, at most."""
    batch_size: int = 64
    """Samples per training step."""
    optimizer: Literal["sgd", "adam", "sam"] = "sgd"
    """sgd has momentum; sam is sharpness-aware minimisation around sgd."""
    lr: float = 0.05
    """Learning rate at the start of every task."""
    momentum: float = 0.9
    """Momentum of sgd and of sgd inside sam; adam ignores it."""
    weight_decay: float = 0.0
    """λ: pulls weights to zero in task 1, afterwards the coefficients V and the head."""
    lr_factor: float = 0.5
    """The learning rate is multiplied by this when the validation loss has not improved for lr_patience epochs."""
    lr_patience: int = 0
    """Epochs without a lower validation loss before the learning rate falls; 0: it never falls."""
    lr_minimum: float = 0.0
    """A task ends early when the learning rate would fall under this."""
    sam_rho: float = 0.05
    """Radius of the neighbourhood that sam looks at."""
    sam_tasks: Literal["all", "first"] = "all"
    """Tasks that sam trains; with first, the later ones take plain sgd steps (as the authors' code does)."""
    evaluation_batch_size: int = 256
    """Samples per batch of an evaluation; matters for accuracies where BatchNorm uses batch statistics."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the training steps; bfloat16 is mixed precision (weights and moments stay float32 and float64)."""

    def __post_init__(self) -> None:
        _check_types(self)
        _require(self, "epochs", self.epochs >= 1, "at least 1")
        _require(self, "batch_size", self.batch_size >= 1, "at least 1")
        _require(self, "evaluation_batch_size", self.evaluation_batch_size >= 1, "at least 1")
        _require(self, "lr", self.lr > 0, "above 0")
        _require(self, "momentum", 0 <= self.momentum < 1, "in [0, 1)")
        _require(self, "weight_decay", self.weight_decay >= 0, "at least 0")
        _require(self, "lr_factor", 0 < self.lr_factor < 1, "between 0 and 1")
        _require(self, "lr_patience", self.lr_patience >= 0, "at least 0")
        _require(self, "lr_minimum", self.lr_minimum >= 0, "at least 0")
        _require(self, "sam_rho", self.sam_rho > 0, "above 0")


@dataclass(frozen=True)
class NetworkSettings:
    """Which network learns; every task gets a linear head of its own on top."""

    name: Literal["mlp", "alexnet", "resnet18"] = "mlp"
    """Architecture of the backbone that all tasks share."""
    widths: tuple[int, ...] = (128, 128)
    """Widths of the hidden layers (mlp only)."""
    bias: bool = False
    """Whether the layers have biases (mlp only)."""
    norm: Literal["batch", "running"] = "batch"
    """BatchNorm's statistics at test time: of the batch (paper), or running averages that NESS stops after task 1."""
    stem_stride: Literal[1, 2] = 1
    """Stride of the first convolution (resnet18 only): 1 for images of 32 × 32, 2 for 84 × 84."""

    def __post_init__(self) -> None:
        _check_types(self)
        _require(self, "widths", all(width >= 1 for width in self.widths), "at least 1 each")


@dataclass(frozen=True)
class MethodSettings:
    """Base of the settings of one method; methods without any use it as it is."""


@dataclass(frozen=True)
class NESSSettings(MethodSettings):
    """NESS: ΔW = U V with U frozen in the directions where old inputs are small (paper, Section 3)."""

    filter: Filter = field(default_factory=lambda: FrobeniusThreshold(0.03))
    """Which directions are free, as name:value, for example frobenius:0.03 or nuclear:0.001."""
    memory: Literal["moments", "data"] = "moments"
    """moments: one d × d matrix a layer, no old data kept; data: keep old data, recompute with today's weights."""
    coefficient_decay: float | None = None
    """Weight decay on V, the paper's soft form of Eq. 8; None: the weight_decay of the training."""
    stability: float | None = None
    """ε of Eq. 2. If set, ‖V‖₂ ≤ √ε/σ_j is kept exactly, so that no old output moves by more than √ε per layer."""
    bias: Literal["frozen", "augment"] = "frozen"
    """frozen: biases stay as task 1 left them (paper); augment: a constant input 1 protects them too."""
    layers: tuple[str, ...] = ()
    """Names of the layers to adapt; empty: every Linear and Conv2d of the backbone."""

    def __post_init__(self) -> None:
        _check_types(self)
        if not isinstance(self.filter, Filter):
            raise SettingsError(f"filter must be a filter such as FrobeniusThreshold(0.03), got {self.filter!r}")
        decay, stability = self.coefficient_decay, self.stability
        _require(self, "coefficient_decay", decay is None or decay >= 0, "at least 0")
        _require(self, "stability", stability is None or stability > 0, "above 0")
        if stability is not None and not isinstance(self.filter, HardFilter):
            raise SettingsError("stability needs a hard filter: a soft one has no last free singular value σ_j")


@dataclass(frozen=True)
class FinetuneSettings(MethodSettings):
    """Fine-tuning: train every weight on each task in turn and do nothing against forgetting."""


@dataclass(frozen=True)
class JointSettings(MethodSettings):
    """Joint training: all tasks at once, the ceiling for every method that sees them one after another."""


METHOD_SETTINGS: dict[str, type[MethodSettings]] = {
    "ness": NESSSettings,
    "finetune": FinetuneSettings,
    "joint": JointSettings,
}


@dataclass(frozen=True)
class RunSettings:
    """Everything that determines the result of a run on a benchmark. Device, paths and limits are no part of it."""

    benchmark: str
    method: str
    preset: str
    seed: int
    validation_share: float
    network: NetworkSettings
    training: TrainingSettings
    options: MethodSettings
    tasks: int | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        _require(self, "seed", self.seed >= 0, "at least 0")
        _require(self, "tasks", self.tasks is None or self.tasks >= 1, "at least 1")
        _require(self, "validation_share", 0 <= self.validation_share < 1, "in [0, 1)")
        if self.training.lr_patience and not self.validation_share:
            raise SettingsError(
                "lr_patience watches the validation loss: set validation_share above 0, or lr_patience to 0"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values only: ``json.dumps`` takes it and :meth:`from_dict` restores it."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunSettings:
        """The settings that ``to_dict`` was taken of."""
        options_type = METHOD_SETTINGS.get(values["method"], MethodSettings)
        nested = {**values, "options": from_dict(options_type, values["options"])}
        return from_dict(cls, nested)

    @property
    def hash(self) -> str:
        """Ten hexadecimal digits; equal exactly if all settings but the seed and the preset's name are."""
        values = {key: value for key, value in self.to_dict().items() if key not in ("seed", "preset")}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]


def to_dict(settings: Any) -> Any:
    """``settings`` as plain values: dataclasses as dicts, tuples as lists, filters as their text."""
    if isinstance(settings, Filter):
        return str(settings)
    if dataclasses.is_dataclass(settings):
        return {f.name: to_dict(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
    if isinstance(settings, tuple | list):
        return [to_dict(value) for value in settings]
    return settings


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level: ``training.lr`` and so on."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass ``cls`` from the plain values of :func:`to_dict`.

    Raises:
        UnknownNameError: a key that is no field of ``cls``.
    """
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            raise UnknownNameError(f"setting of {cls.__name__}", key, names)
    return cls(**{key: _restore(hints[key], value) for key, value in values.items()})


def _restore(hint: Any, value: Any) -> Any:
    hint = _without_none(hint)
    if hint is Filter and isinstance(value, str):
        return parse_filter(value)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(typing.cast(type, hint), value)
    if isinstance(value, list):
        return tuple(value)
    return value


def _require(settings: Any, name: str, holds: bool, expected: str) -> None:
    if not holds:
        raise SettingsError(f"{name} must be {expected}, got {getattr(settings, name)}")


def _check_types(settings: Any) -> None:
    """Every field holds what its annotation says.

    Numbers become plain numbers and lists tuples, so that settings are equal and hash alike however they were written.
    """
    for name, hint in typing.get_type_hints(type(settings)).items():
        value, kind = getattr(settings, name), _without_none(hint)
        if value is None and kind is not hint:
            continue
        if typing.get_origin(kind) is Literal and value not in kind.__args__:
            raise UnknownNameError(name, str(value), kind.__args__)
        if typing.get_origin(kind) is tuple:
            if not isinstance(value, tuple | list):
                raise SettingsError(f"{name} must be a list, got {value!r}")
            object.__setattr__(settings, name, tuple(value))
        if kind in _NUMBERS:
            expected, description = _NUMBERS[kind]
            if not isinstance(value, expected) or not math.isfinite(typing.cast(float, value)):
                raise SettingsError(f"{name} must be {description}, got {value!r}")
            object.__setattr__(settings, name, kind(value))


_NUMBERS: dict[Any, tuple[type, str]] = {
    bool: (bool, "true or false"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a finite number"),
}


def _without_none(hint: Any) -> Any:
    """``float`` for ``float | None``; any other annotation as it is."""
    if isinstance(hint, types.UnionType):
        return next((kind for kind in hint.__args__ if kind is not type(None)), hint)
    return hint
