"""What all settings share: plain values and back, checks of types and ranges."""

from __future__ import annotations

import dataclasses
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
                raise SettingsError(f"{name} must be a list, got {_shown(value)}")
            of = typing.get_args(kind)[0]
            items = [_number(f"every {name}", of, item) if of in _NUMBERS else item for item in value]
            object.__setattr__(settings, name, tuple(items))
        elif kind in _NUMBERS:
            object.__setattr__(settings, name, _number(name, kind, value))
        elif isinstance(kind, type) and not isinstance(value, kind):
            raise SettingsError(f"{name} must be a {kind.__name__}, got {_shown(value)}")


def _number(name: str, kind: Any, value: Any) -> Any:
    """``value`` as a plain number of that kind, within what a computer computes with."""
    expected, description, largest = _NUMBERS[kind]
    fits = isinstance(value, expected) and (kind is bool or not isinstance(value, bool))
    if not fits or not abs(value) <= largest:  # nor if it is NaN
        raise SettingsError(f"{name} must be {description}, got {_shown(value)}")
    return kind(value)


def _shown(value: Any) -> str:
    """A value in few words."""
    if isinstance(value, int) and abs(value) >= 10**30:
        return "one of many digits"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


_NUMBERS: dict[Any, tuple[Any, str, float]] = {
    bool: (bool, "true or false", 1),
    int: (numbers.Integral, "a whole number", 2**63 - 1),
    float: (numbers.Real, "a finite number, within 1e30", 1e30),
}


def _without_none(hint: Any) -> Any:
    """``float`` for ``float | None``; any other annotation as it is."""
    if isinstance(hint, types.UnionType):
        return next((kind for kind in hint.__args__ if kind is not type(None)), hint)
    return hint
