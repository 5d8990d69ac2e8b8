"""Whether a record says what a record can say: it may have been edited, cut off, or written by something else."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nesskit.runs import metrics

STATUSES = ("running", "stopped", "failed", "finished")


def parse_record(text: str) -> Any:
    """The JSON ``text`` as plain values.

    Raises:
        ValueError: it is no JSON, holds NaN or infinite numbers, or is nested beyond reason.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def check_values(record: Any) -> None:
    """Every field of a record holds what :meth:`Run.to_dict` may have written, and they fit together.

    Raises:
        ValueError: a field is missing or holds something else; names it.
    """
    if not isinstance(record, Mapping):
        raise ValueError(f"it holds {_kind(record)} instead of an object")
    for name, (holds, expected) in _FIELDS.items():
        if name not in record:
            raise ValueError(f"'{name}' is missing")
        _require(holds(record[name]), name, expected, record[name])
    network = record.get("network", {})  # older records have none
    _require(_is_network(network), "network", "checksums of a network and of its weights", network)
    count = len(record["tasks"])
    for name, (holds, expected) in _A_TASK.items():
        found = record.get(name, [])  # older records have none
        fits = isinstance(found, list) and len(found) <= count and all(map(holds, found))
        _require(fits, name, f"{expected}, one for each task done", found)
    named = ["named_accuracy"] if "named_accuracy" in record else []  # of runs whose tasks had no name
    for name in ("accuracy", "valid_accuracy", *named):
        _require(_is_matrix(record[name], count), name, f"{count} × {count} percentages or null", record[name])
    for number, epoch in enumerate(record["history"]):
        _check_epoch(epoch, number, count)
    accuracy = np.array(record["accuracy"], dtype=np.float64)
    learned = len(metrics.final_accuracy(accuracy))
    if record["status"] == "finished" and learned != count:
        raise ValueError(f"'status' is finished, but {learned} of {count} tasks are learned")
    for name, measure in (
        ("average_accuracy", metrics.average_accuracy),
        ("backward_transfer", metrics.backward_transfer),
    ):
        if name in record:
            said, is_so = record[name], measure(accuracy)
            same = math.isnan(is_so) if said is None else _is_number(said) and abs(said - is_so) < 0.01
            _require(same, name, f"{is_so:.6g}, which 'accuracy' comes to", said)


def is_config(value: Any) -> bool:
    """Settings of a run: a method and a seed at least, and how many epochs every task was trained for."""
    return (
        isinstance(value, Mapping)
        and _is_text(value.get("method"))
        and _is_count(value.get("seed"))
        and isinstance(value.get("training"), Mapping)
        and _is_count(value["training"].get("epochs"))
    )


def _check_epoch(epoch: Any, number: int, tasks: int) -> None:
    where = f"history[{number}]"
    _require(isinstance(epoch, Mapping), where, "an object", epoch)
    for name, (holds, expected) in _EPOCH.items():
        if name not in epoch:
            raise ValueError(f"'{where}.{name}' is missing")
        _require(holds(epoch[name]), f"{where}.{name}", expected, epoch[name])
    _require(epoch.keys() <= _EPOCH.keys(), where, f"nothing but {', '.join(_EPOCH)}", list(epoch))
    _require(epoch["task"] < tasks, f"{where}.task", f"a number below {tasks}", epoch["task"])


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:  # a whole number of hundreds of digits
        return False


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _is_percent(value: Any) -> bool:
    return value is None or (_is_number(value) and 0 <= value <= 100)


def _is_matrix(value: Any, count: int) -> bool:
    rows = isinstance(value, list) and len(value) == count and all(isinstance(row, list) for row in value)
    return rows and all(len(row) == count and all(map(_is_percent, row)) for row in value)


def _or_none(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or holds(value)


def _of(keys: type, values: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda found: isinstance(found, Mapping) and all(isinstance(k, keys) and values(v) for k, v in found.items())


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_network(value: Any) -> bool:
    """Nothing, or the checksums that tell one run from another; the last is there once a run has been left."""
    first = {"architecture", "first_weights"}
    known = isinstance(value, Mapping) and (not value or first <= value.keys() <= {*first, "last_weights"})
    return known and all(map(_is_text, value.values()))


_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "status": (lambda value: value in STATUSES, f"one of {', '.join(STATUSES)}"),
    "status_reason": (_is_text, "text"),
    "config": (is_config, "settings with a method, a seed and a training of some epochs"),
    "environment": (_of(str, lambda value: value is None or isinstance(value, str | int | float)), "names and values"),
    "data": (_of(str, _is_text), "checksums by name"),
    "tasks": (lambda value: isinstance(value, list) and bool(value) and all(map(_is_text, value)), "names of tasks"),
    "accuracy": (lambda value: isinstance(value, list), "a matrix"),
    "valid_accuracy": (lambda value: isinstance(value, list), "a matrix"),
    "history": (lambda value: isinstance(value, list), "a list of epochs"),
    "memory": (_of(str, _is_count), "numbers of bytes by name"),
    "seconds": (lambda value: _is_number(value) and value >= 0, "a number of at least 0"),
}
_A_TASK: dict[str, tuple[Callable[[Any], bool], str]] = {
    "trained_numbers": (_is_count, "whole numbers"),
    "kept_similarity": (lambda value: value is None or (_is_number(value) and -1 <= value <= 1), "-1 … 1 or null"),
}
_EPOCH: dict[str, tuple[Callable[[Any], bool], str]] = {
    "task": (_is_count, "a whole number"),
    "epoch": (_is_count, "a whole number"),
    "train_loss": (_is_number, "a number"),
    "valid_loss": (_or_none(_is_number), "a number or null"),
    "valid_accuracy": (_is_percent, "a percentage or null"),
    "lr": (_is_number, "a number"),
}


def _require(holds: bool, name: str, expected: str, found: Any) -> None:
    if not holds:
        raise ValueError(f"'{name}' must be {expected}, and is {_kind(found)}")


def _kind(value: Any) -> str:
    """A value in few words."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of many digits"
    return text if len(text) <= 40 else f"{text[:37]}..."


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no number")
