"""How long a run will take: from runs that were made here, else from recorded ones, else nobody knows yet."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from nesskit.errors import NesskitError
from nesskit.experiments.remarks import complete
from nesskit.methods import METHODS
from nesskit.plots import display_name
from nesskit.runs.folder import RunFolder
from nesskit.runs.record import Run
from nesskit.runs.results import load_results
from nesskit.settings import RunSettings, to_dict

ALIKE = ("batch_size", "optimizer", "sam_tasks", "precision")  # training settings that decide how long an epoch takes

HERE, RECORDED = "made here", "recorded with the project"


@dataclass(frozen=True)
class Speed:
    """How fast a benchmark runs.

    Attributes:
        seconds: that an epoch of one task takes, with all evaluations.
        tasks: how many tasks the benchmark has.
        source: what that was measured on, as the end of a sentence.
    """

    seconds: float
    tasks: int
    source: str

    def of_run(self, settings: RunSettings) -> float:
        """Seconds that a whole run takes, if no task ends early. (Joint training learns every task in each epoch.)"""
        return self.seconds * self.tasks * settings.training.epochs


class Stopwatch:
    """The runs that lie on this machine and those that are recorded, read once: :meth:`look` again after a run.

    Args:
        benchmark: whose runs.
        runs: where runs lie.
        results: where recorded runs lie; None: ``data/results``.
    """

    def __init__(self, benchmark: str, runs: Path | str, results: Path | str | None = None) -> None:
        self.benchmark, self.runs, self.results = benchmark, Path(runs), results
        self.look()

    def look(self) -> None:
        """Read both kinds of runs anew; what cannot be read tells nothing."""
        self._here = list(_readable(sorted((self.runs / self.benchmark).glob("*/*"))))
        try:
            self._recorded = load_results(self.benchmark, self.results, profiles=False)
        except NesskitError:
            self._recorded = []

    def speed(self, settings: RunSettings, device: str) -> Speed | None:
        """How fast ``settings`` run on ``device`` (``cpu`` or ``cuda``); None if nothing like it was ever measured."""
        return _speed(self._here, settings, device, HERE) or _speed(self._recorded, settings, device, RECORDED)


def _speed(runs: Iterable[Run], settings: RunSettings, device: str, which: str) -> Speed | None:
    alike = [run for run in runs if run.history and _device(run) == device and _is_alike(run, settings)]
    same_method = [run for run in alike if run.config["method"] == settings.method]
    used = same_method or alike
    if not used:
        return None
    count = "one run" if len(used) == 1 else f"{len(used)} runs"
    method = "" if same_method else f" of {_methods(used)}"
    machines = sorted({_machine(run) for run in used})
    where = "" if which == HERE else f" ({'; '.join(machines)}), which may be slower or faster than yours"
    tasks = max(len(run.tasks) for run in used)
    return Speed(median(_seconds_per_epoch(run) for run in used), tasks, f"by {count}{method} {which}{where}")


def _is_alike(run: Run, settings: RunSettings) -> bool:
    """Whether an epoch of ``run`` cost about what one of ``settings`` will."""
    training = run.config.get("training")
    if not isinstance(training, dict) or complete(run.config).get("network") != to_dict(settings.network):
        return False
    ours = to_dict(settings.training)
    return all(training.get(key) == ours[key] for key in ALIKE)


def _seconds_per_epoch(run: Run) -> float:
    method = METHODS.get(str(run.config["method"]))
    tasks_per_epoch = len(run.tasks) if method is not None and method.learns_together else 1
    return run.seconds / (len(run.history) * tasks_per_epoch)


def _methods(runs: Sequence[Run]) -> str:
    return " and ".join(sorted({display_name(str(run.config["method"])) for run in runs}))


def _device(run: Run) -> str:
    """``cuda`` of ``cuda (NVIDIA H100)``."""
    return str(run.environment.get("device", "")).partition(" ")[0]


def _machine(run: Run) -> str:
    name = str(run.environment.get("device", "")).partition(" ")[2].strip("()")
    threads = run.environment.get("threads", "?")
    return name if _device(run) == "cuda" else f"{name}, {threads} thread{'' if threads == 1 else 's'}"


def _readable(folders: Iterable[Path]) -> Iterable[Run]:
    for folder in folders:
        try:
            run = RunFolder(folder).read()
        except (NesskitError, OSError):
            continue
        if run is not None:
            yield run
