"""Optimizers: sharpness-aware minimisation, and the optimizer that some settings ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from nesskit.settings import TrainingSettings


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation (Foret et al. 2021): descend by the gradient found at the worst point nearby.

    One step evaluates the loss twice: at w for the gradient g, and at w + ρ g/‖g‖₂ for the gradient that is then handed
    to the base optimizer, back at w (their Algorithm 1).

    Args:
        params: parameters or parameter groups.
        base: makes the optimizer that takes the step, for example ``torch.optim.SGD``.
        rho: ρ > 0, the radius of the neighbourhood.
        **defaults: settings of the base optimizer.
    """

    def __init__(
        self, params: Iterable[Any], base: Callable[..., torch.optim.Optimizer], rho: float = 0.05, **defaults: Any
    ) -> None:
        if not rho > 0:
            raise ValueError(f"rho must be above 0, got {rho}")
        self.base = base(params, **defaults)
        self.rho = rho
        super().__init__(self.base.param_groups, self.base.defaults)
        self._share_with_base()

    def _share_with_base(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # type: ignore[override]
        """One update.

        Args:
            closure: clears the gradients, computes the loss, calls ``backward`` and returns the loss.

        Returns:
            The loss at w.
        """
        with torch.enable_grad():
            loss = closure()
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        here = [p.clone() for p in parameters]  # restored exactly: adding and subtracting would leave round-off
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
        try:
            for p, g in zip(parameters, gradients, strict=True):
                p.add_(g * (self.rho / (norm + 1e-12)))
            with torch.enable_grad():
                closure()
        finally:  # also when somebody interrupts: the point nearby is no place to stay
            for p, w in zip(parameters, here, strict=True):
                p.copy_(w)
        self.base.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state: SAM itself remembers nothing."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the base optimizer's state."""
        self.base.load_state_dict(state_dict)
        self._share_with_base()


def make_optimizer(settings: TrainingSettings, groups: list[dict[str, Any]], task: int) -> torch.optim.Optimizer:
    """The optimizer of ``settings`` for the parameter ``groups`` of task number ``task`` (0 for the first).

    With ``sam_tasks="first"``, the later tasks take steps of the base optimizer alone. Adam's fused kernel, one pass
    over the memory, is 2 to 4 times as fast as torch's loop and equal to it but for the last bit. (That of SGD refuses
    parameters that get their first gradient at different steps, as the heads do in joint training.)
    """
    if settings.optimizer == "adam":
        return torch.optim.Adam(groups, lr=settings.lr, fused=True)
    if settings.optimizer == "sam" and (task == 0 or settings.sam_tasks == "all"):
        return SAM(groups, torch.optim.SGD, settings.sam_rho, lr=settings.lr, momentum=settings.momentum)
    return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)


def forget_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimizer go on as a fresh one would: all that it remembers of earlier steps becomes 0, where it is."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()
