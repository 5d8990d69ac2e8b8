"""The settings of a run: a benchmark's preset, and changes to single fields by name. Loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from nesskit import userfiles
from nesskit.errors import SettingsError, UnknownNameError
from nesskit.experiments.benchmarks import BENCHMARKS, DEFAULT_PRESET, DIGITS_TRAINING, Benchmark, Preset
from nesskit.settings import NetworkSettings, RunSettings, settings_type
from nesskit.spectra.filters import parse_filter
from nesskit.streams import load_stream_function

# How a task's examples are divided: settings of the run itself, not of one of its parts.
DIVIDING = ("validation_share", "split")


def configure(
    benchmark: str, method: str = "ness", preset: str | None = None, seed: int = 0, **changes: Any
) -> RunSettings:
    """The settings of a run: those of the preset, with ``changes`` to single fields by name.

    A change may name a field of the training (``epochs=3``), of the method (``filter=…``, also as text), of the network
    (``network_bias=True``), ``validation_share`` or ``split``.

    Raises:
        UnknownNameError: an unknown benchmark, method, preset or field; says which is nearest.
        UserFileError: benchmark or method are of a user's file, ``path.py:Name``, that cannot be used.
        SettingsError: a value that makes no sense.
    """
    for what, name in (("benchmark", benchmark), ("method", method), ("preset", preset)):
        if not isinstance(name, str) and (what != "preset" or name is not None):
            raise SettingsError(f"{what} must be a name, got {name!r}")
    known, options_type = get_benchmark(benchmark), settings_type(method)
    preset = next(iter(known.presets)) if preset is None else preset
    if preset not in known.presets:
        raise UnknownNameError(f"preset of {benchmark}", preset, known.presets)
    chosen = known.presets[preset]
    parts: dict[str, Any] = {
        "training": chosen.training_of.get(method, chosen.training),
        "options": chosen.options.get(method, options_type()),
        "network": chosen.network,
    }
    share, split = (changes.pop(name, getattr(chosen, name)) for name in DIVIDING)
    fields: dict[str, dict[str, Any]] = {part: {} for part in parts}
    for name, value in changes.items():
        part, field_name = _part_of(name, parts)
        fields[part][field_name] = parse_filter(value) if field_name == "filter" and isinstance(value, str) else value
    # All at once: fields that belong together, an adapter and its rank, may be named in any order.
    parts = {part: dataclasses.replace(settings, **fields[part]) for part, settings in parts.items()}
    return RunSettings(benchmark, method, preset, seed, share, **parts, split=split)


def get_benchmark(name: str) -> Benchmark:
    """The benchmark called ``name``; UnknownNameError with the nearest name if there is none.

    A user's stream, ``path.py:function``, is a benchmark with the training and the MLP of those on the digits.
    """
    reference = userfiles.parse_reference(name)
    if reference:
        summary = (load_stream_function(reference).__doc__ or "a stream of your own").strip().splitlines()[0]
        preset = Preset(DIGITS_TRAINING, NetworkSettings(), summary="the training and the MLP of the digits")
        return Benchmark(name, summary, {DEFAULT_PRESET: preset})
    if name not in BENCHMARKS:
        raise UnknownNameError("benchmark", name, BENCHMARKS)
    return BENCHMARKS[name]


def _part_of(name: str, parts: Mapping[str, Any]) -> tuple[str, str]:
    """Which part of the settings the change ``name`` belongs to, and the field's name there."""
    fields: dict[str, tuple[str, str]] = {}
    for part, settings in parts.items():
        prefix = "network_" if part == "network" else ""
        fields |= {prefix + f.name: (part, f.name) for f in dataclasses.fields(settings)}
    if name not in fields:
        raise UnknownNameError("setting", name, [*fields, *DIVIDING])
    return fields[name]
