"""Methods that allow only a part of each step, so that something old is held.

What a projection P must hold back is every *step*. Under SGD, with momentum or not, a step is a sum of gradients, and
projecting those is enough: P is linear. Weight decay is added behind them, and Adam rescales every weight by itself:
then old outputs move although every gradient was projected. So there the optimizer proposes a step on the gradients as
they are, and P disposes: W ← W + P(ΔW), decay and momentum included.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nesskit.methods.base import Method
from nesskit.networks.task_model import TaskModel
from nesskit.spectra.precision import at_least_float32
from nesskit.streams.batches import Batch


class HoldingMethod(Method):
    """A method says which parameters are held (:meth:`held_parameters`), and what of a change of them is allowed.

    With SGD without weight decay that is applied to the gradients, in all other cases to the optimizer's step.
    """

    def __init__(self, settings: Any = None) -> None:
        super().__init__(settings)
        self.projects_gradients = True  # or else steps; as the optimizer of the last step needs it

    def held_parameters(self, model: TaskModel) -> Mapping[str, nn.Parameter]:
        """By name, those of which not every change is allowed; none by default."""
        return {}

    def project(self, name: str, change: Tensor) -> Tensor:
        """What is allowed of a change of the held parameter ``name``, a gradient or a step; linear in ``change``."""
        return change

    def step(self, model: TaskModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        """One step of the optimizer, of which only what :meth:`project` allows stays."""
        with self.holding(model, optimizer):
            return super().step(model, batch, optimizer)

    @contextmanager
    def holding(self, model: TaskModel, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        """Around a step of ``optimizer``: of what it changes only what :meth:`project` allows stays."""
        self.projects_gradients = sums_gradients(optimizer)
        if self.projects_gradients:
            yield
            return
        held = self.held_parameters(model)
        before = {name: parameter.detach().clone() for name, parameter in held.items()}
        try:
            yield
        finally:  # also when somebody interrupts: a step that was not projected must not stay
            with torch.no_grad(), full_precision():
                for name, parameter in held.items():
                    parameter.copy_(before[name] + self._projected(name, parameter - before[name]))

    def adjust_gradients(self, model: TaskModel) -> None:
        """Project the gradients of what is held, unless it is the step that is projected."""
        if not self.projects_gradients:
            return
        with full_precision():
            for name, parameter in self.held_parameters(model).items():
                if parameter.grad is not None:
                    parameter.grad.copy_(self._projected(name, parameter.grad))

    def _projected(self, name: str, change: Tensor) -> Tensor:
        """``change`` projected, in float32 at least."""
        return self.project(name, change.to(at_least_float32(change)))


def sums_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Whether every step is a sum of the gradients seen: SGD, with momentum or not, without weight decay; SAM on it."""
    base = getattr(optimizer, "base", optimizer)
    return type(base) is torch.optim.SGD and not any(group["weight_decay"] for group in base.param_groups)


def full_precision() -> AbstractContextManager[Any]:
    """Inside, nothing is computed in half precision, in which a projection would be none."""
    stack = ExitStack()
    for device in ("cpu", "cuda"):
        if torch.is_autocast_enabled(device):
            stack.enter_context(torch.autocast(device, enabled=False))
    return stack
