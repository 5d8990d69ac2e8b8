"""One default interference budget against single thresholds: chosen on validation data, judged on other seeds.

The choice: budgets on validation data (20 % of the training examples) of seeds 1 to 3 of permuted-digits. Taken is the
strictest one whose mean accuracy is at most 0.1 points under the best: accuracy hardly tells a range of budgets apart,
forgetting does. A single ε₁ is chosen in the same way for comparison.

The report: two groups of seeds, 4 to 8 and 9 to 13, of the three benchmarks on the digits, all training examples, test
data. The default budget is paired by seed with three single ε₁ of a grid of ten: the best of the group, by mean *test*
accuracy on the benchmark at hand, an oracle that a user does not have; the best of the other group, which is as well
tuned to the benchmark but cannot profit from the luck of these seeds; and the one chosen on validation data. Prints
Markdown; runs that lie in the folder of runs already are not done again.

    python studies/budget.py                    # the digits: about 380 runs of 1 to 5 s
    python studies/budget.py --cifar            # and CIFAR-100: 3 tasks of 2 epochs, about 4 minutes a run
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from reporting import DIGITS, accuracy, differences, print_table, transfer

import nesskit
from nesskit import FrobeniusThreshold, InterferenceBudget, NuclearThreshold
from nesskit.runs import metrics
from nesskit.runs.record import Run
from nesskit.runs.sweep import Sweep, SweepPoint, parse_grid
from nesskit.spectra.filters import Filter
from nesskit.training.limits import Limits

CHOICE_SEEDS = (1, 2, 3)
REPORT_SEEDS = {"seeds 4 to 8": (4, 5, 6, 7, 8), "seeds 9 to 13": (9, 10, 11, 12, 13)}
BUDGETS = [InterferenceBudget(value) for value in parse_grid("0.2:0.566:7")]
THRESHOLDS = [FrobeniusThreshold(value) for value in parse_grid("0.008:0.08:10")]
TOLERANCE = 0.1  # points of validation accuracy that a choice may lie under the best
AIM_ACCURACY, AIM_TRANSFER = -0.5, -1.0  # at least, against the best ε₁; at least, by itself


def choose(rules: Sequence[Filter], runs: Path) -> tuple[Sweep, SweepPoint]:
    """The sweep of ``rules``, strictest first, on permuted-digits, and what to choose from it."""
    swept = nesskit.sweep(DIGITS[0], rules, CHOICE_SEEDS, runs=runs, progress=False)
    enough = swept.best.average_accuracy.mean - TOLERANCE
    return swept, next(point for point in swept.points if point.average_accuracy.mean >= enough)


def reported_runs(seeds: Sequence[int], runs: Path) -> dict[str, dict[str, list[Run]]]:
    """The runs of the default budget and of the grid on all training examples, by benchmark and the rule's text."""
    found: dict[str, dict[str, list[Run]]] = {name: {} for name in DIGITS}
    for name in DIGITS:
        for rule in (InterferenceBudget(), *THRESHOLDS):
            found[name][str(rule)] = [
                nesskit.run(name, seed=seed, filter=rule, runs=runs, progress=False) for seed in seeds
            ]
            print(f"{name} {rule}", file=sys.stderr, flush=True)
    return found


def best_threshold(by_rule: Mapping[str, Sequence[Run]]) -> str:
    """The ε₁ of the grid with the highest mean accuracy on test data."""
    return max(map(str, THRESHOLDS), key=lambda rule: accuracy(by_rule[rule]).mean)


def report_choice(runs: Path) -> str:
    """Print both sweeps on validation data; the single ε₁ that is chosen, as a filter's text."""
    print(f"## Choice: {DIGITS[0]}, validation data, seeds {CHOICE_SEEDS}\n")
    for rules in (BUDGETS, THRESHOLDS):
        swept, chosen = choose(rules, runs)
        header, rows = swept.table()
        for point, row in zip(swept.points, rows, strict=True):
            row[-1] = ", ".join(filter(None, [row[-1], "chosen" if point == chosen else ""]))
        print_table(header, rows)
        if rules is BUDGETS:
            verdict = "is" if chosen.filter == str(InterferenceBudget()) else "is NOT"
            print(f"{chosen.filter} {verdict} the default of nesskit.\n")
    return chosen.filter


