"""All settings of a run, as frozen dataclasses that JSON round-trips.

The Python functions, the flags of the command line and the controls of the widgets are made from these fields, so a
setting that is added here appears everywhere. Nothing here imports torch: printing a help text must be fast.
"""

from __future__ import annotations

from nesskit.settings.fields import flatten, from_dict, to_dict
from nesskit.settings.methods import (
    METHOD_SETTINGS,
    AdamNSCLSettings,
    AGEMSettings,
    DFGPSettings,
    EWCSettings,
    FinetuneSettings,
    FrozenSettings,
    FSDGPMSettings,
    GPMSettings,
    HATSettings,
    JointSettings,
    LoRASettings,
    MethodSettings,
    NESSBudgetSettings,
    NESSPrivateSettings,
    NESSSettings,
    NESSSoftSettings,
    OLoRASettings,
    OWMSettings,
    PrivateSettings,
    SGPSettings,
    TRGPSettings,
    load_method,
    settings_type,
)
from nesskit.settings.run import RunSettings
from nesskit.settings.training import NetworkSettings, TrainingSettings

__all__ = [
    "METHOD_SETTINGS",
    "AGEMSettings",
    "AdamNSCLSettings",
    "DFGPSettings",
    "EWCSettings",
    "FSDGPMSettings",
    "FinetuneSettings",
    "FrozenSettings",
    "GPMSettings",
    "HATSettings",
    "JointSettings",
    "LoRASettings",
    "MethodSettings",
    "NESSBudgetSettings",
    "NESSPrivateSettings",
    "NESSSettings",
    "NESSSoftSettings",
    "NetworkSettings",
    "OLoRASettings",
    "OWMSettings",
    "PrivateSettings",
    "RunSettings",
    "SGPSettings",
    "TRGPSettings",
    "TrainingSettings",
    "flatten",
    "from_dict",
    "load_method",
    "settings_type",
    "to_dict",
]
