"""The mean features of each class, by which inputs can be told apart without a head (nearest class mean)."""

from __future__ import annotations

import torch
from torch import Tensor

from nesskit.networks.task_tensors import TaskTensors


class ClassMeans(TaskTensors):
    """For each task μ (classes, features), as its features were when it was learned; none at first.

    They are never computed again: no old input is kept. They stay right as long as features of old inputs do not move,
    which is what a null space is for.
    """

    names = ("mean",)

    def keep(self, task: int, means: Tensor) -> None:
        """From now on ``task`` has these ``means`` (classes, features)."""
        self._keep(task, "means", (means,))

    def of(self, task: int) -> Tensor:
        """μ (classes, features) of ``task``.

        Raises:
            KeyError: it has none.
        """
        numbers = {owner: number for number, (owner, _) in enumerate(self.places)}
        return self._kept(numbers[task])[0]

    def sizes(self) -> dict[str, int]:
        """Bytes of all means; empty if there are none."""
        bytes_kept = sum(self._kept(number)[0].nbytes for number in range(len(self.places)))
        return {"class means": bytes_kept} if self.places else {}


def sums_by_class(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Sums (classes, features) of the features of each class, and how many (classes,) there were: to be added up."""
    sums = features.new_zeros(classes, features.shape[1]).index_add_(0, labels, features)
    return sums, labels.bincount(minlength=classes)


def nearness(features: Tensor, means: Tensor) -> Tensor:
    """Minus the distance ‖x - μ‖ of each feature vector (n, d) to each mean (classes, d): (n, classes)."""
    return -torch.cdist(features, means.to(features))
