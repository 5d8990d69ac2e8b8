"""What is left of each method when nobody says which task an input belongs to.

Methods are trained twice with their presets: with a head a task, whose weights are judged both with the task's name and
by the nearest class mean (the same weights), and with one head over all classes, which belongs to what is protected.

* ``digits``: permuted-digits and split-digits, test data of seeds 0 to 4.
* ``cifar``: the first four tasks of split-cifar100-16 (a reduced run), fewer methods, test data of seed 1.

The presets' settings were chosen with the task's name; nothing was chosen here. Prints Markdown; runs that lie in the
folder of runs already are not done again.

    python studies/without_names.py --parts digits cifar
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from reporting import done, of_matrices, print_table

import nesskit
from nesskit.runs.environment import current_commit
from nesskit.runs.record import Run

DIGITS, DIGITS_SEEDS = ("permuted-digits", "split-digits"), (0, 1, 2, 3, 4)
METHODS = ("finetune", "ewc", "a-gem", "gpm", "owm", "hat", "ness", "ness-soft", "ness-private", "joint")
CIFAR, CIFAR_TASKS, CIFAR_SEEDS = "split-cifar100-16", 4, (1,)
CIFAR_METHODS = ("finetune", "ness", "joint")
HEADER = ("method", "task named", "nearest mean", "one head", "one head, task named")


def runs_of(
    benchmark: str, method: str, head: str, seeds: Sequence[int], runs: Path, tasks: int | None = None
) -> list[Run]:
    """The runs of a method with that head, one a seed; those that diverged are named on the way and left out."""
    wanted = [
        dataclasses.replace(nesskit.configure(benchmark, method, seed=seed, head=head), tasks=tasks) for seed in seeds
    ]
    return done(f"{method}, head {head}", wanted, runs, may_fail=True)


def both(matrices: Sequence[np.ndarray], seeds: int) -> str:
    """ACC / BWT over seeds, from one accuracy matrix each; and over how many, if some runs diverged."""
    if not matrices:
        return "diverged"
    accuracy, transfer = of_matrices(matrices)
    some = "" if len(matrices) == seeds else f" ({seeds - len(matrices)} of {seeds} diverged)"
    return f"{accuracy} / {transfer}{some}"


def row(method: str, by_means: Sequence[Run], shared: Sequence[Run], seeds: int) -> list[str]:
    """ACC / BWT in every way that there is to judge a method."""
    matrices = (
        [run.named_accuracy for run in by_means],
        [run.accuracy for run in by_means],
        [run.accuracy for run in shared],
        [run.named_accuracy for run in shared],
    )
    return [method, *(both(each, seeds) for each in matrices)]


def report(benchmark: str, methods: Iterable[str], seeds: Sequence[int], runs: Path, tasks: int | None = None) -> None:
    """A table of ``methods``; ACC / BWT in percent, mean ± standard deviation over ``seeds``."""
    reduced = f", the first {tasks} tasks (reduced)" if tasks else ""
    print(f"## {benchmark}{reduced}, test data of seeds {seeds}: ACC / BWT in percent\n")
    rows = [
        row(method, *(runs_of(benchmark, method, head, seeds, runs, tasks) for head in ("means", "shared")), len(seeds))
        for method in methods
    ]
    print_table(HEADER, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=("digits", "cifar"), default=("digits", "cifar"))
    parser.add_argument("--runs", type=Path, default=Path("runs/without-names"))
    chosen = parser.parse_args()
    print(f"At commit {current_commit()}.\n")
    if "digits" in chosen.parts:
        for benchmark in DIGITS:
            report(benchmark, METHODS, DIGITS_SEEDS, chosen.runs)
    if "cifar" in chosen.parts:
        report(CIFAR, CIFAR_METHODS, CIFAR_SEEDS, chosen.runs, CIFAR_TASKS)


if __name__ == "__main__":
    main()
