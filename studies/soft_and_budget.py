"""Two filters of our own against the hard cut: do ness-soft and ness-budget earn their place?

The choice, for each benchmark and each family of rules (a hard ε₁, a soft τ, a budget): on validation data, 20 % of the
training examples of seeds 1 to 3, by the rule of ``hyperparameters.py``. The report: seeds 4 to 8, all training
examples, test data, paired by seed with the hard ε₁ that was chosen, and with the one that was best there, by mean
*test* accuracy: an oracle that a user does not have. The picture has every value of every family, so that a family can
be seen to be ahead or behind whatever was chosen. Prints Markdown; runs that lie in the folder already are not done
again.

    python studies/soft_and_budget.py --figure data/results/soft_and_budget.png     # about 1000 runs of 1 to 5 s
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from reporting import ALLOWED_FORGETTING, DIGITS, accuracy, choose, differences, print_table, transfer

import nesskit
from nesskit import FrobeniusThreshold, InterferenceBudget, SoftFilter
from nesskit.plots import style
from nesskit.plots.spectra import RULE_LOOKS
from nesskit.runs.record import Run
from nesskit.runs.sweep import Sweep, parse_grid
from nesskit.spectra.filters import Filter

CHOICE_SEEDS, REPORT_SEEDS = (1, 2, 3), (4, 5, 6, 7, 8)
HARD, SOFT, BUDGET = "hard ε₁", "ness-soft", "ness-budget"
FAMILIES: dict[str, list[Filter]] = {
    HARD: [FrobeniusThreshold(value) for value in parse_grid("0.008:0.08:10")],
    SOFT: [SoftFilter(value, "frobenius") for value in parse_grid("0.002:0.032:9")],
    BUDGET: [InterferenceBudget(value) for value in parse_grid("0.1:0.8:10")],
}
Runs = dict[str, list[Run]]  # of a family on one benchmark: by the rule's text, in the order of the seeds


def chosen_rules(benchmark: str, runs: Path) -> dict[str, str]:
    """The rule of every family that validation data choose."""
    rules = {}
    for family, filters in FAMILIES.items():
        swept = nesskit.sweep(benchmark, filters, CHOICE_SEEDS, runs=runs, progress=False)
        measured = {point.filter: (point.average_accuracy, point.backward_transfer) for point in swept.points}
        rules[family] = choose(measured, ALLOWED_FORGETTING[benchmark])
        print_choice(benchmark, family, swept, rules[family])
    return rules


def print_choice(benchmark: str, family: str, swept: Sweep, chosen: str) -> None:
    """The values of a family on validation data."""
    print(f"### {benchmark}, {family}: validation data\n")
    header, rows = swept.table()
    print_table(header, [[*row[:-1], "chosen" if row[0] == chosen else ""] for row in rows])


def reported(benchmark: str, runs: Path) -> dict[str, Runs]:
    """The runs of every rule on all training examples, by family."""
    found: dict[str, Runs] = {}
    for family, filters in FAMILIES.items():
        found[family] = {
            str(rule): [
                nesskit.run(benchmark, seed=seed, filter=rule, runs=runs, progress=False) for seed in REPORT_SEEDS
            ]
            for rule in filters
        }
        print(f"{benchmark} {family}", file=sys.stderr, flush=True)
    return found


def best(by_rule: Mapping[str, Sequence[Run]]) -> str:
    """The rule with the highest mean accuracy on test data."""
    return max(by_rule, key=lambda rule: accuracy(by_rule[rule]).mean)


def compared(benchmark: str, found: Mapping[str, Runs], chosen: Mapping[str, str]) -> list[list[str]]:
    """The rows of one benchmark: the hard ε₁, chosen and best, then our own two, each paired with both."""
    hard = found[HARD]
    references = {"chosen": hard[chosen[HARD]], "best": hard[best(hard)]}
    rows = []
    for family, rule, how in (
        (HARD, chosen[HARD], "chosen"),
        (HARD, best(hard), "best on the test data"),
        (SOFT, chosen[SOFT], "chosen"),
        (BUDGET, chosen[BUDGET], "chosen"),
    ):
        own = found[family][rule]
        pairs = [value for reference in references.values() for value in differences(own, reference)]
        differing = ["" if family == HARD else str(value) for value in pairs]
        rows.append([benchmark, f"{family}, {how}", rule, str(accuracy(own)), str(transfer(own)), *differing])
    return rows


def draw(ax: Axes, benchmark: str, found: Mapping[str, Runs], chosen: Mapping[str, str]) -> None:
    """ACC over BWT, one line a family, one dot a value; rings mark what validation data chose."""
    for (family, by_rule), marker in zip(found.items(), "osD", strict=True):
        colour, line = RULE_LOOKS[FAMILIES[family][0].name]
        points = {rule: (transfer(same).mean, accuracy(same).mean) for rule, same in by_rule.items()}
        ax.plot(*zip(*points.values(), strict=True), linestyle=line, color=colour, marker=marker, ms=4, label=family)
        ax.plot(
            *points[chosen[family]], "o", ms=11, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.8
        )
    ax.set_title(benchmark, fontsize=10, loc="left")
    ax.set_xlabel("BWT (points)")


def save_figure(path: Path, found: Mapping[str, Mapping[str, Runs]], chosen: Mapping[str, Mapping[str, str]]) -> None:
    """The frontiers of all benchmarks beside each other."""
    with style():
        figure, axes = plt.subplots(1, len(found), figsize=(3.6 * len(found), 3.4), layout="constrained", squeeze=False)
        for ax, (benchmark, families) in zip(axes[0], found.items(), strict=True):
            draw(ax, benchmark, families, chosen[benchmark])
        axes[0][0].set_ylabel("ACC (%)")
        axes[0][0].legend(loc="lower right")
        figure.suptitle("Test data, means of seeds 4 to 8. Up and to the right is better; a ring is what was chosen.")
        figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--figure", type=Path, required=True, help="the picture to write, .png")
    parser.add_argument("--benchmarks", nargs="+", default=DIGITS, choices=DIGITS)
    arguments = parser.parse_args()
    found, chosen = {}, {}
    for benchmark in arguments.benchmarks:
        chosen[benchmark] = chosen_rules(benchmark, arguments.runs)
        found[benchmark] = reported(benchmark, arguments.runs)
    print(f"### Report: test data, seeds {REPORT_SEEDS}\n")
    header = ["benchmark", "family", "filter", "ACC %", "BWT %", "ΔACC chosen", "ΔBWT chosen", "ΔACC best", "ΔBWT best"]
    print_table(header, [row for name in found for row in compared(name, found[name], chosen[name])])
    save_figure(arguments.figure, found, chosen)


if __name__ == "__main__":
    main()
