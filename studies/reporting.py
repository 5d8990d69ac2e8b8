"""What the studies share: the benchmarks on the digits, estimates over seeds, tables in Markdown."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from nesskit.experiments.running import execute_all
from nesskit.runs import metrics
from nesskit.runs.comparison import Estimate
from nesskit.runs.record import Run
from nesskit.settings import RunSettings

DIGITS = ("permuted-digits", "split-digits", "rotated-digits")
ALLOWED_FORGETTING = {"permuted-digits": 1.0, "split-digits": 0.5, "rotated-digits": 1.0}  # in points
Setting = TypeVar("Setting")


def choose(measured: Mapping[Setting, tuple[Estimate, Estimate]], allowed: float, slack: float = 0.0) -> Setting:
    """The setting with the highest mean ACC among those whose BWT is at least ``-allowed``, or else among all.

    ``measured`` has ACC and BWT; settings without any value (training diverged) are left out. With some ``slack``, the
    last of those that are no more points behind: where the settings are in the order of what they cost, the cheapest.
    """
    ended = {setting: pair for setting, pair in measured.items() if pair[0].count}
    mild = {setting: pair for setting, pair in ended.items() if pair[1].mean >= -allowed}
    accuracies = {setting: ended[setting][0].mean for setting in mild or ended}
    best = max(accuracies.values())
    equal = [setting for setting, value in accuracies.items() if value >= best - slack]
    return equal[-1] if slack else equal[0]


def done(name: str, wanted: Sequence[RunSettings], runs: Path, may_fail: bool = False) -> list[Run]:
    """The runs of ``wanted`` that ended; those that lie in the folder ``runs`` already are not done again.

    Args:
        name: what they are called if one fails.
        wanted: their settings.
        runs: the folder.
        may_fail: whether a run that fails (training diverged) is named on the way and left out.

    Raises:
        SystemExit: a run failed that may not, or somebody interrupts.
    """
    ended, failed = execute_all(wanted, runs)
    reasons = "\n".join(f"{name}, seed {failure.seed}: {failure.reason}" for failure in failed)
    if failed and not may_fail:
        raise SystemExit(reasons)
    if failed:
        print(reasons, file=sys.stderr)
    if len(ended) + len(failed) < len(wanted):
        raise SystemExit("interrupted: the same command goes on")
    return ended


def of_matrices(matrices: Sequence[np.ndarray]) -> tuple[Estimate, Estimate]:
    """ACC and BWT over seeds, from one accuracy matrix each."""
    accuracy, transfer = (
        Estimate.of([measure(matrix) for matrix in matrices])
        for measure in (metrics.average_accuracy, metrics.backward_transfer)
    )
    return accuracy, transfer


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A Markdown table with an empty line after it."""
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(row)} |")
    print(flush=True)


def accuracy(runs: Sequence[Run]) -> Estimate:
    """ACC over the seeds."""
    return Estimate.of([run.average_accuracy for run in runs])


def transfer(runs: Sequence[Run]) -> Estimate:
    """BWT over the seeds."""
    return Estimate.of([run.backward_transfer for run in runs])


def learned(runs: Sequence[Run]) -> Estimate:
    """The accuracy of every task right after it was learned, its mean over the tasks, over the seeds."""
    return Estimate.of([metrics.learning_accuracy(run.accuracy) for run in runs])


def paired(runs: Sequence[Run], others: Sequence[Run], measure: Callable[[Sequence[Run]], Estimate]) -> Estimate:
    """A measure, such as :func:`accuracy`, of ``runs`` minus that of ``others``, seed by seed."""
    return Estimate.of([measure([run]).mean - measure([other]).mean for run, other in zip(runs, others, strict=True)])


def differences(runs: Sequence[Run], others: Sequence[Run]) -> tuple[Estimate, Estimate]:
    """ACC and BWT of ``runs`` minus those of ``others``, seed by seed."""
    return paired(runs, others, accuracy), paired(runs, others, transfer)
