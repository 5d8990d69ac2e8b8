"""Everything that determines a run on a benchmark."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from nesskit import userfiles
from nesskit.errors import SettingsError, UserFileError
from nesskit.settings.fields import check_types, from_dict, require, to_dict
from nesskit.settings.methods import METHOD_SETTINGS, MethodSettings, settings_type
from nesskit.settings.training import NetworkSettings, TrainingSettings


@dataclass(frozen=True)
class RunSettings:
    """Everything that determines the result of a run on a benchmark. Device, paths and limits are no part of it.

    Benchmark, method and filter may come from a user's file (``path.py:Name``); what that file holds is part of it.
    """

    benchmark: str
    method: str
    preset: str
    seed: int
    validation_share: float
    network: NetworkSettings
    training: TrainingSettings
    options: MethodSettings
    tasks: int | None = None
    split: Literal["nesskit", "authors"] = "nesskit"

    def __post_init__(self) -> None:
        check_types(self)
        require(self, "seed", self.seed >= 0, "at least 0")
        require(self, "tasks", self.tasks is None or self.tasks >= 1, "at least 1")
        require(self, "validation_share", 0 <= self.validation_share < 1, "in [0, 1)")
        watching = self.training.needs_validation
        if watching and not self.validation_share:
            default = getattr(TrainingSettings(), watching)
            raise SettingsError(
                f"{watching} watches the validation data: set validation_share above 0, or {watching} to {default}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values only: ``json.dumps`` takes it and :meth:`from_dict` restores it."""
        files = self.files
        return {**to_dict(self), **({"files": files} if files else {})}

    @property
    def files(self) -> dict[str, str]:
        """SHA-256 of every user's file that the run is made with, by path."""
        names = [self.benchmark, self.method, *to_dict(self.options).values()]
        references = [userfiles.parse_reference(name) for name in names if isinstance(name, str)]
        return {reference.path: userfiles.checksum(reference.path) for reference in references if reference}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunSettings:
        """The settings that ``to_dict`` was taken of.

        Raises:
            UserFileError: a user's file is no longer what it was then.
        """
        for path, then in values.get("files", {}).items():
            if userfiles.checksum(path) != then:
                raise UserFileError(f"{path} has changed since this run was begun: put it back, or begin a new one")
        known = values["method"] in METHOD_SETTINGS or userfiles.parse_reference(values["method"])
        options_type = settings_type(values["method"]) if known else MethodSettings
        nested = {key: value for key, value in values.items() if key != "files"}
        return from_dict(cls, {**nested, "options": from_dict(options_type, values["options"])})

    def __reduce__(self) -> tuple[Any, ...]:
        """Plain values go to another process, which may not have loaded a user's file yet."""
        return RunSettings.from_dict, (self.to_dict(),)

    @property
    def hash(self) -> str:
        """Ten hexadecimal digits; equal exactly if all settings but the seed and the preset's name are."""
        values = {key: value for key, value in self.to_dict().items() if key not in ("seed", "preset")}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:10]
