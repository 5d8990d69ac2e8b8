"""Learning rate and patience within one task, as a value."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nesskit.settings import TrainingSettings


def cosine_rate(epoch: int, settings: TrainingSettings) -> float:
    """η_min + (η - η_min) (1 + cos(π e/E))/2 in epoch e of E (Loshchilov and Hutter, SGDR, ICLR 2017, Eq. 5)."""
    share = (1 + math.cos(math.pi * epoch / settings.epochs)) / 2
    return settings.lr_minimum + (settings.lr - settings.lr_minimum) * share


@dataclass(frozen=True)
class Schedule:
    """Learning rate and patience within one task: a pure function of the validation losses so far.

    ``lr`` is what patience has left of the rate; a cosine plan looks at the epoch alone, see :meth:`rate`.
    """

    lr: float
    best_loss: float = math.inf
    bad_epochs: int = 0
    over: bool = False

    def rate(self, epoch: int, settings: TrainingSettings) -> float:
        """The learning rate of ``epoch``, 0 for the first."""
        return self.lr if settings.lr_plan == "patience" else cosine_rate(epoch, settings)

    def improves(self, valid_loss: float) -> bool:
        """Whether this is a strictly lower validation loss than any before."""
        return valid_loss < self.best_loss

    def after(self, valid_loss: float, settings: TrainingSettings) -> Schedule:
        """After an epoch: a lower rate when patience runs out, the end when the rate is under its minimum."""
        if self.improves(valid_loss):
            return Schedule(self.lr, valid_loss)
        if settings.lr_plan != "patience" or not settings.lr_patience or self.bad_epochs + 1 < settings.lr_patience:
            return Schedule(self.lr, self.best_loss, self.bad_epochs + 1)
        lr = self.lr * settings.lr_factor
        return Schedule(lr, self.best_loss, over=lr < settings.lr_minimum)
