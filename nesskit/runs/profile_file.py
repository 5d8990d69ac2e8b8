"""Layer profiles as one file, ``profiles.npz``."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from nesskit.spectra.profile import LayerProfile

LARGEST = 1 << 30  # bytes; the profiles of a hundred tasks of a large network are a hundredth of it
_FIELDS = tuple(item.name for item in fields(LayerProfile))
_VECTORS = ("sigma_squared", "update_energy", "weight_energy")  # the (d,) fields of a LayerProfile


def pack_profiles(profiles: Sequence[LayerProfile], dtype: type[np.floating] = np.float64) -> dict[str, Any]:
    """Profiles as one list or array a field, for a file; vectors as ``dtype``.

    The vectors of all profiles lie end to end, ``dimension`` tells where to cut: what a file takes to write grows with
    the number of its arrays much more than with their sizes, and every task adds profiles.
    """
    packed: dict[str, Any] = {"dimension": [len(profile.sigma_squared) for profile in profiles]}
    for name in _FIELDS:
        values = [getattr(profile, name) for profile in profiles]
        packed[name] = np.concatenate([np.empty(0), *values]).astype(dtype) if name in _VECTORS else values
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
    """The profiles in the file ``path``, of this format or an older one; their vectors are in float64.

    Raises:
        ValueError: the file is damaged, or holds something else.
        OSError: it cannot be read.
    """
    arrays = _arrays(path)
    try:
        if "dimension" in arrays:
            profiles = unpack_profiles({k: v if k in _VECTORS else v.tolist() for k, v in arrays.items()})
        else:
            old: dict[int, dict[str, Any]] = {}  # format 1: an array for each field of each profile, named number/field
            for key, value in arrays.items():
                number, name = key.split("/")
                old.setdefault(int(number), {})[name] = value
            profiles = unpack_profiles([old[number] for number in sorted(old)])
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"it holds no profiles ({error})") from error
    for profile in profiles:
        _check(profile)
    return profiles


def _arrays(path: Path) -> dict[str, Any]:
    """Every array of the file, whose checksums are right."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > LARGEST:
                raise ValueError(f"it claims to hold more than {LARGEST >> 20} MiB")
            damaged = archive.testzip()
        if damaged:
            raise ValueError(f"the checksum of '{damaged}' in it is wrong")
        with np.load(path, allow_pickle=False) as stored:
            return {key: _plain(values) for key, values in stored.items()}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, MemoryError, RuntimeError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _plain(values: np.ndarray) -> Any:
    """A number where there is one; vectors in double precision, so that sums over them are exact enough."""
    if not values.ndim:
        return values.item()
    return values.astype(np.float64) if values.dtype == np.float32 else values


def _check(profile: LayerProfile) -> None:
    """A profile holds what :func:`layer_profile` may have measured."""
    named = isinstance(profile.layer, str) and isinstance(profile.task, int) and isinstance(profile.rank, int)
    vectors = [np.asarray(getattr(profile, name)) for name in _VECTORS]
    d = len(vectors[0])
    right = named and 0 <= profile.rank <= d and profile.task >= 0
    if not right or not all(v.dtype.kind == "f" and v.shape == (d,) and (v >= 0).all() for v in vectors):
        raise ValueError(f"the profile of layer '{profile.layer}' holds what no task can have done to a layer")
    if not all(np.isfinite(v).all() for v in vectors):
        raise ValueError(f"the profile of layer '{profile.layer}' holds infinite numbers")
