"""Recorded runs: small files that the project keeps, each with everything needed to believe it.

A recorded run is a run's record as JSON: settings, seed, environment (versions, device, threads, commit), checksums of
the data, accuracies, and the losses of every epoch in a compact form. Where the run has layer profiles, they lie beside
it under the same name, as ``.npz``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nesskit.errors import RunFolderError
from nesskit.runs.checking import check_values, parse_record
from nesskit.runs.profile_file import load_profiles, pack_profiles
from nesskit.runs.record import Run
from nesskit.spectra.profile import LayerProfile
from nesskit.userfiles import folder_name
from nesskit.wholefile import write_whole

NEEDED = ("config", "environment", "data", "accuracy", "seconds", "history")


def results_folder() -> Path:
    """``data/results`` of the checkout that nesskit is imported from, else of this folder or the nearest above it."""
    here = Path.cwd()
    checkout = Path(__file__).resolve().parents[2]
    places = [checkout] if (checkout / "pyproject.toml").is_file() else [here, *here.parents]
    folders = [place / "data" / "results" for place in places]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def record_run(run: Run, folder: Path | str | None = None) -> Path:
    """Keep ``run`` as ``<folder>/<benchmark>/<method>-<preset>-seed<seed>-<settings>.json``; never over another result.

    Its layer profiles, if it has any, lie beside it as ``.npz``.

    Raises:
        RunFolderError: the run lacks provenance, another result lies there already, or nothing can be written there.
    """
    record = run.to_dict()
    if run.folder is None:
        raise RunFolderError("only a run that lies in a run folder can be recorded: give fit() a folder")
    check_record(record, str(run.folder))
    config = run.config
    method = folder_name(config["method"])
    name = f"{method}-{config['preset']}-seed{config['seed']}-{run.folder.name.rpartition('-')[2]}.json"
    path = Path(folder or results_folder()) / folder_name(config["benchmark"]) / name
    text = json.dumps(_compact(record), indent=1, allow_nan=False) + "\n"
    contents = {path.with_suffix(".npz"): _small(run.profiles)} if run.profiles else {}
    contents[path] = text.encode()  # last: a record that can be read is complete
    try:
        for place, content in contents.items():
            if place.exists() and place.read_bytes() != content:
                raise RunFolderError(f"{place} holds another result of the same settings and seed: move it away first")
        for place, content in contents.items():
            write_whole(place, partial(_write, content))
    except OSError as error:
        raise RunFolderError(f"cannot record {run.folder} as {path}: {error.strerror}") from error
    return path


def load_results(benchmark: str, folder: Path | str | None = None, profiles: bool = True) -> list[Run]:
    """Every recorded run of ``benchmark``, checked, by method, preset and seed.

    Args:
        benchmark: its name.
        folder: where recorded runs lie; None: ``data/results``.
        profiles: whether to read layer profiles too, which takes longer than all the rest.

    Raises:
        RunFolderError: a file is damaged or lacks provenance; says which and what.
    """
    paths = sorted((Path(folder or results_folder()) / folder_name(benchmark)).glob("*.json"))
    runs = [load_result(path, profiles) for path in paths]
    return sorted(runs, key=lambda run: (run.config["method"], run.config["preset"], run.config["seed"]))


def load_result(path: Path | str, profiles: bool = True) -> Run:
    """The recorded run in the file ``path``, checked; with its layer profiles, if there are any and they are wanted.

    Raises:
        RunFolderError: the file, or that of its profiles, is damaged or lacks provenance; says which and what.
    """
    path = Path(path)
    try:
        record = parse_record(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} is no recorded run: {error}") from error
    check_record(record, str(path))
    try:
        record = _expanded(record)
        check_values(record)
        run = Run.from_dict(record)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunFolderError(f"{path} is damaged: {error}") from error
    beside = path.with_suffix(".npz")
    try:
        run.profiles = load_profiles(beside) if profiles and beside.exists() else []
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{beside} holds no layer profiles: {error}") from error
    return run


def check_record(record: Any, where: str) -> None:
    """Refuse a record that nobody could check.

    Raises:
        RunFolderError: settings, seed, versions, device, threads, commit, results or the data's checksum are missing.
    """
    missing = [key for key in NEEDED if key not in record] if isinstance(record, dict) else list(NEEDED)
    if not missing:
        environment = record["environment"]
        missing += [key for key in ("torch", "device", "threads", "commit") if environment.get(key) is None]
        missing += [key for key in ("benchmark", "method", "preset", "seed") if record["config"].get(key) is None]
        sums = record["data"].values()
        if not sums or not all(isinstance(value, str) and len(value) == 64 for value in sums):
            missing.append("SHA-256 of the data")
    if missing:
        raise RunFolderError(
            f"{where} cannot be recorded or shown, its provenance is incomplete: no {', '.join(missing)}"
        )


def _write(content: bytes, stream: BinaryIO) -> None:
    stream.write(content)


def _small(profiles: Sequence[LayerProfile]) -> bytes:
    """The file of layer profiles: in float32, and not compressed, so that equal profiles are equal files."""
    stream = io.BytesIO()
    np.savez(stream, **pack_profiles(profiles, np.float32))
    return stream.getvalue()


def _compact(record: dict[str, Any]) -> dict[str, Any]:
    """The history as one list a column, four digits: 2000 epochs in some 50 kB."""
    history = record["history"]
    columns = {key: [_rounded(epoch[key]) for epoch in history] for key in (history[0] if history else {})}
    return {**record, "history": {key: json.dumps(values, separators=(",", ":")) for key, values in columns.items()}}


def _expanded(record: dict[str, Any]) -> dict[str, Any]:
    """What :func:`_compact` was given, up to the digits."""
    columns = {key: json.loads(values) for key, values in record["history"].items()}
    epochs = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return {**record, "history": epochs}


def _rounded(value: float | None) -> float | None:
    return float(f"{value:.4g}") if isinstance(value, float) else value
