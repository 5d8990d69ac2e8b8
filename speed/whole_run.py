"""A whole run of Split CIFAR-100, one seed, five tasks of five epochs: where the time goes.

    python speed/whole_run.py          # several minutes; with --quick two tasks of one epoch

The parts are timed from outside: functions of the library are wrapped while the run lasts. A part inside another one
(the making of batches inside training) counts for itself alone, so that the parts add up to the whole.
"""

from __future__ import annotations

import functools
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch

import nesskit
from nesskit import streams
from nesskit.errors import DataError
from nesskit.experiments import running
from nesskit.experiments.configure import configure
from nesskit.methods import ness
from nesskit.runs.folder import RunFolder
from nesskit.spectra.spectrum import Spectrum
from nesskit.streams.batches import TaskData
from nesskit.training.limits import Limits
from nesskit.training.trainer import Trainer

# What is timed, by part: (owner, name of the function)
PARTS = {
    "train": [(Trainer, "_train_epoch")],
    "evaluate": [(Trainer, "_evaluate")],
    "moments": [(ness, "collect_moments")],
    "eigen": [(Spectrum, "of")],
    "data": [(streams, "load_stream"), (TaskData, "__init__"), (TaskData, "batch")],
    "checkpoint": [(RunFolder, "write_checkpoint"), (RunFolder, "write")],
}


class Stopwatch:
    """Seconds by part; while a part runs inside another one, only the inner one's clock runs."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running = ["rest"]
        self._since = time.perf_counter()

    def stop(self) -> None:
        """Count the time up to now."""
        now = time.perf_counter()
        self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def timing(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, whose time counts for ``part``."""

        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.stop()
            self._running.append(part)
            try:
                return function(*args, **kwargs)
            finally:
                self.stop()
                self._running.pop()

        return timed


@contextmanager
def parts_timed() -> Iterator[Stopwatch]:
    """Inside, the functions of ``PARTS`` are timed."""
    watch = Stopwatch()
    with ExitStack() as stack:
        for part, places in PARTS.items():
            for owner, name in places:
                timed = watch.timing(part, getattr(owner, name))
                # A class method is bound already and must not be bound again
                replacement = staticmethod(timed) if owner is Spectrum else timed
                stack.enter_context(mock.patch.object(owner, name, replacement))
        yield watch
        watch.stop()


def measure(quick: bool = False) -> dict[str, Any]:
    """See the top of this file; ``quick``: two tasks of one epoch."""
    tasks, epochs = (2, 1) if quick else (5, 5)
    try:
        settings = configure("split-cifar100", preset="paper-sgdm", memory="moments", epochs=epochs)
        with tempfile.TemporaryDirectory() as folder, parts_timed() as watch:
            run = running.execute(settings, folder, "cpu", Limits(tasks=tasks), ())
    except DataError:
        print("a whole run: left out, CIFAR-100 is not here (nesskit data fetch, or a mirror)")
        return {}
    whole = sum(watch.seconds.values())
    rest = whole - watch.seconds["train"]
    threads = torch.get_num_threads()
    done = f"{run.tasks_done} of {tasks} tasks of {epochs} epochs ({len(run.history)} epochs in all)"
    print(f"Split CIFAR-100, {done}, {threads} threads, nesskit {nesskit.__version__}")
    for part in sorted(watch.seconds, key=watch.seconds.__getitem__, reverse=True):
        print(f"  {part:12} {watch.seconds[part]:8.1f} s {watch.seconds[part] / whole:7.1%}")
    print(f"  whole        {whole:8.1f} s; all but training {rest / whole:.1%}; {run.average_accuracy:.1f} % accuracy")
    figures = {f"{part} seconds": seconds for part, seconds in watch.seconds.items()}
    figures |= {"share not training": rest / whole}
    return {"tasks": run.tasks_done, "epochs": epochs, "threads": threads, **figures}


if __name__ == "__main__":
    measure(quick="--quick" in sys.argv[1:])
