"""Threshold research: one filter at many values, judged on validation data."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from nesskit.errors import SettingsError
from nesskit.runs import metrics
from nesskit.runs.comparison import Estimate
from nesskit.runs.record import Run
from nesskit.spectra.filters import Filter, parse_filter

MOST_VALUES = 1000  # of a grid; each is a run of every seed


@dataclass(frozen=True)
class SweepPoint:
    """One filter of a sweep; accuracies on validation data, in percent, over the seeds."""

    filter: str
    average_accuracy: Estimate
    backward_transfer: Estimate

    @property
    def rule(self) -> Filter:
        """The filter itself."""
        return parse_filter(self.filter)

    @property
    def value(self) -> float:
        """The number that a grid varies: ε, the first field of the filter."""
        return float(getattr(self.rule, fields(self.rule)[0].name))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep: one point a filter, in the order of the grid."""

    points: tuple[SweepPoint, ...]

    @classmethod
    def of(cls, runs: Mapping[str, Sequence[Run]]) -> Sweep:
        """From the runs of each filter; the test data of these runs is not looked at."""
        return cls(
            tuple(
                SweepPoint(
                    rule,
                    Estimate.of([metrics.average_accuracy(run.valid_accuracy) for run in same]),
                    Estimate.of([metrics.backward_transfer(run.valid_accuracy) for run in same]),
                )
                for rule, same in runs.items()
            )
        )

    @property
    def best(self) -> SweepPoint:
        """The point with the highest mean validation accuracy."""
        return max(self.points, key=lambda point: point.average_accuracy.mean)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and cells as text; the best point is marked."""
        return ["filter", "validation ACC %", "validation BWT %", ""], [
            [p.filter, str(p.average_accuracy), str(p.backward_transfer), "best" if p == self.best else ""]
            for p in self.points
        ]

    def write_csv(self, path: Path | str) -> Path:
        """One line a filter."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["filter", "seeds", "valid_acc_mean", "valid_acc_std", "valid_bwt_mean", "valid_bwt_std"])
            for point in self.points:
                accuracy, transfer = point.average_accuracy, point.backward_transfer
                row = [point.filter, accuracy.count, accuracy.mean, accuracy.std, transfer.mean, transfer.std]
                writer.writerow(row)
        return path


def parse_grid(text: str) -> list[float]:
    """``low:high:count`` as geometrically spaced values, or the values themselves, separated by commas.

    Raises:
        SettingsError: neither of the two forms, or bounds that are not 0 < low < high.
    """
    try:
        if ":" not in text:
            return [float(value) for value in text.split(",")]
        low_text, high_text, count_text = text.split(":")
        low, high, count = float(low_text), float(high_text), int(count_text)
    except ValueError:
        raise SettingsError(f"grid '{text}' is neither low:high:count (1e-4:1e-2:9) nor values (0.01,0.02)") from None
    if not 0 < low < high < math.inf or not 2 <= count <= MOST_VALUES:
        raise SettingsError(f"grid '{text}' needs 0 < low < high and 2 to {MOST_VALUES} values")
    return list(_geometric(low, high, count))


def _geometric(low: float, high: float, count: int) -> Iterable[float]:
    """``count`` values from low to high with a constant ratio, rounded to three digits: a name a person can read."""
    for step in range(count):
        yield float(f"{low * math.exp(step / (count - 1) * math.log(high / low)):.3g}")