def report_digits(chosen_threshold: str, runs: Path) -> None:
    """For each group of seeds the default budget beside the three ε₁ on every benchmark, then the grids."""
    groups = {title: reported_runs(seeds, runs) for title, seeds in REPORT_SEEDS.items()}
    for title, found in groups.items():
        (other,) = (others for name, others in groups.items() if name != title)
        print(f"## Report: test data, {title}\n")
        print("ΔACC and ΔBWT: the budget minus the row's rule, paired by seed.\n")
        rows = [row for name in DIGITS for row in compared(name, found[name], other[name], chosen_threshold)]
        print_table(["benchmark", "filter", "ACC %", "BWT %", "ΔACC", "ΔBWT", "aim"], rows)
        print("The grids (ACC / BWT, means):\n")
        print_table(
            ["filter", *found],
            [
                [rule, *(f"{accuracy(found[n][rule]).mean:.2f} / {transfer(found[n][rule]).mean:.2f}" for n in found)]
                for rule in found[DIGITS[0]]
            ],
        )


def compared(
    name: str, by_rule: Mapping[str, Sequence[Run]], other_seeds: Mapping[str, Sequence[Run]], chosen_threshold: str
) -> list[list[str]]:
    """The rows of one benchmark: the default budget, then each ε₁ and the differences to it."""
    own = by_rule[str(InterferenceBudget())]
    oracle = best_threshold(by_rule)
    met = differences(own, by_rule[oracle])[0].mean >= AIM_ACCURACY and transfer(own).mean >= AIM_TRANSFER
    rows = [
        [name, str(InterferenceBudget()), *map(str, (accuracy(own), transfer(own))), "", "", "met" if met else "missed"]
    ]
    edge = " (edge of the grid)" if oracle in (str(THRESHOLDS[0]), str(THRESHOLDS[-1])) else ""
    for what, rule in (
        (f"best ε₁: {oracle}{edge}", oracle),
        (f"best ε₁ of the other seeds: {best_threshold(other_seeds)}", best_threshold(other_seeds)),
        (f"chosen ε₁: {chosen_threshold}", chosen_threshold),
    ):
        runs = by_rule[rule]
        rows.append(["", what, *map(str, (accuracy(runs), transfer(runs), *differences(own, runs))), ""])
    return rows


def report_cifar(runs: Path) -> None:
    """Print a reduced run on CIFAR-100: the default budget, and the paper's threshold with the same training."""
    rows = []
    for rule in (InterferenceBudget(), NuclearThreshold(0.001)):
        run = nesskit.run(
            "split-cifar100",
            preset="paper-sgdm",
            seed=1,
            epochs=2,
            memory="moments",
            filter=rule,
            limits=Limits(tasks=3),
            runs=runs,
            progress=False,
        )
        values = run.average_accuracy, run.backward_transfer, metrics.learning_accuracy(run.accuracy)
        ranks = [
            f"task {task + 1}: "
            + ", ".join(f"{p.rank} of {len(p.sigma_squared)}" for p in run.profiles if p.task == task)
            for task in range(1, run.tasks_done)
        ]
        rows.append([str(rule), *(f"{value:.2f}" for value in values), "; ".join(ranks)])
    print("## Split CIFAR-100, reduced: first 3 tasks, 2 epochs each, seed 1, preset paper-sgdm with memory=moments\n")
    print_table(["filter", "ACC %", "BWT %", "accuracy when learned %", "free directions by layer"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--cifar", action="store_true", help="also a reduced CIFAR-100 run (needs the data)")
    arguments = parser.parse_args()
    report_digits(report_choice(arguments.runs), arguments.runs)
    if arguments.cifar:
        report_cifar(arguments.runs)


if __name__ == "__main__":
    main()
