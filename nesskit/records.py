"""Runs: what they are in memory, and how they lie on disk.

A run folder holds ``record.json`` (settings, environment, results), ``profiles.npz`` (what each task did to each
layer), ``checkpoint.pt`` (to go on from) and ``events.jsonl``. The first three are written beside their place and then
renamed onto it, so that a kill or a full disk at any moment leaves the last whole version.
"""

from __future__ import annotations

import json
import os
import pickle
import platform
import subprocess
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, Literal

import filelock
import numpy as np
import torch

import nesskit
from nesskit import metrics
from nesskit.errors import RunFolderError
from nesskit.events import Event
from nesskit.spectrum import LayerProfile

FORMAT = 2  # of a run folder's files; raised when an older nesskit could not read them

_FIELDS = tuple(item.name for item in fields(LayerProfile))
_VECTORS = ("sigma_squared", "update_energy", "weight_energy")  # the (d,) fields of a LayerProfile

INTERRUPTED = "interrupted from the keyboard"  # the reason of such a stop
STOP = "stop"  # an empty file of this name asks a run to stop

Status = Literal["running", "stopped", "failed", "finished"]


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of the history; ``valid_*`` are None without validation data, ``valid_accuracy`` is in percent."""

    task: int
    epoch: int
    train_loss: float
    valid_loss: float | None
    valid_accuracy: float | None
    lr: float


@dataclass
class Run:
    """The result of a run, complete or as far as it got.

    Attributes:
        accuracy: (T, T) percent; ``accuracy[t, i]`` is task i's test accuracy after task t, NaN where not measured.
        valid_accuracy: the same on validation data; all NaN without.
        config: the settings, as plain values.
        environment: versions, device, threads, commit.
        data: SHA-256 of every data source.
        tasks: names of the tasks.
        history: one record an epoch.
        profiles: what each task did to each layer (empty for methods that do not measure it).
        memory: what the method kept at the end, in bytes by name.
        seconds: time spent training and evaluating, over all processes that worked on the run.
        status: how it stands; ``status_reason`` says more.
        folder: where it lies, None if it was never written.
    """

    accuracy: np.ndarray
    valid_accuracy: np.ndarray
    config: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, str]
    tasks: list[str]
    history: list[EpochRecord] = field(default_factory=list)
    profiles: list[LayerProfile] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    status: Status = "running"
    status_reason: str = ""
    folder: Path | None = None

    @classmethod
    def new(
        cls, config: Mapping[str, Any], environment: dict[str, Any], data: Mapping[str, str], tasks: list[str]
    ) -> Run:
        """A run in which nothing has been measured yet."""
        empty = np.full((len(tasks), len(tasks)), np.nan)
        return cls(empty, empty.copy(), dict(config), environment, dict(data), tasks)

    @property
    def average_accuracy(self) -> float:
        """ACC in percent."""
        return metrics.average_accuracy(self.accuracy)

    @property
    def backward_transfer(self) -> float:
        """BWT in percent points; NaN for joint training and for a single task."""
        return metrics.backward_transfer(self.accuracy)

    @property
    def epochs_per_task(self) -> list[int]:
        """How many epochs each task was trained for (in joint training all of them count for the last)."""
        trained = [epoch.task for epoch in self.history]
        return [trained.count(task) for task in range(len(self.tasks))]

    @property
    def finished(self) -> bool:
        """Whether every task of the stream was learned."""
        return self.status == "finished"

    @property
    def interrupted(self) -> bool:
        """Whether somebody stopped it from the keyboard."""
        return self.status == "stopped" and self.status_reason == INTERRUPTED

    @property
    def tasks_done(self) -> int:
        """How many tasks have been learned."""
        return len(metrics.final_accuracy(self.accuracy))

    def summary(self) -> dict[str, Any]:
        """The result in one JSON object: ACC, BWT, accuracy matrix, seconds, folder (null where there is none)."""
        return {
            "average_accuracy": _null_nan(self.average_accuracy),
            "backward_transfer": _null_nan(self.backward_transfer),
            "accuracy": _null_nan(self.accuracy.tolist()),
            "seconds": round(self.seconds, 3),
            "run_dir": None if self.folder is None else str(self.folder),
            "status": self.status,
        }

    def results(self) -> dict[str, Any]:
        """What training produced, as plain values (without profiles)."""
        return {
            "accuracy": _null_nan(self.accuracy.tolist()),
            "valid_accuracy": _null_nan(self.valid_accuracy.tolist()),
            "history": [asdict(epoch) for epoch in self.history],
            "memory": self.memory,
            "seconds": self.seconds,
        }

    def restore_results(self, results: Mapping[str, Any]) -> None:
        """Take over what :meth:`results` was taken of."""
        self.accuracy = np.array(results["accuracy"], dtype=np.float64)
        self.valid_accuracy = np.array(results["valid_accuracy"], dtype=np.float64)
        self.history = [EpochRecord(**epoch) for epoch in results["history"]]
        self.memory = dict(results["memory"])
        self.seconds = results["seconds"]

    def to_dict(self) -> dict[str, Any]:
        """The record of the run as plain values."""
        return {
            "format": FORMAT,
            "status": self.status,
            "status_reason": self.status_reason,
            "config": self.config,
            "environment": self.environment,
            "data": self.data,
            "tasks": self.tasks,
            "average_accuracy": _null_nan(self.average_accuracy),
            "backward_transfer": _null_nan(self.backward_transfer),
            **self.results(),
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Run:
        """The run that ``to_dict`` was taken of (without its profiles)."""
        run = cls.new(record["config"], dict(record["environment"]), record["data"], list(record["tasks"]))
        run.restore_results(record)
        run.status, run.status_reason = record["status"], record["status_reason"]
        return run


class RunFolder:
    """A folder that holds one run.

    Args:
        path: the folder; made when something is first written.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other writers out; the system releases the lock when a process dies.

        Raises:
            RunFolderError: another process is writing to this folder.
        """
        self._make()
        lock = filelock.FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise RunFolderError(
                f"another process is working on the run in {self.path}: "
                "wait for it, stop it, or choose another runs folder"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def read(self) -> Run | None:
        """The run that lies here, None if the folder is missing or empty.

        Raises:
            RunFolderError: the folder holds something else, or its record is damaged. It is left untouched.
        """
        record = self.path / "record.json"
        if not record.exists():
            if self.path.exists() and (not self.path.is_dir() or self._strangers()):
                raise self._damaged("it holds no record.json, so it is no run of nesskit")
            return None
        try:
            values = json.loads(record.read_text(encoding="utf-8"))
            if values["format"] > FORMAT:
                raise self._damaged(f"its format {values['format']} is newer than this nesskit, which reads {FORMAT}")
            run = Run.from_dict(values)
            run.profiles = self._read_profiles()
        except (json.JSONDecodeError, UnicodeDecodeError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
            if isinstance(error, RunFolderError):
                raise
            raise self._damaged(f"its record cannot be read ({type(error).__name__}: {error})") from error
        run.folder = self.path
        return run

    def write(self, run: Run) -> None:
        """Write record and profiles.

        Raises:
            RunFolderError: they could not be written (disk full, no permission); what was there before still is.
        """
        run.folder = self.path
        text = json.dumps(run.to_dict(), indent=1, allow_nan=False)
        if run.profiles:
            self._replace("profiles.npz", lambda stream: np.savez_compressed(stream, **pack_profiles(run.profiles)))
        self._replace("record.json", lambda stream: stream.write(text.encode()))

    def read_checkpoint(self) -> dict[str, Any] | None:
        """The state to go on from, None if there is none.

        Raises:
            RunFolderError: it is damaged.
        """
        path = self.path / "checkpoint.pt"
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, KeyError) as error:
            raise self._damaged(f"checkpoint.pt cannot be read ({type(error).__name__})") from error
        return state

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the state to go on from; errors as for :meth:`write`."""
        self._replace("checkpoint.pt", lambda stream: torch.save(state, stream))

    def request_stop(self) -> None:
        """Ask whoever works on this run to stop after the present epoch."""
        self._make()
        (self.path / STOP).touch()

    def stop_requested(self) -> bool:
        """Whether somebody has asked to stop; asking once is enough, the request is taken back by the answer."""
        request = self.path / STOP
        if not request.exists():
            return False
        request.unlink(missing_ok=True)
        return True

    def append_event(self, event: Event) -> None:
        """Add one line to ``events.jsonl``."""
        self._make()
        with (self.path / "events.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(_null_nan(event.to_dict())) + "\n")

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"cannot make the run folder {self.path}: {error.strerror}") from error

    def _replace(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Write a whole file beside its place, flush it to the disk, then rename it onto its place."""
        self._make()
        beside = self.path / f".{name}.{os.getpid()}.part"
        try:
            with beside.open("wb") as stream:
                write(stream)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(self.path / name)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            beside.unlink(missing_ok=True)
            reason = error.strerror if isinstance(error, OSError) else error
            raise RunFolderError(
                f"cannot write {self.path / name}: {reason}. What was written before is intact: "
                "make room and give the same command again to go on"
            ) from error

    def _strangers(self) -> list[str]:
        """Files that a run which was killed before its first record would not have left."""
        ours = {".lock", STOP, "events.jsonl", "checkpoint.pt", "profiles.npz"}
        return [p.name for p in self.path.iterdir() if p.name not in ours and not p.name.endswith(".part")]

    def _read_profiles(self) -> list[LayerProfile]:
        path = self.path / "profiles.npz"
        return _load_profiles(path) if path.exists() else []

    def _damaged(self, what: str) -> RunFolderError:
        return RunFolderError(
            f"{self.path}: {what}. It was left untouched: move it away, or choose another runs folder"
        )


def load_run(path: Path | str) -> Run:
    """The run in the folder ``path``.

    Raises:
        RunFolderError: there is no run, or it is damaged.
    """
    run = RunFolder(path).read()
    if run is None:
        raise RunFolderError(f"no run lies in {path}: give the folder that holds a record.json")
    return run


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


def describe_environment(device: torch.device) -> dict[str, Any]:
    """What a result may depend on beside its settings: versions, device, threads, commit."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "nesskit": nesskit.__version__,
        "commit": current_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }


