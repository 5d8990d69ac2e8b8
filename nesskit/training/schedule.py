"""Learning rate and patience within one task, as a value."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nesskit.settings import TrainingSettings


@dataclass(frozen=True)
class Schedule:
    """Learning rate and patience within one task: a pure function of the validation losses so far."""

    lr: float
    best_loss: float = math.inf
    bad_epochs: int = 0
    over: bool = False

    def improves(self, valid_loss: float) -> bool:
        """Whether this is a strictly lower validation loss than any before."""
        return valid_loss < self.best_loss

    def after(self, valid_loss: float, settings: TrainingSettings) -> Schedule:
        """After an epoch: a lower rate when patience runs out, the end when the rate is under its minimum."""
        if self.improves(valid_loss):
            return Schedule(self.lr, valid_loss)
        if not settings.lr_patience or self.bad_epochs + 1 < settings.lr_patience:
            return Schedule(self.lr, self.best_loss, self.bad_epochs + 1)
        lr = self.lr * settings.lr_factor
        return Schedule(lr, self.best_loss, over=lr < settings.lr_minimum)
