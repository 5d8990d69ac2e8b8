"""Several runs side by side: mean ± standard deviation over seeds, and differences paired by seed."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nesskit.errors import NesskitError
from nesskit.runs.record import Run
from nesskit.settings import RunSettings, flatten

if TYPE_CHECKING:
    import pandas


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
class Failure:
    """A run that failed, and why."""

    method: str
    seed: int
    reason: str

    @classmethod
    def of(cls, settings: RunSettings, error: BaseException) -> Failure:
        """The failure of the run of ``settings`` by ``error``."""
        expected = isinstance(error, NesskitError)
        reason = str(error) if expected else f"{type(error).__name__}: {error}"
        return cls(settings.method, settings.seed, reason)


@dataclass(frozen=True)
class MethodRow:
    """One method in a comparison, in percent; a ``*_difference`` is this method minus the reference, seed by seed.

    ``named_accuracy`` is ACC by the same weights if the task's name is known, NaN where ACC is just that;
    ``kept_similarity`` is how much of pretrained similarity is kept in the end, -1 … 1, NaN where nobody measured it;
    ``private_numbers`` are what a task has for itself beside its head, ``trained_numbers`` all that it trains,
    ``memory`` is what a method keeps between tasks, in bytes; ``failed`` are seeds whose runs failed.
    """

    label: str
    seeds: tuple[int, ...]
    failed: tuple[int, ...]
    average_accuracy: Estimate
    backward_transfer: Estimate
    accuracy_difference: Estimate
    transfer_difference: Estimate
    named_accuracy: Estimate
    private_numbers: Estimate
    trained_numbers: Estimate
    kept_similarity: Estimate
    seconds: Estimate
    memory: Estimate


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs of several methods on one benchmark.

    Attributes:
        groups: label → seed → run; the runs of one label differ in their seed only.
        reference: the label that differences are taken to.
        failures: runs that failed; a method of which every run failed has no group.
    """

    groups: dict[str, dict[int, Run]]
    reference: str
    failures: tuple[Failure, ...] = ()

    @classmethod
    def of(cls, runs: Sequence[Run], failures: Sequence[Failure] = (), reference: str | None = None) -> Comparison:
        """Compare ``runs``; the reference is the first method unless another is named.

        Raises:
            NesskitError: there is no run, or the reference is none of the methods.
        """
        if not runs:
            why = f": the first of {len(failures)} failures was: {failures[0].reason}" if failures else ""
            raise NesskitError(f"there is no run to compare{why}")
        groups: dict[str, dict[int, Run]] = {}
        for label, run in zip(_labels(runs), runs, strict=True):
            groups.setdefault(label, {})[run.config["seed"]] = run
        if reference is not None and reference not in groups:
            raise NesskitError(f"no run of '{reference}' to compare with; there are runs of {', '.join(groups)}")
        return cls(groups, reference or next(iter(groups)), tuple(failures))

    @property
    def runs(self) -> list[Run]:
        """All runs, method by method."""
        return [run for runs in self.groups.values() for run in runs.values()]

    def rows(self) -> list[MethodRow]:
        """One row a method, also for a method of which every run failed."""
        rows = [
            _row(label, runs, self.groups[self.reference], self._failed(label)) for label, runs in self.groups.items()
        ]
        known = {label.partition(" ")[0] for label in self.groups}
        gone = dict.fromkeys(failure.method for failure in self.failures if failure.method not in known)
        return rows + [_row(method, {}, {}, self._failed(method)) for method in gone]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells as text, for a terminal or a page."""
        rows = self.rows()
        pretrained = any(row.kept_similarity.count and not np.isnan(row.kept_similarity.mean) for row in rows)
        nameless = any(row.named_accuracy.count and not np.isnan(row.named_accuracy.mean) for row in rows)
        header = ["method", "seeds", "ACC %", "BWT %", f"ACC - {self.reference}", f"BWT - {self.reference}"]
        header += ["ACC %, task named"] if nameless else []
        header += ["private numbers a task"]
        header += ["trained numbers a task", "kept similarity"] if pretrained else []
        return [*header, "seconds", "memory"], [
            [
                row.label,
                str(len(row.seeds)) + (f", {len(row.failed)} failed" if row.failed else ""),
                str(row.average_accuracy),
                str(row.backward_transfer),
                "" if row.label == self.reference else str(row.accuracy_difference),
                "" if row.label == self.reference else str(row.transfer_difference),
                *([str(row.named_accuracy)] if nameless else []),
                count_text(row.private_numbers.mean),
                *([count_text(row.trained_numbers.mean), str(row.kept_similarity)] if pretrained else []),
                "–" if np.isnan(row.seconds.mean) else f"{row.seconds.mean:.1f}",
                "–" if np.isnan(row.memory.mean) else size_text(row.memory.mean),
            ]
            for row in rows
        ]

    def records(self) -> list[dict[str, Any]]:
        """One entry a run, failed ones included: method, seed, measures in percent, seconds, bytes kept, status."""
        tasks = max(len(run.tasks) for run in self.runs)
        ended = [
            {
                "method": label,
                "seed": seed,
                "average_accuracy": run.average_accuracy,
                "backward_transfer": run.backward_transfer,
                "named_average_accuracy": run.named_average_accuracy,
                "private_numbers": run.private_numbers,
                "trained_numbers": run.mean_trained_numbers,
                "kept_similarity": run.finally_kept_similarity,
                "seconds": round(run.seconds, 3),
                "memory": sum(run.memory.values()),
                "status": run.status,
                **{f"final_accuracy_task_{task + 1}": value for task, value in enumerate(run.accuracy[-1].tolist())},
            }
            for label, runs in self.groups.items()
            for seed, run in runs.items()
        ]
        measured = (
            "average_accuracy",
            "backward_transfer",
            "named_average_accuracy",
            "private_numbers",
            "trained_numbers",
            "kept_similarity",
            "seconds",
            "memory",
        )
        nothing = dict.fromkeys(measured, float("nan"))
        finals = {f"final_accuracy_task_{task + 1}": float("nan") for task in range(tasks)}
        return ended + [
            {"method": f.method, "seed": f.seed, **nothing, "status": f"failed: {f.reason}", **finals}
            for f in self.failures
        ]

    def to_frame(self) -> pandas.DataFrame:
        """:meth:`records` as a DataFrame."""
        import pandas

        return pandas.DataFrame(self.records())

    def write_csv(self, path: Path | str) -> Path:
        """:meth:`records` as a file."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        records = self.records()
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
        return path

    def _failed(self, label: str) -> tuple[int, ...]:
        """Seeds of the failures of the method in ``label``."""
        return tuple(failure.seed for failure in self.failures if failure.method == label.partition(" ")[0])


def size_text(size: float) -> str:
    """Bytes as a person reads them."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} B"


def count_text(count: float) -> str:
    """A number of things as a person reads it."""
    return "–" if np.isnan(count) else f"{count:,.0f}"


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


def _row(label: str, runs: dict[int, Run], reference: dict[int, Run], failed: tuple[int, ...]) -> MethodRow:
    pairs = [(run, reference[seed]) for seed, run in runs.items() if seed in reference]
    return MethodRow(
        label,
        tuple(runs),
        failed,
        Estimate.of([run.average_accuracy for run in runs.values()]),
        Estimate.of([run.backward_transfer for run in runs.values()]),
        Estimate.of([run.average_accuracy - other.average_accuracy for run, other in pairs]),
        Estimate.of([run.backward_transfer - other.backward_transfer for run, other in pairs]),
        Estimate.of([run.named_average_accuracy for run in runs.values()]),
        Estimate.of([run.private_numbers for run in runs.values()]),
        Estimate.of([run.mean_trained_numbers for run in runs.values()]),
        Estimate.of([run.finally_kept_similarity for run in runs.values()]),
        Estimate.of([run.seconds for run in runs.values()]),
        Estimate.of([sum(run.memory.values()) for run in runs.values()]),
    )
