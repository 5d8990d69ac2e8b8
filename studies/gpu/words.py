"""The summary as a person reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nesskit.runs.comparison import Estimate

CHECKS = ["", "holds", "measured", "at most", "what"]
STEPS = ["method", "one by one", "CUDA graph", "ratio", ""]
ROWS = ["row", "method", "preset", "seeds", "ours: ACC / BWT %", "published", "difference, in published std", "remarks"]


def as_markdown(values: Mapping[str, Any]) -> str:
    """What ``summary.json`` holds, as a page."""
    parts = [
        f"# {values['benchmark']} on a GPU" + (", a rehearsal (--tiny)" if values["plan"] == "tiny" else ""),
        "\n".join(_session(session) for session in values["sessions"]),
        "## What must hold",
        _table(CHECKS, [_essential(*item) for item in values["essentials"].items()]),
        "## Milliseconds of a training step of the second task",
        _table(STEPS, [_time(*item) for item in values["step_times"].items()]),
        "## Rows",
        _table(ROWS, [_row(row) for row in values["rows"]]),
        "Means ± standard deviations (n - 1) over the seeds that have finished.",
    ]
    if values["archives"]:
        parts.append(_how_to_record(values["archives"]))
    if values["left_out"]:
        parts.append(f"Left out, as there was no room: {'; '.join(values['left_out'])}.")
    return "\n\n".join(parts)


def _session(session: Mapping[str, Any]) -> str:
    where = f"{session['device']}, torch {session['torch']}, Python {session['python']}"
    commit = session["commit"] or "not known (`nesskit record` asks for it: use a checkout)"
    return (
        f"* {session['began']}: {where}, {session['processes']} processes; nesskit {session['nesskit']}, "
        f"commit {commit}; {session['minutes']:g} of {session['asked']:g} minutes, {session['ended']}"
    )


def _essential(name: str, found: Mapping[str, Any]) -> list[str]:
    numbers = [_number(found["value"], ".2g"), _number(found["limit"], ".2g")]
    return [name.replace("_", " "), "PASS" if found["holds"] else "FAIL", *numbers, found["what"]]


def _time(method: str, found: Mapping[str, Any]) -> list[str]:
    eager, graph = found["eager"], found["graph"]
    milliseconds = [_number(seconds and 1e3 * seconds, ".2f") for seconds in (eager, graph)]
    ratio = f"{eager / graph:.2f}" if eager and graph else "–"
    return [method, *milliseconds, ratio, found.get("error", "")]


def _row(row: Mapping[str, Any]) -> list[str]:
    known = [row["label"], row["method"], row["preset"]]
    beside = row["published"]
    theirs = f"{_mean_std(beside['average_accuracy'])} / {_mean_std(beside['backward_transfer'])}" if beside else "–"
    if "skipped" in row:
        return [*known, "", "–", theirs, "–", f"skipped: {row['skipped']}"]
    done = [seed for seed, run in row["seeds"].items() if run["status"] == "finished"]
    ours = f"{_estimate(row['average_accuracy'])} / {_estimate(row['backward_transfer'])}" if done else "–"
    difference = row["difference_in_published_std"] if done else None
    return [
        *known,
        ", ".join(done),
        ours,
        theirs,
        " / ".join(_number(value, "+.1f") for value in difference) if difference else "–",
        "; ".join(_unfinished(seed, run) for seed, run in row["seeds"].items() if seed not in done),
    ]


def _unfinished(seed: str, run: Mapping[str, Any]) -> str:
    """What is to be said of a run that has not finished."""
    done = f", {run['tasks_done']} of {run['tasks']} tasks" if "tasks" in run else ""
    reason = f" ({run['reason']})" if run["reason"] else ""
    return f"seed {seed} {run['status']}{done}{reason}"


def _how_to_record(archives: Sequence[str]) -> str:
    unpacked = [f"tar -xzf {name} -C runs" for name in archives]
    record = "nesskit record runs/*/*/*   # those that have finished"
    return "\n".join(["```sh", "mkdir -p runs", *unpacked, record, "```"])


def _estimate(values: Mapping[str, Any]) -> str:
    mean, std = (float("nan") if values[key] is None else values[key] for key in ("mean", "std"))
    return str(Estimate(mean, std, values["count"]))


def _mean_std(values: Sequence[float]) -> str:
    return f"{values[0]:.2f} ± {values[1]:.2f}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; nothing in a cell can end it."""
    lines = [[" ".join(cell.replace("|", "/").split()) for cell in line] for line in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))
