"""An exponential moving average of the weights that learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """w̄ ← β w̄ + (1 - β) w after every step, from the weights that a task begins with.

    An average of updates that lie in a subspace lies there, too: what is constrained stays constrained.

    Args:
        parameters: what learns; the average is of these alone.
        decay: β, in (0, 1); some 1/(1 - β) steps are remembered.
    """

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters = list(parameters)
        self.averages = [parameter.detach().clone() for parameter in self.parameters]
        self._average = get_ema_multi_avg_fn(decay)

    def update(self) -> None:
        """Take the present weights in."""
        self._average(self.averages, [parameter.detach() for parameter in self.parameters], None)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the parameters hold the averages; afterwards exactly what they held."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def keep(self) -> None:
        """From now on the parameters hold the averages."""
        self._swap()

    def load(self, averages: Sequence[Tensor]) -> None:
        """Go on from these averages, as ``averages`` had them."""
        for own, saved in zip(self.averages, averages, strict=True):
            own.copy_(saved)

    @torch.no_grad()
    def _swap(self) -> None:
        """In place, each: a recorded step and an optimizer know the tensors, not their names."""
        for parameter, average in zip(self.parameters, self.averages, strict=True):
            held = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(held)
