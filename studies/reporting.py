"""What the studies share: the benchmarks on the digits, estimates over seeds, tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from nesskit.runs import metrics
from nesskit.runs.comparison import Estimate
from nesskit.runs.record import Run

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
