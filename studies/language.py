"""A language model that learns ten domains one after another: what is gained by learning it, and what is lost.

The stream is split-clinc150, ten domains of 15 intents. Five parts:

* ``search``: thresholds and rates on validation data (the data set's own) of seed 11: of the first five tasks for the
  first block alone, of the first three for all six.
* ``shallow``: the first block of MiniLM, where learning it pays; every method, test data of seeds 0 to 2.
* ``untrained``: a block that knows nothing at first; fewer methods, test data of seeds 0 to 2.
* ``whole``: all six blocks, which know more already; fewer methods, the first five tasks, test data of seed 0 (a
  reduced comparison).
* ``steps``: seconds a training step and the memory that a process needs, each method in a process of its own.

A run with the nearest class mean is judged both with the task's name and without, by the same weights; one head over
all classes is another run. Prints Markdown; runs that lie in the folder of runs already are not done again.

    python studies/language.py --parts shallow untrained whole steps
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from reporting import done, of_matrices, print_table

import nesskit
from nesskit import FrobeniusThreshold
from nesskit.methods import make_method
from nesskit.runs.comparison import Estimate, count_text
from nesskit.runs.environment import current_commit
from nesskit.runs.events import EpochFinished
from nesskit.runs.record import Run

BENCHMARK = "split-clinc150"
Row = tuple[str, str, Mapping[str, Any]]  # what it is called, the method, changes to the preset

PROTECTED = {"protect": "reference"}
METHODS: Sequence[Row] = (
    ("frozen backbone", "frozen", {}),
    ("fine-tuning", "finetune", {}),
    ("LoRA, rank 8, one for all tasks", "lora", {}),
    ("O-LoRA", "o-lora", {}),
    ("NESS", "ness", {}),
    ("NESS, reference sentences protected", "ness", PROTECTED),
    ("ness-private", "ness-private", {}),
    ("joint training", "joint", {}),
)
FEWER: Sequence[Row] = tuple(row for row in METHODS if row[1] in ("frozen", "finetune", "ness", "joint"))
OF_NOTHING: Sequence[Row] = tuple(  # what knows nothing has nothing to protect
    row for row in METHODS if row[1] in ("frozen", "finetune", "ness", "ness-private", "joint") and not row[2]
)
SHARED = ("frozen", "finetune", "ness", "joint")  # with one head over all classes; ness without a reference
FEW = 5  # tasks, where a comparison is reduced
SEARCH_SEED, SEARCH_SHARE = 11, 0.1
SEARCH: Sequence[Row] = (
    *((f"NESS, Frobenius {share:g}", "ness", {"filter": FrobeniusThreshold(share)}) for share in (0.01, 0.03, 0.1)),
    *(
        (f"NESS, Frobenius {share:g}, protected", "ness", {"filter": FrobeniusThreshold(share), **PROTECTED})
        for share in (0.03, 0.1)
    ),
    *((f"fine-tuning, lr {lr:g}", "finetune", {"lr": lr}) for lr in (1e-4, 1e-3)),
    ("frozen backbone", "frozen", {}),
    ("joint training", "joint", {}),
)
SEARCH_WHOLE: Sequence[Row] = tuple(
    (f"{name}, lr {lr:g}", method, {"lr": lr})
    for lr in (1e-4, 3e-4, 1e-3)
    for name, method in (("NESS", "ness"), ("fine-tuning", "finetune"), ("joint training", "joint"))
)
HEADER = (
    *("", "task named: ACC", "BWT", "nearest mean: ACC", "BWT", "one head: ACC", "BWT"),
    *("kept similarity", "trained numbers", "seconds"),
)


def runs_of(
    row: Row, preset: str, seeds: Sequence[int], runs: Path, tasks: int | None = None, **changes: Any
) -> list[Run]:
    """The runs of a row, one a seed, on all tasks or the first ones."""
    _, method, own = row
    presets = [nesskit.configure(BENCHMARK, method, preset, seed, **{**own, **changes}) for seed in seeds]
    return done(row[0], [dataclasses.replace(settings, tasks=tasks) for settings in presets], runs)


def both(matrices: Sequence[np.ndarray]) -> list[str]:
    """ACC and BWT over seeds, as cells."""
    return list(map(str, of_matrices(matrices)))


def line(row: Row, preset: str, seeds: Sequence[int], runs: Path, tasks: int | None = None) -> list[str]:
    """A row of the table: the method in every way that there is to judge it."""
    name, method, changes = row
    means = runs_of(row, preset, seeds, runs, tasks, head="means")
    shared = method in SHARED and not changes and preset == "shallow"
    one_head = ["–", "–"]
    if shared:
        one_head = both([run.accuracy for run in runs_of(row, preset, seeds, runs, tasks, head="shared")])
    return [
        name,
        *both([run.named_accuracy for run in means]),
        *both([run.accuracy for run in means]),
        *one_head,
        str(Estimate.of([run.kept_similarity[-1] for run in means])),
        count_text(Estimate.of([float(np.mean(run.trained_numbers)) for run in means]).mean),
        f"{Estimate.of([run.seconds for run in means]).mean:.0f}",
    ]


def report(
    title: str, rows: Sequence[Row], preset: str, seeds: Sequence[int], runs: Path, tasks: int | None = None
) -> None:
    """A table: percent, mean ± standard deviation over ``seeds``, on test data."""
    print(f"## {title}: test data, seeds {', '.join(map(str, seeds))}\n")
    print_table(HEADER, [line(row, preset, seeds, runs, tasks) for row in rows])


def report_search(title: str, choices: Sequence[Row], preset: str, tasks: int, runs: Path) -> None:
    """ACC / BWT on validation data; the task's name is not known."""
    print(f"## Search on {title}: {tasks} tasks, validation data of seed {SEARCH_SEED}\n")
    rows = []
    for row in choices:
        change = {"head": "means", "validation_share": SEARCH_SHARE}
        (run,) = runs_of(row, preset, [SEARCH_SEED], runs, tasks, **change)
        rows.append([row[0], *both([run.valid_accuracy]), f"{run.kept_similarity[-1]:.2f}"])
    print_table(("", "nearest mean: ACC", "BWT", "kept similarity"), rows)


