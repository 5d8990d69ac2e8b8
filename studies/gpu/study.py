"""A study as it lies on disk: its runs, and what is brought home of them and of everything else that was found out.

FOLDER/runs/             run folders with their checkpoints, to go on with
FOLDER/data/             the data, where it was given in parts
FOLDER/bring-home/       at most eight files, each under 16 MB: archives of the runs, summary.json, summary.md
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nesskit
from nesskit.errors import NesskitError, RunFolderError
from nesskit.report.results_table import Published, published
from nesskit.runs.comparison import Estimate
from nesskit.runs.folder import RunFolder
from nesskit.runs.record import Run, null_nan
from nesskit.wholefile import write_whole
from studies.gpu.packing import RUNS, pack, unpack
from studies.gpu.plan import Plan, Row, folders
from studies.gpu.words import as_markdown

FORMAT = 1  # of summary.json; raised when an older nesskit could not go on with it
SUMMARY = "summary.json"


@dataclass
class Study:
    """What is known so far; whatever is found out is written at once.

    Attributes:
        essentials, step_times: what was measured, by name and by method.
        failures: by row and seed, why a run failed in the latest session.
        sessions: one entry a call of the command: environment, minutes, processes, how it ended.
    """

    folder: Path
    plan: Plan
    keep_checkpoints: bool = False
    essentials: dict[str, Any] = field(default_factory=dict)
    step_times: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def runs(self) -> Path:
        """Where the run folders lie."""
        return self.folder / "runs"

    @property
    def home(self) -> Path:
        """What is brought home."""
        return self.folder / "bring-home"

    @classmethod
    def new(cls, folder: Path, plan: Plan) -> Study:
        """A study that begins in ``folder``.

        Raises:
            RunFolderError: something lies there.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            way_out = f"go on with --continue {folder}" if (folder / "bring-home").is_dir() else "empty it"
            raise RunFolderError(f"{folder} holds something already: {way_out}, or name another folder by --output")
        return cls(folder, plan)

    @classmethod
    def continued(cls, source: Path, output: Path, plan: Plan) -> Study:
        """The study in ``source``, to go on with there; or what was brought home of one, to go on with in ``output``.

        Raises:
            RunFolderError: there is none, it is of another version or plan, or something lies in ``output``.
        """
        at_home = (source / SUMMARY).is_file()
        known = _read(source / SUMMARY if at_home else source / "bring-home" / SUMMARY, plan)
        study = cls.new(output, plan) if at_home else cls(source, plan)
        if at_home:
            unpack(source, study.runs)
        for name in ("essentials", "step_times", "sessions"):
            setattr(study, name, known[name])
        return study

    def begin_session(self, environment: Mapping[str, Any], minutes: float, processes: int) -> None:
        """A call of the command begins."""
        began = {"began": time.strftime("%Y-%m-%d %H:%M:%S"), "asked": minutes, "processes": processes}
        self.sessions.append({**environment, **began, "minutes": 0.0, "ended": "killed"})
        self._began = time.monotonic()
        self.write()

    def end_session(self, how: str) -> None:
        """The call ends, for that reason."""
        self.sessions[-1]["ended"] = how
        self.pack()

    def pack(self) -> None:
        """Put together what is brought home."""
        self.left_out = pack(self.runs, self.home, self.keep_checkpoints)
        self.write()

    def write(self) -> None:
        """Write both summaries."""
        self.sessions[-1]["minutes"] = round((time.monotonic() - self._began) / 60, 2)
        values = self.values()
        _put(self.home / SUMMARY, json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False))
        _put(self.home / "summary.md", as_markdown(values))

    def is_done(self, row: Row) -> bool:
        """Whether every run of the row has finished."""
        runs = [_run_in(path) for path in folders(self.plan.settings(row), self.runs).values()]
        return all(isinstance(run, Run) and run.finished for run in runs)

    def values(self) -> dict[str, Any]:
        """All that is known, as plain values."""
        return {
            "format": FORMAT,
            "nesskit": nesskit.__version__,
            "plan": self.plan.name,
            "benchmark": self.plan.benchmark,
            "archives": [path.name for path in sorted(self.home.glob(RUNS.format("*")))],
            "sessions": self.sessions,
            "essentials": self.essentials,
            "step_times": self.step_times,
            "rows": null_nan([self._row(row) for row in self.plan.rows]),
            "left_out": self.left_out,
        }

    def _row(self, row: Row) -> dict[str, Any]:
        """A row as far as it has come; means and standard deviations (n - 1) are those of the finished seeds."""
        beside = next((line for line in published(self.plan.benchmark) if line.label == row.published), None)
        known = {"label": row.label, "method": row.method, "preset": row.preset, "published": _as_values(beside)}
        if why_not := self.plan.why_not(row):
            return {**known, "skipped": why_not, "seeds": {}}
        found = folders(self.plan.settings(row), self.runs)
        runs = {seed: _run_in(path) for seed, path in found.items()}
        whole = [run for run in runs.values() if isinstance(run, Run) and run.finished]
        accuracy = Estimate.of([run.average_accuracy for run in whole])
        transfer = Estimate.of([run.backward_transfer for run in whole])
        failures = self.failures.get(row.label, {})
        return {
            **known,
            "average_accuracy": vars(accuracy),
            "backward_transfer": vars(transfer),
            "difference_in_published_std": beside and _difference(accuracy, transfer, beside),
            "seeds": {str(seed): _seed(run, failures.get(str(seed), "")) for seed, run in runs.items()},
        }


