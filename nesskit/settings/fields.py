"""What all settings share: plain values and back, checks of types and ranges."""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from nesskit.errors import SettingsError, UnknownNameError
from nesskit.spectra.filters import Filter, parse_filter

T = TypeVar("T")


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


def require(settings: Any, name: str, holds: bool, expected: str) -> None:
    """One sentence if field ``name`` of ``settings`` does not hold what it must.

    Raises:
        SettingsError: ``holds`` is false.
    """
    if not holds:
        raise SettingsError(f"{name} must be {expected}, got {getattr(settings, name)}")


def check_types(settings: Any) -> None:
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
