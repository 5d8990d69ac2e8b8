"""What a model answers in a test: with the task's name, or without it, as one of all classes seen so far.

Without it the answer is one of all classes, counted through the stream, and right only if it is the very class of the
very task: where two tasks have classes of the same name, those are two classes (van de Ven and Tolias 2019 call it
class-incremental learning).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from nesskit.methods import Method
from nesskit.networks.class_means import nearness, sums_by_class
from nesskit.networks.task_model import TaskModel
from nesskit.streams.batches import Batch, TaskData
from nesskit.streams.fields import Inputs

Head = Literal["task", "shared", "means"]


def right_answers(method: Method, model: TaskModel, batch: Batch, seen: int, head: Head) -> tuple[Tensor, Tensor]:
    """How many answers to ``batch`` are right (a scalar each): as ``head`` has it, and with the task's name.

    Args:
        method: that has learned the first ``seen`` tasks.
        model: in evaluation mode.
        batch: of a task that was seen; its labels are those that it was trained with.
        seen: number of tasks.
        head: as in :class:`nesskit.TrainingSettings`.
    """
    if head == "task":
        named = method.predict(model, batch.x, batch.task)
        right = (named.argmax(dim=1) == batch.y).sum()
        return right, right
    classes = model.classes_of(batch.task)
    if head == "means":
        features = features_by_task(method, model, batch.x, seen)
        logits = torch.cat([nearness(f, model.means.of(task)) for task, f in enumerate(features)], dim=1)
        named, label = model.heads[batch.task](features[batch.task]), batch.y + classes.start
    else:
        whole = method.predict(model, batch.x, batch.task)
        logits = by_shared_head(method, model, batch.x, seen, whole)
        named, label = whole[:, classes], batch.y
    with_name = named.argmax(dim=1) + classes.start == label
    return (logits.argmax(dim=1) == label).sum(), with_name.sum()


def features_by_task(method: Method, model: TaskModel, x: Inputs, seen: int) -> list[Tensor]:
    """The features (n, d) of ``x`` as each task seen would have them: the same for all, unless tasks have own parts."""
    if not model.tasks_have_parts:
        return [method.features(model, x, 0)] * seen
    return [method.features(model, x, task) for task in range(seen)]


def by_shared_head(method: Method, model: TaskModel, x: Inputs, seen: int, logits: Tensor) -> Tensor:
    """Logits (n, classes) of all classes seen.

    Where tasks have parts of their own, each says how likely its own classes are: the highest of all wins.

    Args:
        logits: what one of the tasks answers.
    """
    if not model.tasks_have_parts:
        return logits
    answers = [method.predict(model, x, task)[:, model.classes_of(task)] for task in range(seen)]
    return torch.cat(answers, dim=1)


@torch.no_grad()
def class_means(method: Method, model: TaskModel, data: TaskData, size: int) -> Tensor:
    """The mean features (classes, features) of the training examples of each class of a task, ``size`` at a time.

    A class without an example has the mean 0, which is near to nothing.
    """
    model.eval()
    classes = model.class_counts[data.index]
    parts = [
        sums_by_class(method.features(model, batch.x, batch.task), batch.y, classes)
        for batch in data.batches(data.train, size)
    ]
    sums, counts = (torch.stack(part).sum(dim=0) for part in zip(*parts, strict=True))
    return sums / counts.clamp_min(1).unsqueeze(1)
