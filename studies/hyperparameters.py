"""The settings of every method on the digits: one number a method, chosen on validation data.

Seeds 1 to 3 (of ness-private 11 to 13), 20 % of the training examples set aside. Taken is the value with the highest
mean accuracy among those that forget at most one point (half a point on split-digits, where there is less to forget);
where every value forgets more, the one with the highest accuracy. Of thresholds of ness-private that are equal within a
tenth of a point, the one that costs the fewest private numbers. The presets in ``nesskit/experiments/benchmarks.py``
are to have these values.
Prints Markdown; runs that lie in the folder of runs already are not done again.

    python studies/hyperparameters.py            # about 400 runs of 1 to 15 s
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reporting import ALLOWED_FORGETTING, DIGITS, choose, print_table

import nesskit
from nesskit import FrobeniusThreshold, SoftFilter
from nesskit.errors import TrainingError
from nesskit.runs import metrics
from nesskit.runs.comparison import Estimate

SEEDS = (1, 2, 3)
SEEDS_OF = {"ness-private": (11, 12, 13)}  # none of those that are reported
VALIDATION_SHARE = 0.2
GRIDS: dict[str, tuple[str, Sequence[Any]]] = {
    "gpm": ("threshold", (0.95, 0.97, 0.98, 0.985, 0.99, 0.995)),
    "sgp": ("threshold", (0.95, 0.97, 0.985, 0.99, 0.995)),
    "trgp": ("threshold", (0.95, 0.97, 0.98, 0.99)),
    "dfgp": ("threshold", (0.95, 0.97, 0.98, 0.985, 0.99)),
    "fs-dgpm": ("threshold", (0.95, 0.97, 0.98)),
    "adam-nscl": ("filter", tuple(map(FrobeniusThreshold, (0.005, 0.008, 0.0126, 0.02, 0.03, 0.042, 0.06, 0.085)))),
    "owm": ("alpha", (0.03, 0.1, 0.3, 1.0)),
    "ewc": ("strength", (10.0, 30.0, 60.0, 100.0, 200.0)),
    "ness-soft": (
        "filter",
        tuple(SoftFilter(tau, "frobenius") for tau in (0.0028, 0.004, 0.0056, 0.008, 0.0113, 0.016)),
    ),
    "ness-private": ("filter", tuple(map(FrobeniusThreshold, (0.0045, 0.0063, 0.0089, 0.0126, 0.0178, 0.0251)))),
    "hat": ("sparsity", (0.25, 0.5, 0.75, 1.5)),
}
SLACK = {"ness-private": 0.1}  # points; the larger its threshold, the fewer numbers a task has for itself


def validation(benchmark: str, method: str, field: str, value: Any, runs: Path) -> tuple[Estimate, Estimate]:
    """ACC and BWT on validation data, over the seeds; NaN where training diverged."""
    found = []
    for seed in SEEDS_OF.get(method, SEEDS):
        changes = {field: value, "validation_share": VALIDATION_SHARE}
        try:
            found.append(nesskit.run(benchmark, method=method, seed=seed, runs=runs, progress=False, **changes))
        except TrainingError:
            return Estimate.of([]), Estimate.of([])
    return (
        Estimate.of([metrics.average_accuracy(run.valid_accuracy) for run in found]),
        Estimate.of([metrics.backward_transfer(run.valid_accuracy) for run in found]),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs (default: runs)")
    parser.add_argument("--benchmarks", nargs="+", default=DIGITS, choices=DIGITS)
    parser.add_argument("--methods", nargs="+", default=list(GRIDS), choices=GRIDS)
    arguments = parser.parse_args()
    for benchmark in arguments.benchmarks:
        rows = []
        for method in arguments.methods:
            field, values = GRIDS[method]
            measured = {value: validation(benchmark, method, field, value, arguments.runs) for value in values}
            chosen = choose(measured, ALLOWED_FORGETTING[benchmark], SLACK.get(method, 0.0))
            preset = getattr(nesskit.configure(benchmark, method).options, field)
            for value, (accuracy, transfer) in measured.items():
                remark = ", ".join(["chosen"] * (value == chosen) + ["preset"] * (value == preset))
                rows.append([method, f"{field} {value}", str(accuracy), str(transfer), remark])
        others = "".join(f"; of {method} {seeds}" for method, seeds in SEEDS_OF.items())
        print(f"## {benchmark}: validation data, seeds {SEEDS}{others}\n")
        print_table(["method", "setting", "ACC %", "BWT %", ""], rows)


if __name__ == "__main__":
    main()
