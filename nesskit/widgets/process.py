"""A run in a child process: start it, follow what it writes, stop it.

The child writes ``events.jsonl`` into its run folder and looks for a request to stop there, so any process may watch
or stop any run, also one that it did not start.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from nesskit.errors import RunFolderError
from nesskit.experiments.running import run_folder
from nesskit.runs.folder import RunFolder
from nesskit.settings import RunSettings

TRAIN = """
import json, sys
from nesskit.errors import NesskitError
from nesskit.experiments.running import execute
from nesskit.settings import RunSettings
order = json.loads(sys.stdin.read())
try:
    execute(RunSettings.from_dict(order["settings"]), order["runs"], order["device"])
except NesskitError as error:
    sys.exit(f"nesskit: {error}")
"""

FETCH = """
import json, sys
from nesskit.errors import NesskitError
from nesskit.streams import fetch_stream
try:
    fetch_stream(json.loads(sys.stdin.read()))
except NesskitError as error:
    sys.exit(f"nesskit: {error}")
"""


class ChildProcess:
    """A process of its own that does one thing, and says why if it could not.

    Args:
        program: what it does, in Python.
        order: what it reads from its standard input, as JSON.
    """

    def __init__(self, program: str, order: Any) -> None:
        self._errors = ""
        # A file and no pipe: a download shows its progress there, and nobody empties a pipe until the child has ended.
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # lives as long
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            text=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order))
        self._process.stdin.close()

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the child is still there."""
        return self._process.poll() is None

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the child has ended.

        Raises:
            RunFolderError: it failed; with its last words.
            subprocess.TimeoutExpired: it is still running after ``seconds``.
        """
        self._process.wait(seconds)
        if self.error:
            raise RunFolderError(self.error)

    def kill(self) -> None:
        """End the child at once; of a run, its last checkpoint stays."""
        self._process.kill()
        self._process.wait()

    @property
    def error(self) -> str:
        """Why the child failed: its last line, empty if it did not or is still running."""
        if self.running or self._process.returncode == 0:
            return ""
        if not self._errors:
            self._stderr.seek(0)
            self._errors = self._stderr.read().strip() or f"it ended with status {self._process.returncode}"
        return self._errors.splitlines()[-1].removeprefix("nesskit: ")


class RunProcess(ChildProcess):
    """A run that goes on in a process of its own.

    Attributes:
        folder: where the run lies.
    """

    def __init__(self, settings: RunSettings, runs: Path | str = "runs", device: str = "auto") -> None:
        """Start the run that ``settings`` describe, or go on with it."""
        self.folder = run_folder(settings, runs)
        super().__init__(TRAIN, {"settings": settings.to_dict(), "runs": str(runs), "device": device})

    def stop(self) -> None:
        """Ask the child to stop after the epoch it is in; what it has done is kept, and the run can go on later."""
        RunFolder(self.folder).request_stop()


class FetchProcess(ChildProcess):
    """The data of a benchmark, downloaded and verified by a process of its own."""

    def __init__(self, benchmark: str) -> None:
        super().__init__(FETCH, benchmark)


class EventFollower:
    """Reads the events of a run folder as they are written, by whatever process."""

    def __init__(self, folder: Path | str) -> None:
        self.path = Path(folder) / "events.jsonl"
        self._position = 0

    def poll(self) -> list[dict[str, Any]]:
        """The events since the last call, oldest first; empty if there are none, or no file yet."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as stream:
            stream.seek(self._position)
            lines = stream.read().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith(b"\n")]  # the last may be half written
        self._position += sum(len(line) for line in whole)
        return [event for event in map(_event, whole) if event is not None]


def _event(line: bytes) -> dict[str, Any] | None:
    """What a line tells; None if it is torn, as one is that its writer was killed in the middle of."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None
