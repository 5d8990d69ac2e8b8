"""Layer profiles as one file, ``profiles.npz``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from nesskit.spectra.profile import LayerProfile

_FIELDS = tuple(item.name for item in fields(LayerProfile))


_VECTORS = ("sigma_squared", "update_energy", "weight_energy")  # the (d,) fields of a LayerProfile


def pack_profiles(profiles: Sequence[LayerProfile]) -> dict[str, Any]:
    """Profiles as one list or array a field, for a file.

    The vectors of all profiles lie end to end, ``dimension`` tells where to cut: what a file takes to write grows with
    the number of its arrays much more than with their sizes, and every task adds profiles.
    """
    packed: dict[str, Any] = {"dimension": [len(profile.sigma_squared) for profile in profiles]}
    for name in _FIELDS:
        values = [getattr(profile, name) for profile in profiles]
        packed[name] = np.concatenate([np.empty(0), *values]) if name in _VECTORS else values
    return packed


def unpack_profiles(packed: Mapping[str, Any] | list[dict[str, Any]]) -> list[LayerProfile]:
    """What :func:`pack_profiles` was given; in format 1 ``packed`` is a dict a profile."""
    if isinstance(packed, list):
        vectors = [{name: np.asarray(profile[name]) for name in _VECTORS} for profile in packed]
        return [LayerProfile(**profile | own) for profile, own in zip(packed, vectors, strict=True)]
    cuts = np.cumsum(packed["dimension"], dtype=int)[:-1]
    columns = [np.split(np.asarray(packed[name]), cuts) if name in _VECTORS else packed[name] for name in _FIELDS]
    if not len(packed["dimension"]):
        return []
    return [LayerProfile(*values) for values in zip(*columns, strict=True)]


def load_profiles(path: Path) -> list[LayerProfile]:
    """The profiles in the file ``path``, of this format or an older one."""
    with np.load(path, allow_pickle=False) as stored:
        arrays = {key: values if values.ndim else values.item() for key, values in stored.items()}
    if "dimension" in arrays:
        return unpack_profiles({k: v if k in _VECTORS else v.tolist() for k, v in arrays.items()})
    old: dict[int, dict[str, Any]] = {}  # format 1: an array for each field of each profile, named number/field
    for key, value in arrays.items():
        number, name = key.split("/")
        old.setdefault(int(number), {})[name] = value
    return unpack_profiles([old[number] for number in sorted(old)])
