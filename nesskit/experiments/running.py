"""Experiments: run what settings describe, compare methods, sweep thresholds. What the command line does, for Python.

torch is imported only when something is run.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nesskit import userfiles
from nesskit.errors import SettingsError
from nesskit.experiments.configure import configure
from nesskit.experiments.executors import open_executor
from nesskit.settings import METHOD_SETTINGS, RunSettings
from nesskit.spectra.filters import Filter

if TYPE_CHECKING:
    from nesskit.runs.comparison import Comparison, Failure
    from nesskit.runs.events import Listener
    from nesskit.runs.record import Run
    from nesskit.runs.sweep import Sweep
    from nesskit.training.limits import Limits


def execute(
    settings: RunSettings,
    runs: Path | str = "runs",
    device: str = "auto",
    limits: Limits | None = None,
    listeners: Sequence[Listener] = (),
) -> Run:
    """Do the run that ``settings`` describe, go on with it, or show it if it is finished.

    It lies in ``runs/<benchmark>/<method>/<seed>-<settings hash>/``.

    Raises:
        RunFolderError: the folder is in use, damaged, or not a run of ours.
        TrainingError, DataError: training or data failed; earlier tasks stay on disk.
    """
    from nesskit.methods import make_method
    from nesskit.networks import build_model
    from nesskit.runs.folder import RunFolder
    from nesskit.streams import load_stream
    from nesskit.training.fit import finished_run, fit
    from nesskit.training.limits import Limits

    limits = Limits() if limits is None else limits
    if not isinstance(limits, Limits):
        raise SettingsError(f"limits must be Limits, such as nesskit.Limits(tasks=2), got {limits!r}")
    method = make_method(settings.method, settings.options)
    if limits.tasks is not None and method.learns_together:
        # Joint training on fewer tasks is no beginning of joint training on all of them: it is another run.
        settings = dataclasses.replace(settings, tasks=limits.tasks)
    folder = RunFolder(run_folder(settings, runs))
    before = finished_run(folder, settings.to_dict(), listeners)
    if before is not None:
        return before
    stream = load_stream(settings.benchmark, settings.seed, settings.validation_share, settings.split)
    if settings.tasks is not None:
        stream = stream.first(settings.tasks)
    model = build_model(stream, settings.network, settings.seed, settings.training.head == "shared")
    return fit(
        model,
        stream,
        method,
        settings.training,
        seed=settings.seed,
        device=choose_device(device),
        folder=folder,
        config=settings.to_dict(),
        listeners=listeners,
        limits=limits,
    )


def run(
    benchmark: str,
    *,
    method: str = "ness",
    preset: str | None = None,
    seed: int = 0,
    runs: Path | str = "runs",
    device: str = "auto",
    limits: Limits | None = None,
    progress: bool = True,
    **changes: Any,
) -> Run:
    """Run a benchmark: what ``nesskit run`` does, for Python. See :func:`configure` for ``changes``.

    Example: ``nesskit.run("permuted-digits", method="ness", seed=1, filter=nesskit.NuclearThreshold(0.004))``.
    """
    settings = configure(benchmark, method, preset, seed, **changes)
    return execute(settings, runs, device, limits, _progress(settings) if progress else ())


def compare(
    benchmark: str,
    methods: Iterable[str] | str,
    seeds: Iterable[int],
    *,
    preset: str | None = None,
    runs: Path | str = "runs",
    device: str = "auto",
    limits: Limits | None = None,
    executor: Executor | str | None = None,
    progress: bool = True,
    **changes: Any,
) -> Comparison:
    """Run every method with every seed and compare them; runs that are there already are not done again.

    A run that fails is part of the comparison as a failure; the others go on.

    Args:
        methods: names; ``"all"`` for every method there is.
        seeds: whole numbers.
        executor: where runs go on beside each other: ``"processes:4"``, ``"dask://host:8786"``, or any executor of
            :mod:`concurrent.futures`; by default one after another in this process.
        **changes: see :func:`configure`.
    """
    from nesskit.runs.comparison import Comparison

    seeds = _seeds(seeds)
    names = list(METHOD_SETTINGS) if methods == "all" else [methods] if isinstance(methods, str) else list(methods)
    if not names:
        raise SettingsError("a comparison needs at least one method")
    # All settings first: a misspelt method should not be found out after an hour of the others.
    wanted = [configure(benchmark, method, preset, seed, **changes) for method in names for seed in seeds]
    listeners_of = _progress if progress else _no_listeners
    with open_executor(executor) if isinstance(executor, str) else nullcontext(executor) as pool:
        return Comparison.of(*execute_all(wanted, runs, device, limits, pool, listeners_of))


def _seeds(seeds: Iterable[int]) -> list[int]:
    """The seeds as a list; at least one."""
    if not isinstance(seeds, Iterable) or isinstance(seeds, str):
        raise SettingsError(f"seeds must be whole numbers such as [0, 1, 2], got {seeds!r}")
    listed = list(seeds)
    if not listed:
        raise SettingsError("seeds must be whole numbers such as [0, 1, 2], and at least one")
    return listed


def execute_all(
    wanted: Sequence[RunSettings],
    runs: Path | str = "runs",
    device: str = "auto",
    limits: Limits | None = None,
    executor: Executor | None = None,
    listeners_of: Callable[[RunSettings], Sequence[Listener]] = lambda _: (),
    on_end: Callable[[Run | Failure], None] = lambda _: None,
) -> tuple[list[Run], list[Failure]]:
    """Do all runs, here or through ``executor``: those that ended, and those that failed with the reason.

    Runs on other machines write into ``runs`` there; a folder that all of them share lets stopped runs go on. Only
    runs in this process have listeners; ``on_end`` hears of every run, in the order of ``wanted``.
    """
    from nesskit.runs.comparison import Failure

    if executor is None:
        calls: list[Callable[[], Run]] = [
            functools.partial(execute, settings, runs, device, limits, listeners_of(settings)) for settings in wanted
        ]
    else:
        calls = [_submitted(executor, settings, str(runs), device, limits) for settings in wanted]
    ended: list[Run] = []
    failed: list[Failure] = []
    for settings, call in zip(wanted, calls, strict=True):
        try:
            run = call()
        except Exception as error:  # whatever it was, it is reported beside the runs that worked
            failed.append(Failure.of(settings, error))
            on_end(failed[-1])
            continue
        ended.append(run)
        on_end(run)
        if run.interrupted:
            break
    return ended, failed


def _submitted(executor: Executor, *order: Any) -> Callable[[], Run]:
    """What waits for the run of ``order``, or raises why the executor takes no more: a worker of its pool has died."""
    try:
        return executor.submit(_execute_alone, *order).result
    except BrokenExecutor as error:
        future: Future[Run] = Future()
        future.set_exception(error)
        return future.result


_ONE_AT_A_TIME = threading.Lock()


def _execute_alone(settings: RunSettings, runs: str, device: str, limits: Limits | None) -> Run:
    """A run in a worker; threads of one worker wait for each other, since they share torch's generator."""
    with _ONE_AT_A_TIME:
        return execute(settings, runs, device, limits)