def report_steps(runs: Path) -> None:
    """Each method in a process of its own: one epoch of task 2, so that memory is what it needs alone."""
    print("## A training step of 32 sentences, and the memory of the process\n")
    rows = []
    for preset in ("shallow", "default"):
        for name, method, changes in METHODS:
            order = json.dumps({"preset": preset, "method": method, "changes": dict(changes)})
            done = subprocess.run(
                [sys.executable, __file__, "--step", order], check=True, capture_output=True, text=True
            )
            measured = json.loads(done.stdout.splitlines()[-1])
            rows.append([name, preset, f"{measured['milliseconds']:.0f}", f"{measured['megabytes']:.0f}"])
    print_table(("", "preset", "ms a step", "MB, at most"), rows)


def measure_step(order: Mapping[str, Any]) -> None:
    """Print milliseconds a step in task 2, validation and moments left out, and the largest memory of this process."""
    settings = nesskit.configure(BENCHMARK, order["method"], order["preset"], **order["changes"], epochs=1)
    stream = nesskit.load_stream(BENCHMARK, settings.seed).first(2)
    model = nesskit.build_model(stream, settings.network, settings.seed)
    method = make_method(settings.method, settings.options)
    epochs: list[float] = []
    nesskit.fit(
        model,
        stream,
        method,
        dataclasses.replace(settings.training, epochs=1),
        listeners=[lambda event: epochs.append(event.seconds) if isinstance(event, EpochFinished) else None],
    )
    steps = -(-len(stream[1].train.y) // settings.training.batch_size) * (2 if method.learns_together else 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kB on Linux
    print(json.dumps({"milliseconds": 1000 * epochs[-1] / steps, "megabytes": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = ("search", "shallow", "untrained", "whole", "steps")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts[1:])
    parser.add_argument("--runs", type=Path, default=Path("runs/language"))
    parser.add_argument("--step", type=json.loads, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.step:
        measure_step(chosen.step)
        return
    started = time.monotonic()
    print(f"At commit {current_commit()}.\n")
    if "search" in chosen.parts:
        report_search("the first block", SEARCH, "shallow", FEW, chosen.runs)
        report_search("all six blocks", SEARCH_WHOLE, "default", 3, chosen.runs)
    if "shallow" in chosen.parts:
        report("The first block of MiniLM", METHODS, "shallow", (0, 1, 2), chosen.runs)
    if "untrained" in chosen.parts:
        report("A block that knows nothing", OF_NOTHING, "untrained", (0, 1, 2), chosen.runs)
    if "whole" in chosen.parts:
        report("All six blocks of MiniLM (reduced: five tasks)", FEWER, "default", (0,), chosen.runs, FEW)
    if "steps" in chosen.parts:
        report_steps(chosen.runs)
    print(f"{time.monotonic() - started:.0f} s.", file=sys.stderr)


if __name__ == "__main__":
    main()