def _read(path: Path, plan: Plan) -> dict[str, Any]:
    """The summary of a study that can be gone on with."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        form, name = values["format"], values["plan"]
    except FileNotFoundError:
        where = path.parent if path.parent.name != "bring-home" else path.parent.parent
        raise RunFolderError(f"{where} holds no study: leave --continue out to begin one") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"{path} is damaged ({error}): put a whole one there, or begin anew") from error
    if form != FORMAT:
        raise RunFolderError(
            f"{path} is of format {form}, and this nesskit goes on with {FORMAT}: use the nesskit that wrote it, or "
            "begin a new study in another --output. Nothing was touched"
        )
    if name != plan.name:
        flag = "with" if name == "tiny" else "without"
        raise RunFolderError(f"{path} is of a study of the plan '{name}': go on with it {flag} --tiny")
    return dict(values)


def _put(path: Path, text: str) -> None:
    write_whole(path, lambda stream: stream.write(f"{text}\n".encode()))


def _run_in(path: Path) -> Run | str:
    """The run in a folder; in words, why there is none."""
    try:
        return RunFolder(path).read() or ""
    except NesskitError as error:
        return str(error)


def _seed(run: Run | str, failure: str) -> dict[str, Any]:
    """How a run stands."""
    if isinstance(run, str):
        return {"status": "failed" if run or failure else "not begun", "reason": run or failure}
    return {
        "status": "unfinished" if run.status == "running" else run.status,
        "reason": run.status_reason or ("" if run.finished else failure),
        "tasks": len(run.tasks),
        "tasks_done": run.tasks_done,
        "average_accuracy": run.average_accuracy,
        "backward_transfer": run.backward_transfer,
        "epochs": len(run.history),
        "seconds": round(run.seconds, 1),
    }


def _as_values(line: Published | None) -> dict[str, Any] | None:
    if line is None:
        return None
    return {"label": line.label, "average_accuracy": line.accuracy, "backward_transfer": line.transfer}


def _difference(accuracy: Estimate, transfer: Estimate, line: Published) -> list[float]:
    """Ours minus theirs, of ACC and of BWT, in published standard deviations."""
    both = ((accuracy, line.accuracy), (transfer, line.transfer))
    return [(ours.mean - mean) / std if std else float("nan") for ours, (mean, std) in both]
