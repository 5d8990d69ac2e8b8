"""What surrounds a training step, one setting at a time: how much of an accuracy is protocol?

Runs of NESS on the first four tasks of split-cifar100-16. The base is the default preset in the protocol of
``nesskit-sgdm``: old data kept, evaluations in fixed batches of 64. Every variant changes one setting of it, or one
choice of the authors' code, or all of these together, and is paired with the base by seed.

The threshold of the preset is chosen first: on validation data, 20 % of the training examples of seeds 11 and 12, which
are not reported, by the rule of ``hyperparameters.py``. Prints Markdown, with sentences that are made from the numbers;
runs that lie in the folder of runs already are not done again.

    python studies/protocol.py --executor processes:2     # 56 runs of a minute or two; --seeds 1 2 3 for fewer
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from reporting import accuracy, choose, learned, paired, print_table, transfer
from scipy import stats

import nesskit
from nesskit import NuclearThreshold
from nesskit.experiments.executors import open_executor
from nesskit.experiments.running import execute_all
from nesskit.runs.comparison import Estimate, Failure
from nesskit.runs.record import Run
from nesskit.runs.sweep import Sweep
from nesskit.settings import RunSettings

BENCHMARK, TASKS = "split-cifar100-16", 4
CHOICE_SEEDS, REPORT_SEEDS = (11, 12), (1, 2, 3, 4, 5)
CHOICE_SHARE, ALLOWED_FORGETTING = 0.2, 1.0
THRESHOLDS = tuple(map(NuclearThreshold, (0.002, 0.003, 0.004)))

Changes = Mapping[str, Any]
BASE: Changes = {"memory": "data", "evaluation_batch_size": 64}
AUTHORS: dict[str, Changes] = {
    "evaluations in batches drawn anew": {"evaluation_order": "reshuffled"},
    "moments in batches of 64 across tasks": {"moment_batch_size": 64, "moment_batches": "across-tasks"},
    "the authors' split": {"split": "authors"},
}
VARIANTS: dict[str, Changes] = {
    **AUTHORS,
    "all three of the authors": {name: value for changes in AUTHORS.values() for name, value in changes.items()},
    "weights of the highest accuracy": {"kept_weights": "highest-accuracy"},
    "the last weights": {"kept_weights": "last"},
    "a cosine": {"lr_plan": "cosine"},
    "label smoothing 0.1": {"label_smoothing": 0.1},
    "averaged weights, β = 0.99": {"ema_decay": 0.99},
}
BASE_NAME = "base"
MEASURES = {"ACC": accuracy, "learned": learned, "BWT": transfer}
Runs = dict[str, list[Run]]  # by the name of a variant, in the order of the seeds


def reduced(seed: int, changes: Changes) -> RunSettings:
    """The settings of a run on the first tasks."""
    return dataclasses.replace(nesskit.configure(BENCHMARK, seed=seed, **changes), tasks=TASKS)


def done(variants: Mapping[str, Changes], seeds: Sequence[int], runs: Path, executor: str | None) -> Runs:
    """Every variant with every seed, seed by seed, so that what was done before an interruption can be compared."""
    wanted = [(name, reduced(seed, changes)) for seed in seeds for name, changes in variants.items()]
    with open_executor(executor) if executor else nullcontext() as pool:
        ended, failed = execute_all([settings for _, settings in wanted], runs, executor=pool)
    if failed or len(ended) < len(wanted):
        raise SystemExit(said(failed) or "interrupted: the same command goes on")
    found: Runs = {name: [] for name in variants}
    for (name, _), run in zip(wanted, ended, strict=True):
        found[name].append(run)
    return found


def said(failed: Iterable[Failure]) -> str:
    """Why runs failed, in a line each."""
    return "\n".join(f"seed {failure.seed}: {failure.reason}" for failure in failed)


def report_choice(runs: Path, executor: str | None) -> None:
    """Print the thresholds on validation data, and which one is chosen."""
    variants = {str(rule): {"filter": rule, "validation_share": CHOICE_SHARE} for rule in THRESHOLDS}
    swept = Sweep.of(done(variants, CHOICE_SEEDS, runs, executor))
    measured = {point.filter: (point.average_accuracy, point.backward_transfer) for point in swept.points}
    chosen, preset = choose(measured, ALLOWED_FORGETTING), str(nesskit.configure(BENCHMARK).options.filter)
    print(f"## The threshold: validation data, seeds {CHOICE_SEEDS}, {TASKS} tasks\n")
    header, rows = swept.table()
    print_table(header, [[*row[:-1], "chosen" if row[0] == chosen else ""] for row in rows])
    print(f"{chosen} {'is' if chosen == preset else 'is NOT'} the threshold of the preset.\n")


def report_variants(seeds: Sequence[int], runs: Path, executor: str | None) -> None:
    """Print every variant beside the base, and what can be said of it."""
    variants = {BASE_NAME: BASE, **{name: {**BASE, **changes} for name, changes in VARIANTS.items()}}
    found = done(variants, seeds, runs, executor)
    base = found[BASE_NAME]
    print(f"## One change at a time: test data, seeds {', '.join(map(str, seeds))}, {TASKS} tasks\n")
    print(f"Changed are settings of the preset with {as_text(BASE)}.")
    print("± is the standard deviation over seeds, for differences (Δ) the standard error of their mean.\n")
    header = ["", "changed", "ACC %", "learned %", "BWT %", "ΔACC", "Δlearned", "ΔBWT", "epochs a task"]
    print_table(header, [row(name, found[name], base) for name in found])
    count = len(VARIANTS) * len(MEASURES)
    print("A difference is named where it lies outside of the 95 % interval around 0 (Student's t), as one in twenty")
    print(f"does by chance: {count / 20:.1f} of these {count}.\n")
    print(*(sentence(name, found[name], base) for name in VARIANTS), sep="\n")
    print(f"\n{provenance([run for same in found.values() for run in same])}")


def row(name: str, runs: Sequence[Run], base: Sequence[Run]) -> list[str]:
    """A variant in the table."""
    own = [str(measure(runs)) for measure in MEASURES.values()]
    changes = as_text(VARIANTS.get(name, {}))
    deltas = ["" if name == BASE_NAME else with_error(paired(runs, base, measure)) for measure in MEASURES.values()]
    epochs = Estimate.of([len(run.history) / TASKS for run in runs])
    return [name, changes, *own, *deltas, f"{epochs.mean:.1f}"]


def sentence(name: str, runs: Sequence[Run], base: Sequence[Run]) -> str:
    """What these seeds say about a variant, as an item of a list."""
    deltas = {title: paired(runs, base, measure) for title, measure in MEASURES.items()}
    clear = {title: delta for title, delta in deltas.items() if abs(delta.mean) > margin(delta)}
    if clear:
        moved = ", ".join(f"{title} by {with_error(delta)}" for title, delta in clear.items())
        return f"- **{name}** moves {moved} points."
    accurate = deltas["ACC"]
    return (
        f"- **{name}**: no difference that these seeds can tell (ACC {accurate.mean:+.2f}, ± {margin(accurate):.2f})."
    )


def error(delta: Estimate) -> float:
    """The standard error of a mean."""
    return delta.std / delta.count**0.5


def margin(delta: Estimate) -> float:
    """Half the width of the 95 % interval of a mean, by Student's t."""
    return float(stats.t.ppf(0.975, delta.count - 1)) * error(delta)


def with_error(delta: Estimate) -> str:
    """A mean difference with its sign and its standard error."""
    return f"{delta.mean:+.2f} ± {error(delta):.2f}"


def as_text(changes: Changes) -> str:
    """Settings as a person would write them."""
    return ", ".join(f"`{name} = {value}`" for name, value in changes.items())


def provenance(runs: Sequence[Run]) -> str:
    """What the runs were made with."""
    commits, torches, devices, threads = (
        ", ".join(sorted({str(run.environment[key]) for run in runs}))
        for key in ("commit", "torch", "device", "threads")
    )
    seconds = Estimate.of([run.seconds for run in runs])
    return (
        f"Provenance: `python studies/protocol.py`, {len(runs)} runs of commit {commits}, torch {torches}, {devices}, "
        f"{threads} thread(s) and {seconds.mean:.0f} s a run."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--seeds", type=int, nargs="+", default=REPORT_SEEDS, help="seeds that are reported")
    parser.add_argument("--executor", help="where runs go on beside each other, such as processes:2")
    arguments = parser.parse_args()
    report_choice(arguments.runs, arguments.executor)
    report_variants(arguments.seeds, arguments.runs, arguments.executor)


if __name__ == "__main__":
    main()
