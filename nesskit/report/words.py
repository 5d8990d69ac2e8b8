"""What the page says in words, made from nothing but the numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nesskit import plots
from nesskit.experiments.remarks import remarks
from nesskit.report.groups import Groups, all_joint, groups_of
from nesskit.runs.comparison import Comparison, Estimate, Failure
from nesskit.runs.record import Run

MANY = 5  # methods; of more a page tells in words only what stands out, and its table all


def title_of(groups: Groups) -> str:
    """Methods and benchmarks."""
    names = [plots.display_name(label) for label in groups]
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    listed = f"{len(names)} methods" if len(names) > MANY else listed
    return f"{_capitalised(listed)} on {' and '.join(_benchmarks(groups))}"


def _benchmarks(groups: Groups) -> list[str]:
    return list(dict.fromkeys(_benchmark(run) for runs in groups.values() for run in runs))


def _benchmark(run: Run) -> str:
    return str(run.config.get("benchmark") or run.config.get("stream") or "an unnamed stream")


def subtitle(comparison: Comparison) -> str:
    """Tasks, seeds and presets in a line."""
    runs = comparison.runs
    counts = sorted({len(run.tasks) for run in runs})
    seeds = sorted({int(run.config["seed"]) for run in runs})
    presets = sorted({str(run.config["preset"]) for run in runs if run.config.get("preset")})
    parts = [
        f"{' or '.join(map(str, counts))} {'task' if counts == [1] else 'tasks'}",
        f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}",
        *([f"preset {', '.join(presets)}"] if presets else []),
    ]
    return " · ".join(parts)


def reading(comparison: Comparison) -> str:
    """The result in plain sentences, from nothing but the numbers."""
    groups = groups_of(comparison)
    sentences = [_sentence(label, comparison) for label in _told(comparison)]
    if len(groups) > MANY:
        sentences.append(f"The table has all {len(groups)} methods.")
    if len(comparison.runs) == 1:
        run = comparison.runs[0]
        sentences.append(plots.describe_worst_task(run.accuracy, run.tasks))
    if any(len(runs) > 1 for runs in groups.values()):
        sentences.append("These are means over seeds.")
    return " ".join(sentence for sentence in sentences if sentence)


def _told(comparison: Comparison) -> list[str]:
    """The labels that the page tells of in words: of many the reference, the highest and the lowest."""
    if len(comparison.groups) <= MANY:
        return list(comparison.groups)
    ended = [row for row in comparison.rows() if not np.isnan(row.average_accuracy.mean)]
    ended.sort(key=lambda row: row.average_accuracy.mean)
    told = {comparison.reference, *(row.label for row in (*ended[:1], *ended[-1:]))}
    return [label for label in comparison.groups if label in told]


def _sentence(label: str, comparison: Comparison) -> str:
    """How one method ended, how far that is from the reference, and what it lost on the way."""
    runs = list(comparison.groups[label].values())
    average = Estimate.of([run.average_accuracy for run in runs]).mean
    transfer = Estimate.of([run.backward_transfer for run in runs]).mean
    name = _capitalised(plots.display_name(label))
    if np.isnan(average):
        return f"{name} has no result yet." if len(runs) == 1 else f"{name} has no result for some seeds yet."
    if all_joint(runs):
        return f"{name}, which sees all tasks at once, reaches {average:.1f} %."
    done, count = min(run.tasks_done for run in runs), len(runs[0].tasks)
    verb = "ends at" if all(run.finished for run in runs) else f"stands, after {done} of {count} tasks, at"
    first = label == next(iter(comparison.groups))
    over = (f" on average over {done} tasks" if done > 1 else " on its only task") if first else ""
    distance = _distance(label, comparison)
    lost = "" if np.isnan(transfer) else f"{',' if distance else ''} and {_lost(transfer)}"
    return f"{name} {verb} {average:.1f} %{over}{distance}{lost}."


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lost(transfer: float) -> str:
    if abs(transfer) < 0.05:  # what one decimal shows as zero
        return "neither lost nor gained on earlier tasks"
    return f"{'lost' if transfer < 0 else 'gained'} {abs(transfer):.1f} points on earlier tasks"


def _distance(label: str, comparison: Comparison) -> str:
    """How far above or below the reference, if both are finished; differences are paired by seed."""
    runs = [*comparison.groups[label].values(), *comparison.groups[comparison.reference].values()]
    difference = next(row for row in comparison.rows() if row.label == label).accuracy_difference.mean
    if label == comparison.reference or np.isnan(difference) or not all(run.finished for run in runs):
        return ""
    if abs(difference) < 0.05:
        return f", level with {plots.display_name(comparison.reference)}"
    where = "above" if difference > 0 else "below"
    return f", {abs(difference):.1f} points {where} {plots.display_name(comparison.reference)}"


def failure_notes(failures: Sequence[Failure]) -> list[str]:
    """One sentence for every run that failed."""
    return [f"{plots.display_name(f.method)}, seed {f.seed}, failed: {f.reason}." for f in failures]


def caveats(groups: Groups) -> list[str]:
    """What a reader must know before the numbers: unfinished or reduced runs, and runs that do not belong together."""
    seeds: dict[tuple[str, str], list[str]] = {}  # a remark that holds for several seeds is said once
    for label, runs in groups.items():
        for run in runs:
            for remark in remarks(run):
                seeds.setdefault((label, remark), []).append(str(run.config["seed"]))
    caveats = [
        f"{plots.display_name(label)}, {'seed' if len(who) == 1 else 'seeds'} {', '.join(who)}: {remark}."
        for (label, remark), who in seeds.items()
    ]
    if len(_benchmarks(groups)) > 1:
        caveats.append("These runs are of different benchmarks: their accuracies do not compare.")
    if len({run.tasks_done for runs in groups.values() for run in runs}) > 1:
        caveats.append("These runs got differently far: their averages are over different numbers of tasks.")
    return caveats
