"""The runs of a row side by side, in processes of their own, until they are done, time is up or somebody says stop.

A run is never lost: it is a run folder with its checkpoint, and a process may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from pathlib import Path

import torch

from nesskit.errors import NesskitError, TrainingError
from nesskit.experiments.executors import open_executor
from nesskit.experiments.running import execute
from nesskit.runs.folder import RunFolder
from nesskit.settings import RunSettings
from nesskit.training.graphs import SWITCH
from nesskit.training.limits import Limits
from studies.gpu.plan import folders

GRACE = 15.0  # seconds after which a process that should have stopped is killed: an end of a task cannot be interrupted
NEWS = 60.0  # seconds between two words about runs that go on
CHECKPOINT_EPOCHS = 50  # epochs take a tenth of a second, and a checkpoint has old data in it
KILLED = (
    "a process of this row was killed, for want of memory perhaps: what is saved is kept, --continue goes on, and "
    "--processes says how many may run beside each other"
)


def side_by_side(wanted: int, gigabytes: float, device: torch.device) -> int:
    """How many of the ``wanted`` processes fit: on a GPU by its free memory, on a CPU by its cores.

    Raises:
        NesskitError: none does.
    """
    if device.type != "cuda":
        return min(wanted, os.cpu_count() or 1)
    free, total = (size / 2**30 for size in torch.cuda.mem_get_info(device))
    fitting = int(free / gigabytes)
    if not fitting:
        raise NesskitError(
            f"{free:.1f} of {total:.1f} GiB of the GPU's memory are free, and a run needs about {gigabytes:g}: end "
            "what else uses it, or take a larger GPU"
        )
    return min(wanted, fitting)


def train(
    wanted: Sequence[RunSettings],
    runs: Path,
    device: torch.device,
    processes: int,
    deadline: float,
    tell: Callable[[str], None] = print,
) -> dict[int, str]:
    """Do the runs ``wanted``, which differ in their seed, or go on with them; why some failed, by seed.

    Args:
        deadline: on the clock of ``time.time``: they stop by themselves at the first epoch that ends after it.

    Raises:
        KeyboardInterrupt: somebody interrupted; the runs were asked to stop and have.
    """
    with open_executor(f"processes:{processes}") as pool:
        with _deaf():
            futures = {pool.submit(_run, each, str(runs), device.type, deadline): each for each in wanted}
        try:
            killed = _follow(futures, folders(wanted, runs), deadline + GRACE, tell)
        except KeyboardInterrupt:
            tell("stopping after the present epochs …")
            _stop(futures, runs)
            raise
    reasons = {each.seed: _why(future) for future, each in futures.items()}
    return {seed: why for seed, why in reasons.items() if why and not (killed and why == KILLED)}


def _run(settings: RunSettings, runs: str, device: str, deadline: float) -> None:
    """In a process of its own: a run with whatever time is left.

    If a step cannot be recorded as a CUDA graph the run goes on without, one operation at a time.
    """
    _end_with_parent()
    left = deadline - time.time()
    if left <= 0:
        return
    limits = Limits(minutes=left / 60, checkpoint_epochs=CHECKPOINT_EPOCHS)
    try:
        execute(settings, runs, device, limits)
    except TrainingError as error:
        if SWITCH not in str(error):
            raise
        os.environ[SWITCH] = "off"
        execute(settings, runs, device, limits)


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for ever, and keep the run's lock and the GPU's memory."""
    parent, name = multiprocessing.parent_process(), "end with parent"
    if parent is None or any(thread.name == name for thread in threading.enumerate()):
        return

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, name=name, daemon=True).start()


def _follow(
    futures: Mapping[Future[None], RunSettings], paths: Mapping[int, Path], latest: float, tell: Callable[[str], None]
) -> bool:
    """Wait for all runs, which lie in ``paths`` by seed, and say now and then how far they have come.

    Whether their processes had to be killed, since they were still busy at the time ``latest``.
    """
    pending, killed = set(futures), False
    while pending:
        pending = wait(pending, min(NEWS, max(0.1, latest - time.time())), FIRST_COMPLETED).not_done
        if not killed:
            tell("  " + ", ".join(f"seed {seed} {_state(path)}" for seed, path in paths.items()))
        if pending and time.time() > latest:
            killed = True
            _kill()
    return killed


def _state(path: Path) -> str:
    """How far the run in this folder has come, in few words."""
    with contextlib.suppress(NesskitError):
        run = RunFolder(path).read()
        if run is not None:
            result = f" {run.average_accuracy:.2f}/{run.backward_transfer:+.2f}" if run.finished else ""
            return f"{run.tasks_done} of {len(run.tasks)}{result}"
    return "–"


def _stop(futures: Mapping[Future[None], RunSettings], runs: Path) -> None:
    """Ask all runs to stop after the present epoch, again and again: one that only begins does not listen yet."""
    latest, pending = time.time() + GRACE, set(futures)
    while pending:
        for future, settings in futures.items():
            (path,) = folders([settings], runs).values()
            if not future.cancel() and not future.done() and path.is_dir():
                RunFolder(path).request_stop()
        pending = wait(futures, 1.0).not_done
        if pending and time.time() > latest:
            _kill()


def _kill() -> None:
    for process in multiprocessing.active_children():
        process.kill()


def _why(future: Future[None]) -> str:
    """Why a run failed; empty if it did not."""
    try:
        future.result()
    except CancelledError:
        return ""
    except BrokenExecutor:  # of all runs of the pool, whichever process it was
        return KILLED
    except Exception as error:  # of any kind; the other rows go on
        return str(error) if isinstance(error, NesskitError) else f"{type(error).__name__}: {error}"
    return ""


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """What is started inside hears neither Ctrl-C nor SIGTERM, which go to all processes of a terminal or job.

    The study hears them, and asks its runs to stop in order.
    """
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
