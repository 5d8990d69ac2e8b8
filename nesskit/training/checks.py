"""What must hold before a run begins: found out before anything is trained or written."""

from __future__ import annotations

from typing import Any

import torch

from nesskit.adaptation.adapt import adapted_layers
from nesskit.adaptation.capture import evaluating
from nesskit.errors import AdaptationError, NesskitError, SettingsError, TrainingError
from nesskit.methods import Method
from nesskit.networks.task_model import TaskModel
from nesskit.settings import TrainingSettings
from nesskit.streams.base import TaskStream
from nesskit.streams.fields import described


def check_arguments(**given: tuple[Any, type]) -> None:
    """Every argument, by name, is of its type.

    Raises:
        SettingsError: one is not.
    """
    for name, (value, kind) in given.items():
        if not isinstance(value, kind):
            raise SettingsError(f"fit needs {name} to be a {kind.__name__}, got a {type(value).__name__}")


def named_device(device: torch.device | str) -> torch.device:
    """The device of that name; SettingsError if torch knows none."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise SettingsError(f"device '{device}' is none that torch knows: use cpu or cuda") from error


def check_run(model: TaskModel, stream: TaskStream, method: Method, settings: TrainingSettings) -> None:
    """The network can learn every task of the stream by that method.

    Raises:
        TrainingError: it has too few heads, does not take a task's inputs, or answers with other numbers of logits; or
            a setting watches validation data that there is none of.
        DataError: the stream lacks what the method needs.
        AdaptationError, SpectrumError: it is still adapted, or is none for the method.
    """
    if not isinstance(model, TaskModel) or len(model.heads) < len(stream):
        raise TrainingError(
            f"fit needs a TaskModel(backbone, features, class_counts) with a head for each of the {len(stream)} tasks, "
            f"got {type(model).__name__}"
        )
    if model.shares_head != (settings.head == "shared"):
        raise TrainingError(
            f"head = {settings.head} needs a network {'with' if settings.head == 'shared' else 'without'} a shared "
            f"head: TaskModel(backbone, features, class_counts, shared_head={settings.head == 'shared'})"
        )
    watching = settings.needs_validation
    if watching and not all(len(task.valid.y) for task in stream):
        raise TrainingError(f"{watching} watches the validation data, but a task has no validation examples")
    _refuse_adapted(model)
    _try(model, stream, method)
    method.check(model)
    method.check_stream(stream)


@torch.no_grad()
def _try(model: TaskModel, stream: TaskStream, method: Method) -> None:
    """Two examples of every task through the network: what does not fit is found out before anything is trained.

    Raises:
        TrainingError: the network does not take the inputs of a task, or answers otherwise than the task has classes.
        NesskitError: the inputs are none for the method.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with evaluating(model):
        for number, task in enumerate(stream):
            where = f"task {number + 1} ('{task.name}')"
            x = task.normalise(task.train.x[:2].to(device))
            try:
                answers = model.heads[number](model.features(x))  # of what is shared: what tasks had goes with the run
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                if isinstance(error, NesskitError):
                    raise
                reason = str(error).strip().split("\n")[0]
                raise TrainingError(
                    f"the network does not take the inputs of {where}, {described(x)}: {reason}"
                ) from error
            fits = len(task.classes) == model.class_counts[number] or not model.shares_head
            expected = sum(model.class_counts) if model.shares_head and fits else len(task.classes)
            if not isinstance(answers, torch.Tensor) or answers.shape != (len(x), expected):
                found = tuple(answers.shape) if isinstance(answers, torch.Tensor) else type(answers).__name__
                raise TrainingError(
                    f"the network must answer {where} with {len(task.classes)} logits a sample, got {found}"
                )
            method.check_inputs(x)


def _refuse_adapted(model: TaskModel) -> None:
    """A model that is adapted already would learn in the free directions of somebody else's past only."""
    layers = list(adapted_layers(model)) or [name for name, m in model.named_modules() if hasattr(m, "_freeze")]
    if layers:
        raise AdaptationError(f"the model is still adapted ({', '.join(layers)}): nesskit.merge(model) first")
