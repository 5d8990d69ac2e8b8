"""Which rows there are: what is run for each, and beside which published line it stands."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nesskit.errors import NesskitError, UnknownNameError
from nesskit.experiments.configure import configure
from nesskit.experiments.running import run_folder
from nesskit.settings import METHOD_SETTINGS, RunSettings


@dataclass(frozen=True)
class Row:
    """One line of the table: a method with a preset, and the same seeds as all others.

    Attributes:
        label: what ``--rows`` takes.
        method, preset, changes: as :func:`nesskit.configure` takes them.
        published: the label of the published line beside which it stands; empty if nobody published one.
    """

    label: str
    method: str
    preset: str
    published: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A benchmark, and what is to be learned about it.

    Attributes:
        rows: in the order of their priority.
        tasks: of the benchmark, the first so many; None for all.
        step_preset, step_examples, step_methods: with which settings steps are timed, on how many training examples of
            a task, and of which methods.
        gigabytes: what a run needs of a GPU's memory: CUDA's own, network, graphs, bases and old data.
        least_seconds: what must be left for a row to be begun.
    """

    name: str
    benchmark: str
    rows: Sequence[Row]
    seeds: Sequence[int]
    step_preset: str
    step_examples: int
    step_methods: Sequence[str] = tuple(METHOD_SETTINGS)
    tasks: int | None = None
    gigabytes: float = 2.0
    least_seconds: float = 60.0

    def settings(self, row: Row) -> list[RunSettings]:
        """The settings of every run of ``row``.

        Raises:
            NesskitError: this nesskit has no such method, preset or setting (yet).
        """
        return [
            dataclasses.replace(
                configure(self.benchmark, row.method, row.preset, seed, **row.changes), tasks=self.tasks
            )
            for seed in self.seeds
        ]

    def chosen(self, labels: Sequence[str] | None) -> list[Row]:
        """The rows with these labels, in the order of priority; all rows for None."""
        known = {row.label: row for row in self.rows}
        for label in labels or ():
            if label not in known:
                raise UnknownNameError("row", label, known)
        return [row for row in self.rows if labels is None or row.label in labels]

    def why_not(self, row: Row) -> str:
        """Why ``row`` cannot be run by this nesskit; empty if it can."""
        try:
            self.settings(row)
        except NesskitError as error:
            return str(error)
        return ""


def folders(settings: Sequence[RunSettings], runs: Path) -> dict[int, Path]:
    """Where the runs lie, by seed."""
    return {each.seed: run_folder(each, runs) for each in settings}


# What helped on the small CIFAR-100 (data/results/private_scale.md), for all methods alike.
AVERAGED: Mapping[str, Any] = {"ema_decay": 0.99}
SMALLER: Mapping[str, Any] = {**AVERAGED, "private": "smaller"}
SAM: Mapping[str, Any] = {"optimizer": "sam", "lr": 0.05, "momentum": 0.0, "sam_tasks": "all"}
WHOLE = Plan(
    "whole",
    "split-cifar100",
    (
        Row("ness-sgdm", "ness", "paper-sgdm", "NESS, SGDm"),
        Row("ness-private", "ness-private", "paper-sgdm"),
        Row("ness-private-averaged", "ness-private", "nesskit-sgdm", changes=SMALLER),
        Row("ness-private-full", "ness-private", "nesskit-sgdm", changes={**AVERAGED, "private": "full"}),
        Row("ness-private-strict", "ness-private", "nesskit-sgdm", changes={**SMALLER, "filter": "nuclear:0.0005"}),
        Row("ness-private-sam", "ness-private", "nesskit-sgdm", changes={**SMALLER, **SAM}),
        Row("ness-averaged", "ness", "nesskit-sgdm", changes=AVERAGED),
        Row("trgp-averaged", "trgp", "published", changes=AVERAGED),
        Row("ness-soft", "ness-soft", "paper-sgdm"),
        Row("sgp", "sgp", "published", "SGP"),
        Row("trgp", "trgp", "published", "TRGP"),
        Row("hat", "hat", "published", "HAT"),
        Row("fs-dgpm", "fs-dgpm", "published", "FS-DGPM"),
        Row("ness-sam", "ness", "paper-sam", "NESS, SAM"),
        Row("finetune", "finetune", "paper-sgdm"),
        Row("joint", "joint", "paper-sgdm"),
    ),
    seeds=(1, 2, 3, 4, 37),
    step_preset="published",
    step_examples=2048,
)
_SHORT = {"epochs": 12, "network_widths": (32, 16), "validation_share": 0.1}
TINY = Plan(
    "tiny",
    "split-digits",
    (
        Row("ness", "ness", "default", changes=_SHORT),
        Row("unknown", "no-such-method", "default", changes=_SHORT),
        Row("finetune", "finetune", "default", changes=_SHORT),
    ),
    seeds=(1, 2),
    tasks=2,
    step_preset="default",
    step_examples=128,
    step_methods=("ness", "finetune", "joint"),
    gigabytes=0.6,
    least_seconds=1.0,
)
PLANS = {plan.name: plan for plan in (WHOLE, TINY)}
