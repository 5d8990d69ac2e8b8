"""The training steps of one stage, taken one after another as they come."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nesskit.streams.batches import Batch, TaskData


class Steps:
    """Training steps, whose losses are summed up where they are computed.

    Args:
        step: what one step does with a batch; returns its mean loss.
        optimizer: whose learning rate holds for an epoch.
        device: where it computes.

    Attributes:
        total: the losses of the epoch so far, each times its number of samples; a scalar.
    """

    def __init__(self, step: Callable[[Batch], Tensor], optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.step, self.optimizer = step, optimizer
        self.total = torch.zeros((), device=device)

    def begin_epoch(self, lr: float) -> None:
        """Take the steps of an epoch at this learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.total.zero_()

    def take(self, data: TaskData, rows: Tensor) -> None:
        """One step on these rows (n,) of the task's training examples; they lie where the examples do."""
        self.total += self.step(data.batch(data.train, rows)) * len(rows)
