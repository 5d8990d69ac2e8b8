"""What a scale of each task's own is worth, what it costs in private numbers, and what else could be done with those.

Four parts:

* ``recipes``: on permuted digits, which changes of the training help; validation data (20 %) of seeds 11 to 13.
* ``digits``: the three benchmarks, all forms and sizes of what a task has for itself, and the same number of private
  numbers spent as an adapter while everything shared stands still; every method trained alike; test data.
* ``search``: on the first four tasks of split-cifar100-16, which ingredients of a protocol help; validation data (20 %)
  of seeds 11 and 12.
* ``protocol``: what was found there, for every method under the same protocol; test data of seeds 1 to 3.

Prints Markdown; runs that lie in the folder of runs already are not done again.

    python studies/private_scale.py --parts recipes digits search protocol
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reporting import accuracy, choose, done, learned, paired, print_table, transfer

import nesskit
from nesskit import FixedRank, NuclearThreshold, SoftFilter
from nesskit.runs import metrics
from nesskit.runs.comparison import Estimate, count_text
from nesskit.runs.record import Run

Row = tuple[str, str, Mapping[str, Any]]  # what it is called, the method, changes to the preset

DIGITS_SEEDS, RECIPE_SEEDS = (0, 1, 2, 3, 4), (11, 12, 13)
NOTHING_SHARED = {"filter": FixedRank(0)}


def adapter_alone(rank: int) -> Mapping[str, Any]:
    """All that is private is spent as an adapter, and nothing shared learns after task 1."""
    return {**NOTHING_SHARED, "private": "adapter", "directions": rank, "norm": "shared"}


DIGITS: Sequence[Row] = (
    ("NESS", "ness", {}),
    ("ness-private", "ness-private", {}),
    ("… full, S (k × d_out)", "ness-private", {"private": "full"}),
    ("TRGP", "trgp", {}),
    ("HAT", "hat", {}),
    ("joint training", "joint", {}),
)
SIZES: Sequence[Row] = (
    ("… only the 16 strongest directions", "ness-private", {"directions": 16}),
    ("… only the 8 strongest", "ness-private", {"directions": 8}),
    ("… only the 4 strongest", "ness-private", {"directions": 4}),
    ("scale alone, all directions, nothing shared learns", "ness-private", NOTHING_SHARED),
    ("adapter alone, rank 12, nothing shared learns", "ness-private", adapter_alone(12)),
    ("adapter alone, rank 4, nothing shared learns", "ness-private", adapter_alone(4)),
    ("GPM", "gpm", {}),
    ("GPM with a private scale", "gpm", {"private": "scale"}),
)
SHARP, SMOOTHED = {"label_smoothing": 0.0}, {"label_smoothing": 0.1}
RECIPES: Sequence[Row] = (
    ("the training of the digits", "ness-private", SHARP),
    ("label smoothing .1", "ness-private", SMOOTHED),
    ("label smoothing .2", "ness-private", {"label_smoothing": 0.2}),
    ("averaged weights, β = .99", "ness-private", {**SHARP, "ema_decay": 0.99}),
    ("SAM, ρ = .1", "ness-private", {**SHARP, "optimizer": "sam", "sam_rho": 0.1}),
    ("weight decay 1e-3", "ness-private", {**SHARP, "weight_decay": 1e-3}),
    ("full", "ness-private", {**SHARP, "private": "full"}),
    ("full, label smoothing .1", "ness-private", {**SMOOTHED, "private": "full"}),
)

SMALL_CIFAR, TASKS = "split-cifar100-16", 4
SEARCH_SEEDS, SEARCH_SHARE = (11, 12), 0.2
SAM = {"optimizer": "sam", "momentum": 0.0}
LOOSE = {"filter": NuclearThreshold(0.003)}  # NESS's own
SEARCH: Sequence[Row] = (
    ("NESS", "ness", {}),
    ("NESS, averaged weights", "ness", {"ema_decay": 0.99}),
    ("private scale", "ness-private", LOOSE),
    ("… nuclear .002", "ness-private", {"filter": NuclearThreshold(0.002)}),
    ("… nuclear .0015", "ness-private", {"filter": NuclearThreshold(0.0015)}),
    ("… the 64 strongest directions", "ness-private", {**LOOSE, "directions": 64}),
    ("… the 32 strongest directions", "ness-private", {**LOOSE, "directions": 32}),
    ("… full", "ness-private", {**LOOSE, "private": "full"}),
    ("… BatchNorm shared", "ness-private", {**LOOSE, "norm": "shared"}),
    ("… BatchNorm alone private", "ness-private", {**LOOSE, "private": "none"}),
    ("… soft filter", "ness-private", {"filter": SoftFilter(0.005, "frobenius")}),
    ("… averaged weights, β = .99", "ness-private", {**LOOSE, "ema_decay": 0.99}),
    ("… averaged weights, β = .997", "ness-private", {**LOOSE, "ema_decay": 0.997}),
    ("… SAM, lr .05", "ness-private", {**LOOSE, **SAM, "lr": 0.05, "lr_minimum": 0.003}),
    ("… SAM, lr .1", "ness-private", {**LOOSE, **SAM, "lr": 0.1, "lr_minimum": 0.006}),
    ("… a cosine", "ness-private", {**LOOSE, "lr_plan": "cosine"}),
    ("… label smoothing .1", "ness-private", {**LOOSE, "label_smoothing": 0.1}),
    ("… weights of the highest accuracy", "ness-private", {**LOOSE, "kept_weights": "highest-accuracy"}),
    ("… the last weights", "ness-private", {**LOOSE, "kept_weights": "last"}),
)
STRICT = {"filter": NuclearThreshold(0.0015)}
AVERAGED = {**STRICT, "ema_decay": 0.99}
COMBINED: Sequence[Row] = (
    ("nuclear .0015", "ness-private", STRICT),
    ("… nuclear .001", "ness-private", {"filter": NuclearThreshold(0.001)}),
    ("… full", "ness-private", {**STRICT, "private": "full"}),
    ("… the 64 strongest directions", "ness-private", {**STRICT, "directions": 64}),
    ("… averaged weights", "ness-private", AVERAGED),
    ("… averaged weights, full", "ness-private", {**AVERAGED, "private": "full"}),
    ("… averaged weights, the smaller of the two", "ness-private", {**AVERAGED, "private": "smaller"}),
    ("… averaged weights, SAM, lr .1", "ness-private", {**AVERAGED, **SAM, "lr": 0.1, "lr_minimum": 0.006}),
    ("… averaged weights, label smoothing .1", "ness-private", {**AVERAGED, "label_smoothing": 0.1}),
    ("… averaged weights, cosine", "ness-private", {**AVERAGED, "lr_plan": "cosine"}),
    ("… averaged weights, nothing shared learns", "ness-private", {**AVERAGED, **NOTHING_SHARED}),
    ("TRGP", "trgp", {}),
    ("TRGP, averaged weights", "trgp", {"ema_decay": 0.99}),
)
REPORT_SEEDS = (1, 2, 3)
PROTOCOL = {"ema_decay": 0.99}
PROTOCOL_METHODS = ("ness", "ness-private", "trgp", "joint")


def runs_of(benchmark: str, row: Row, seeds: Sequence[int], runs: Path, tasks: int | None = None) -> list[Run]:
    """The runs of a row, one a seed."""
    _, method, changes = row
    wanted = [
        dataclasses.replace(nesskit.configure(benchmark, method, seed=seed, **changes), tasks=tasks) for seed in seeds
    ]
    return done(row[0], wanted, runs)


def private(runs: Sequence[Run]) -> str:
    """Private numbers a task, the mean over all tasks and seeds."""
    return count_text(Estimate.of([run.private_numbers for run in runs]).mean)


def report_recipes(runs: Path) -> None:
    """What else changes on permuted digits; validation data."""
    print(f"## How it is trained: permuted-digits, validation data, seeds {RECIPE_SEEDS}\n")
    rows = []
    for name, method, changes in RECIPES:
        share = {**changes, "validation_share": SEARCH_SHARE}
        done = runs_of("permuted-digits", (name, method, share), RECIPE_SEEDS, runs)
        own = [on_validation(m, done) for m in (metrics.average_accuracy, metrics.backward_transfer)]
        rows.append([name, *map(str, own), private(done)])
    print_table(["", "ACC %", "BWT %", "private numbers a task"], rows)


def report_digits(runs: Path) -> None:
    """Every method trained in both ways, and on permuted digits every size of what is private."""
    for benchmark in ("permuted-digits", "rotated-digits", "split-digits"):
        print(f"## {benchmark}: test data, seeds 0 to 4\n")
        rows = []
        for name, method, changes in (*DIGITS, *(SIZES if benchmark == "permuted-digits" else ())):
            cells = [name]
            for labels in (SHARP, SMOOTHED):
                done = runs_of(benchmark, (name, method, {**changes, **labels}), DIGITS_SEEDS, runs)
                cells += [str(accuracy(done)), str(transfer(done))]
            rows.append([*cells, str(learned(done)), private(done)])
        header = ["ACC %", "BWT %", "smoothed labels: ACC %", "BWT %", "learned %", "private numbers a task"]
        print_table(["", *header], rows)


def on_validation(measure: Callable[[Any], float], done: Sequence[Run]) -> Estimate:
    """A measure of the accuracy matrix on validation data, over the seeds."""
    return Estimate.of([measure(run.valid_accuracy) for run in done])


def report_search(runs: Path) -> None:
    """Ingredients, first one at a time, then together, on validation data."""
    for title, ingredients in (("one at a time", SEARCH), ("together", COMBINED)):
        _report_search(title, ingredients, runs)


def _report_search(title: str, ingredients: Sequence[Row], runs: Path) -> None:
    print(f"## Ingredients, {title}: {SMALL_CIFAR}, {TASKS} tasks, validation data, seeds {SEARCH_SEEDS}\n")
    measured, rows = {}, []
    for row in ingredients:
        name, method, changes = row
        share = {**changes, "validation_share": SEARCH_SHARE}
        done = runs_of(SMALL_CIFAR, (name, method, share), SEARCH_SEEDS, runs, TASKS)
        own = [on_validation(m, done) for m in (metrics.average_accuracy, metrics.backward_transfer)]
        measured[name] = (own[0], own[1])
        rows.append([name, *map(str, own), private(done), f"{Estimate.of([run.seconds for run in done]).mean:.0f}"])
    chosen = choose(measured, 1.0)
    print_table(
        ["", "ACC %", "BWT %", "private numbers a task", "seconds"],
        [[f"**{row[0]}**" if row[0] == chosen else row[0], *row[1:]] for row in rows],
    )
    print(f"Highest among those that forget at most a point: {chosen.removeprefix('… ')}.\n")


def report_protocol(runs: Path) -> None:
    """Every method in the preset's protocol and in the one with averaged weights; test data."""
    print(f"## Every method in the same protocol: {SMALL_CIFAR}, {TASKS} tasks, test data, seeds {REPORT_SEEDS}\n")
    rows = []
    for method in PROTOCOL_METHODS:
        plain = runs_of(SMALL_CIFAR, (method, method, {}), REPORT_SEEDS, runs, TASKS)
        averaged = runs_of(SMALL_CIFAR, (method, method, PROTOCOL), REPORT_SEEDS, runs, TASKS)
        cells = [text for done in (plain, averaged) for text in (str(accuracy(done)), str(transfer(done)))]
        rows.append([method, *cells, str(paired(averaged, plain, accuracy)), private(plain)])
    print_table(
        ["", "ACC %", "BWT %", "averaged: ACC %", "averaged: BWT %", "difference in ACC", "private numbers a task"],
        rows,
    )


PARTS = {"recipes": report_recipes, "digits": report_digits, "search": report_search, "protocol": report_protocol}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    arguments = parser.parse_args()
    for part in arguments.parts:
        PARTS[part](arguments.runs)


if __name__ == "__main__":
    main()
