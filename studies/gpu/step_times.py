"""How long a training step of each method takes, one operation at a time and replayed as a CUDA graph.

Every step is one of the library's own loop, on real data: two tasks, so that the second finds the network as a method
wants it then. Its first epoch, in which libraries set themselves up and graphs are recorded, does not count; of the
others the quickest does, since whatever else runs on the machine can only slow one down.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch

from nesskit.experiments.configure import configure
from nesskit.methods import make_method
from nesskit.networks import build_model
from nesskit.runs.events import EpochFinished, Event
from nesskit.settings import RunSettings
from nesskit.streams import load_stream
from nesskit.streams.base import Examples, Task, TaskStream
from nesskit.training.fit import fit
from nesskit.training.graphs import GraphWarning
from studies.gpu.essentials import graphs
from studies.gpu.plan import Plan

EPOCHS = 4  # of each task


def two_tasks(plan: Plan) -> TaskStream:
    """The benchmark's first two tasks with fewer examples, none of them to validate: an epoch is its steps."""
    stream = load_stream(plan.benchmark, seed=1).first(2)
    return TaskStream(stream.name, [_shortened(task, plan.step_examples) for task in stream], stream.checksums)


def step_time(method: str, plan: Plan, stream: TaskStream, device: torch.device) -> dict[str, Any]:
    """Seconds of a step of the second task: ``eager`` and, on a GPU and if the method's can be replayed, ``graph``.

    An error of a method stands under ``error``, in words.
    """
    found: dict[str, Any] = {"eager": None, "graph": None}
    try:
        settings = _without_validation(configure(plan.benchmark, method, plan.step_preset, seed=1))
        with graphs("off"):
            found["eager"] = _seconds(settings, stream, device)
        if device.type == "cuda" and make_method(method).replayable:
            with graphs("on"), warnings.catch_warnings():
                warnings.simplefilter("error", GraphWarning)  # or the time of single operations would stand there
                found["graph"] = _seconds(settings, stream, device)
    except Exception as error:  # of one method; the others are measured all the same
        found["error"] = f"{type(error).__name__}: {error}"
    return found


def _shortened(task: Task, count: int) -> Task:
    """The task with ``count`` of its training and test examples, at random places already."""
    train, test = (Examples(part.x[:count], part.y[:count]) for part in (task.train, task.test))
    nothing = Examples(train.x[:0], train.y[:0])
    return dataclasses.replace(task, train=train, valid=nothing, test=test)


def _without_validation(settings: RunSettings) -> RunSettings:
    """The same steps, for an equal number of epochs at one learning rate."""
    training = dataclasses.replace(settings.training, epochs=EPOCHS, lr_patience=0, kept_weights="last")
    return dataclasses.replace(settings, training=training, validation_share=0.0)


def _seconds(settings: RunSettings, stream: TaskStream, device: torch.device) -> float:
    """Seconds of a step of the last stage: the second task or, in joint training, both."""
    ends: list[float] = []  # of the stage's epochs; each waits for the GPU, to see the loss

    def listen(event: Event) -> None:
        if isinstance(event, EpochFinished) and event.task == 1:
            ends.append(time.perf_counter())

    method = make_method(settings.method, settings.options)
    model = build_model(stream, settings.network, settings.seed)
    run = fit(model, stream, method, settings.training, seed=settings.seed, device=device, listeners=[listen])
    if run.interrupted:
        raise KeyboardInterrupt
    learned: Sequence[Task] = stream.tasks if method.learns_together else stream.tasks[1:]
    steps = sum(math.ceil(len(task.train.y) / settings.training.batch_size) for task in learned)
    return min(later - earlier for earlier, later in itertools.pairwise(ends)) / steps
