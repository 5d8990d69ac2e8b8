"""Recorded runs: small JSON files that the project keeps, each with everything needed to believe it.

A recorded run is a run's record: settings, seed, environment (versions, device, threads, commit), checksums of the
data, accuracies, and the losses of every epoch in a compact form.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nesskit.errors import RunFolderError
from nesskit.runs.checking import check_values, parse_record
from nesskit.runs.record import Run
from nesskit.userfiles import folder_name

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

    Raises:
        RunFolderError: the run lacks provenance, or another result lies there already.
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
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise RunFolderError(f"{path} holds another result of the same settings and seed: move it away first")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def load_results(benchmark: str, folder: Path | str | None = None) -> list[Run]:
    """Every recorded run of ``benchmark``, checked, by method, preset and seed.

    Raises:
        RunFolderError: a file is damaged or lacks provenance; says which and what.
    """
    runs = []
    for path in sorted((Path(folder or results_folder()) / folder_name(benchmark)).glob("*.json")):
        try:
            record = parse_record(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(f"{path} is no recorded run: {error}") from error
        check_record(record, str(path))
        try:
            record = _expanded(record)
            check_values(record)
            runs.append(Run.from_dict(record))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunFolderError(f"{path} is damaged: {error}") from error
    return sorted(runs, key=lambda run: (run.config["method"], run.config["preset"], run.config["seed"]))


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
