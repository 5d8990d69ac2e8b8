"""Everything that determines a run on a benchmark."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nesskit.errors import SettingsError
from nesskit.settings.fields import check_types, from_dict, require, to_dict
from nesskit.settings.methods import METHOD_SETTINGS, MethodSettings
from nesskit.settings.training import NetworkSettings, TrainingSettings


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
        check_types(self)
        require(self, "seed", self.seed >= 0, "at least 0")
        require(self, "tasks", self.tasks is None or self.tasks >= 1, "at least 1")
        require(self, "validation_share", 0 <= self.validation_share < 1, "in [0, 1)")
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