def sweep(
    benchmark: str,
    filters: Iterable[Filter],
    seeds: Iterable[int],
    *,
    preset: str | None = None,
    validation_share: float = 0.2,
    runs: Path | str = "runs",
    device: str = "auto",
    progress: bool = True,
    **changes: Any,
) -> Sweep:
    """Run NESS with every filter and seed, judged on validation data that is taken from the training examples."""
    from nesskit.runs.sweep import Sweep

    if not validation_share:
        raise SettingsError("a sweep chooses on validation data: validation_share must be above 0")
    seeds = _seeds(seeds)
    changes = {**changes, "validation_share": validation_share}
    wanted = {
        str(rule): [configure(benchmark, "ness", preset, s, filter=rule, **changes) for s in seeds] for rule in filters
    }
    return Sweep.of(
        {
            rule: [execute(s, runs, device, listeners=_progress(s, rule) if progress else ()) for s in same]
            for rule, same in wanted.items()
        }
    )


def run_folder(settings: RunSettings, runs: Path | str = "runs") -> Path:
    """Where the run of ``settings`` lies.

    Raises:
        SettingsError: ``runs`` names no folder.
    """
    if not isinstance(runs, str | Path) or not str(runs).strip() or str(runs) == ".":
        raise SettingsError(f"runs must name the folder under which runs lie, got {str(runs)!r}: runs='runs', say")
    benchmark, method = map(userfiles.folder_name, (settings.benchmark, settings.method))
    return Path(runs) / benchmark / method / f"{settings.seed}-{settings.hash}"


def choose_device(name: str) -> str:
    """``auto`` becomes ``cuda`` where there is a GPU for it, else ``cpu``; other names stay, if torch knows them here.

    Raises:
        SettingsError: the device does not exist here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"device '{name}' cannot be used here ({reason}): use cpu, or auto") from error
    return name


def _progress(settings: RunSettings, label: str = "") -> list[Listener]:
    from nesskit.runs.progress import progress_listener

    return [progress_listener(f"{label or settings.method}, seed {settings.seed}", per_task=not label)]


def _no_listeners(settings: RunSettings) -> list[Listener]:
    return []
