"""Several runs side by side: mean ± standard deviation over seeds, and differences paired by seed."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nesskit.errors import NesskitError
from nesskit.records import Run
from nesskit.settings import flatten


@dataclass(frozen=True)
class Estimate:
    """Mean and sample standard deviation (n - 1; NaN for one value) of ``count`` values."""

    mean: float
    std: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """The estimate from ``values``; NaN values (no BWT, say) make it NaN."""
        array = np.asarray(values, dtype=np.float64)
        std = float(array.std(ddof=1)) if len(array) > 1 else float("nan")
        return cls(float(array.mean()) if len(array) else float("nan"), std, len(array))

    def __str__(self) -> str:
        if np.isnan(self.mean):
            return "–"
        return f"{self.mean:.2f}" if np.isnan(self.std) else f"{self.mean:.2f} ± {self.std:.2f}"


@dataclass(frozen=True)
class MethodRow:
    """One method in a comparison, in percent; a ``*_difference`` is this method minus the reference, seed by seed."""

    label: str
    seeds: tuple[int, ...]
    average_accuracy: Estimate
    backward_transfer: Estimate
    accuracy_difference: Estimate
    transfer_difference: Estimate
    seconds: Estimate


@dataclass(frozen=True, eq=False)
class Comparison:
    """Finished runs of several methods on one benchmark.

    Attributes:
        groups: label → seed → run; the runs of one label differ in their seed only.
        reference: the label that differences are taken to.
    """

    groups: dict[str, dict[int, Run]]
    reference: str

    @classmethod
    def of(cls, runs: Sequence[Run], reference: str | None = None) -> Comparison:
        """Compare ``runs``; the reference is the first method unless another is named.

        Raises:
            NesskitError: there is no run, or the reference is none of the methods.
        """
        if not runs:
            raise NesskitError("there is no run to compare")
        groups: dict[str, dict[int, Run]] = {}
        for label, run in zip(_labels(runs), runs, strict=True):
            groups.setdefault(label, {})[run.config["seed"]] = run
        if reference is not None and reference not in groups:
            raise NesskitError(f"no run of '{reference}' to compare with; there are runs of {', '.join(groups)}")
        return cls(groups, reference or next(iter(groups)))

    @property
    def runs(self) -> list[Run]:
        """All runs, method by method."""
        return [run for runs in self.groups.values() for run in runs.values()]

    def rows(self) -> list[MethodRow]:
        """One row a method."""
        return [_row(label, runs, self.groups[self.reference]) for label, runs in self.groups.items()]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells as text, for a terminal or a page."""
        header = ["method", "seeds", "ACC %", "BWT %", f"ACC - {self.reference}", f"BWT - {self.reference}", "seconds"]
        return header, [
            [
                row.label,
                str(len(row.seeds)),
                str(row.average_accuracy),
                str(row.backward_transfer),
                "" if row.label == self.reference else str(row.accuracy_difference),
                "" if row.label == self.reference else str(row.transfer_difference),
                f"{row.seconds.mean:.1f}",
            ]
            for row in self.rows()
        ]

    def write_csv(self, path: Path | str) -> Path:
        """One line a run: method, seed, ACC, BWT, seconds, and the final accuracy of every task, in percent."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        tasks = max(len(run.tasks) for run in self.runs)
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(
                ["method", "seed", "average_accuracy", "backward_transfer", "seconds", "status"]
                + [f"final_accuracy_task_{task + 1}" for task in range(tasks)]
            )
            for label, runs in self.groups.items():
                for seed, run in runs.items():
                    measures = [run.average_accuracy, run.backward_transfer, round(run.seconds, 3), run.status]
                    writer.writerow([label, seed, *measures, *run.accuracy[-1].tolist()])
        return path


def _labels(runs: Sequence[Run]) -> list[str]:
    """For each run its method, and where a method appears with several settings, what is different about them."""
    labels = []
    for run in runs:
        settings = flatten(run.config)
        others = [flatten(other.config) for other in runs if other.config["method"] == run.config["method"]]
        differing = sorted(
            key
            for key in settings.keys() - {"seed", "preset"}
            if any(other.get(key) != settings[key] for other in others)
        )
        details = ", ".join(f"{key.rpartition('.')[2]}={settings[key]}" for key in differing)
        labels.append(f"{run.config['method']} ({details})" if details else str(run.config["method"]))
    return labels


def _row(label: str, runs: dict[int, Run], reference: dict[int, Run]) -> MethodRow:
    pairs = [(run, reference[seed]) for seed, run in runs.items() if seed in reference]
    return MethodRow(
        label,
        tuple(runs),
        Estimate.of([run.average_accuracy for run in runs.values()]),
        Estimate.of([run.backward_transfer for run in runs.values()]),
        Estimate.of([run.average_accuracy - other.average_accuracy for run, other in pairs]),
        Estimate.of([run.backward_transfer - other.backward_transfer for run, other in pairs]),
        Estimate.of([run.seconds for run in runs.values()]),
    )
