"""A run on disk.

A run folder holds ``record.json`` (settings, environment, results), ``profiles.npz`` (what each task did to each
layer), ``checkpoint.pt`` (to go on from) and ``events.jsonl``. The first three are written beside their place and then
renamed onto it, so that a kill or a full disk at any moment leaves the last whole version.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import numpy as np
import torch

from nesskit.errors import RunFolderError
from nesskit.runs.checking import check_values, parse_record
from nesskit.runs.events import Event
from nesskit.runs.profile_file import load_profiles, pack_profiles
from nesskit.runs.record import FORMAT, Run, null_nan
from nesskit.wholefile import append_line, remove_leftovers, write_whole

CHECKPOINT = {"stages_done", "stage", "model", "method", "results", "profiles"}  # what a checkpoint holds
STOP = "stop"  # an empty file of this name asks a run to stop


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
            remove_leftovers(self.path)  # nobody else writes here now
            yield
        finally:
            lock.release()

    def read(self) -> Run | None:
        """The run that lies here, None if the folder is missing or empty.

        Raises:
            RunFolderError: the folder holds something else, or its record is damaged. It is left untouched.
        """
        record = self.path / "record.json"
        try:
            if not record.exists():
                if self.path.exists() and (not self.path.is_dir() or self._strangers()):
                    raise self._damaged("it holds no record.json, so it is no run of nesskit")
                return None
            values = parse_record(record.read_text(encoding="utf-8"))
        except OSError as error:
            raise RunFolderError(f"the run folder {self.path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            if isinstance(error, RunFolderError):
                raise
            raise self._damaged(f"its record cannot be read: {error}") from error
        run = self._checked(values)
        run.folder = self.path
        return run

    def _checked(self, values: Any) -> Run:
        """The run that a record tells of, if it can be believed, with its profiles."""
        form = values.get("format") if isinstance(values, dict) else None
        if isinstance(form, int) and form > FORMAT:
            raise self._damaged(f"its format {form} is newer than this nesskit, which reads {FORMAT}")
        try:
            check_values(values)
            run = Run.from_dict(values)
        except (ValueError, TypeError, KeyError) as error:
            raise self._damaged(f"its record is damaged: {error}") from error
        path = self.path / "profiles.npz"
        try:
            run.profiles = load_profiles(path) if path.exists() else []
        except OSError as error:
            raise RunFolderError(f"{path} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise self._damaged(f"its profiles.npz is damaged: {error}") from error
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
            # torch.load does not compare the archive's checksums: a flipped bit would be another weight.
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # of a dozen kinds, which neither library documents; each is a damaged file
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise self._damaged(f"checkpoint.pt cannot be read ({reason})") from error
        if damaged:
            raise self._damaged(f"checkpoint.pt is damaged: the checksum of '{damaged}' in it is wrong")
        missing = sorted(CHECKPOINT - state.keys()) if isinstance(state, dict) else sorted(CHECKPOINT)
        if missing:
            raise self._damaged(f"checkpoint.pt is no checkpoint of a run: it has no {', '.join(missing)}")
        assert isinstance(state, dict)
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
        line = json.dumps(null_nan(event.to_dict())) + "\n"
        try:
            append_line(self.path / "events.jsonl", line.encode())
        except OSError as error:
            raise self._unwritten("events.jsonl", error.strerror) from error

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(f"cannot make the run folder {self.path}: {error.strerror}") from error

    def _replace(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Write a whole file beside its place, flush it to the disk, then rename it onto its place."""
        self._make()
        try:
            write_whole(self.path / name, write)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            raise self._unwritten(name, error.strerror if isinstance(error, OSError) else error) from error

    def _unwritten(self, name: str, reason: object) -> RunFolderError:
        return RunFolderError(
            f"cannot write {self.path / name}: {reason}. What was written before is intact: "
            "make room and give the same command again to go on"
        )

    def _strangers(self) -> list[str]:
        """Files that a run which was killed before its first record would not have left."""
        ours = {".lock", STOP, "events.jsonl", "checkpoint.pt", "profiles.npz"}
        return [p.name for p in self.path.iterdir() if p.name not in ours and not p.name.endswith(".part")]

    def _damaged(self, what: str) -> RunFolderError:
        return RunFolderError(
            f"{self.path}: {what}. It was left untouched: move it away, or choose another runs folder"
        )


def load_run(path: Path | str) -> Run:
    """The run in the folder ``path``.

    Raises:
        RunFolderError: there is no run, or it is damaged.
    """
    if not isinstance(path, str | os.PathLike):
        raise RunFolderError(f"a run is loaded from a folder, got {path!r}: give the one that holds a record.json")
    run = RunFolder(path).read()
    if run is None:
        raise RunFolderError(f"no run lies in {path}: give the folder that holds a record.json")
    return run