def current_commit() -> str | None:
    """The commit of the checkout nesskit is imported from, with ``+changes`` if files differ; None outside of git."""

    def git(*command: str) -> str:
        folder = Path(__file__).parent
        done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        tracked = git("ls-files", "__init__.py")  # not so if nesskit is installed inside somebody else's repository
        if not tracked:
            return None
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _load_profiles(path: Path) -> list[LayerProfile]:
    with np.load(path, allow_pickle=False) as stored:
        arrays = {key: values if values.ndim else values.item() for key, values in stored.items()}
    if "dimension" in arrays:
        return unpack_profiles({k: v if k in _VECTORS else v.tolist() for k, v in arrays.items()})
    old: dict[int, dict[str, Any]] = {}  # format 1: an array for each field of each profile, named number/field
    for key, value in arrays.items():
        number, name = key.split("/")
        old.setdefault(int(number), {})[name] = value
    return unpack_profiles([old[number] for number in sorted(old)])


def _null_nan(value: Any) -> Any:
    """NaN has no place in JSON: None instead, in nested lists and dicts too."""
    if isinstance(value, float) and np.isnan(value):
        return None
    if isinstance(value, list | tuple):
        return [_null_nan(item) for item in value]
    if isinstance(value, dict):
        return {key: _null_nan(item) for key, item in value.items()}
    return value
