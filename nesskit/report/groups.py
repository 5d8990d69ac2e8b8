"""What a report is about: runs by method, one a seed."""

from __future__ import annotations

from collections.abc import Sequence

from nesskit import plots
from nesskit.experiments.remarks import is_reduced
from nesskit.runs.comparison import Comparison
from nesskit.runs.record import Run

Runs = Run | Sequence[Run] | Comparison
Groups = dict[str, list[Run]]  # label of a method → its runs, one a seed


def as_comparison(runs: Runs) -> Comparison:
    """``runs`` as a comparison; NesskitError if there is none."""
    if isinstance(runs, Comparison):
        return runs
    return Comparison.of([runs] if isinstance(runs, Run) else list(runs))


def groups_of(comparison: Comparison) -> Groups:
    """The runs of each method, one a seed."""
    return {label: list(by_seed.values()) for label, by_seed in comparison.groups.items()}


def all_joint(runs: list[Run]) -> bool:
    """Whether these runs learned all tasks at once."""
    return all(plots.is_joint(run.accuracy) for run in runs)


def mark(runs: list[Run]) -> str:
    """What must stand behind a method's name wherever its numbers stand."""
    if not all(run.finished for run in runs):
        return " (unfinished)"
    return " (reduced)" if any(is_reduced(run) for run in runs) else ""
