"""DFGP: data augmented flatness-aware gradient projection (Yang et al., ICCV 2023).

The four choices are GPM's. What differs is the gradient that is projected: that of the worst point nearby, in the
space of the weights (as in SAM) and of the data (mixed images).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nesskit.errors import SettingsError
from nesskit.methods.gpm import GPM
from nesskit.networks.task_model import TaskModel
from nesskit.settings import DFGPSettings
from nesskit.streams.batches import Batch
from nesskit.streams.fields import Inputs, described

TINY = 1e-12  # keeps a vanishing gradient from being divided by its norm 0


class Mixing(NamedTuple):
    """How a batch is mixed with itself: example i with share ``shares[i]`` (n,) of example ``partners[i]`` (n,)."""

    shares: Tensor
    partners: Tensor


class DFGP(GPM):
    """GPM with the gradient of a sharpness-aware loss on the raw and on mixed data, in task 1 too.

    With L(W, s) the cross-entropy of the batch plus ``mixup_weight`` times that of the batch mixed by the shares s,
    one step is:

        1. draw s from Beta(``mixup_alpha``, ``mixup_alpha``) and partners at random;
        2. climb to the worst case nearby: W + ρ ∂L/∂W / ‖∂L/∂W‖ and s + ρ' ∂L/∂s / ‖∂L/∂s‖, s kept within [0, 1];
        3. from W, follow the gradient found there, projected as in GPM.

    Simplified: in the authors' code labels are weighted by the mean of s over the batch, with the shares of the two
    images exchanged, and s is changed to raise the loss by way of the images alone. Here an image that is s of its
    partner has s of its partner's label, and ∂L/∂s is the whole derivative. There the climb takes BatchNorm's affine
    parameters along in every task; here after task 1 only what learns then.

    Of the defaults the threshold was chosen, from 0.97 and 0.98, on validation data (20 %) of seeds 1 to 3 of
    permuted-digits; the others are the publication's.
    """

    name = "dfgp"
    settings_type = DFGPSettings
    settings: DFGPSettings

    def __init__(self, settings: DFGPSettings | None = None) -> None:
        super().__init__(settings)

    def check_inputs(self, x: Inputs) -> None:
        """They can be mixed: they are numbers that were measured."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise SettingsError(
                f"method 'dfgp' trains on mixtures of two inputs, and these cannot be mixed ({described(x)}), as token "
                "ids are names and no amounts: choose another method, such as gpm"
            )

    def closure(self, model: TaskModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
        """What leaves the flatness-aware gradient behind, and returns the loss at W."""
        mixing = self._draw(batch)

        def gradients() -> Tensor:
            optimizer.zero_grad()
            loss, worst = self._climb(model, batch, mixing)
            ascent = _gradients(optimizer)
            with moved(ascent, self.settings.rho):
                optimizer.zero_grad()
                self.mixed_loss(model, batch, worst).backward()
            self.adjust_gradients(model)
            return loss

        return gradients

    def mixed_loss(self, model: TaskModel, batch: Batch, mixing: Mixing) -> Tensor:
        """L(W, s): the mean cross-entropy of the batch, and ``mixup_weight`` times that of the mixed batch."""
        (shares, partners), x = mixing, batch.x
        assert isinstance(x, Tensor), "check_inputs refuses others"
        spread = shares.view(-1, *[1] * (x.ndim - 1))
        logits = model(x + spread * (x[partners] - x), batch.task)
        own, other = (self.cross_entropy(logits, y, reduction="none") for y in (batch.y, batch.y[partners]))
        mixed = ((1 - shares) * own + shares * other).mean()
        return self.loss(model, batch) + self.settings.mixup_weight * mixed

    def _draw(self, batch: Batch) -> Mixing:
        alpha = torch.full((len(batch.y),), self.settings.mixup_alpha, device=batch.x.device)
        shares = torch.distributions.Beta(alpha, alpha).sample()
        return Mixing(shares, torch.randperm(len(batch.y), device=batch.x.device))

    def _climb(self, model: TaskModel, batch: Batch, mixing: Mixing) -> tuple[Tensor, Mixing]:
        """The loss, its gradient left in the weights, and the mixing that is worst nearby."""
        shares = mixing.shares.clone().requires_grad_()
        loss = self.mixed_loss(model, batch, Mixing(shares, mixing.partners))
        loss.backward()
        assert shares.grad is not None
        uphill = shares.grad * (self.settings.data_rho / (shares.grad.norm() + TINY))
        return loss, Mixing((shares.detach() + uphill).clamp(0, 1), mixing.partners)


def _gradients(optimizer: torch.optim.Optimizer) -> dict[Tensor, Tensor]:
    """A copy of the gradient of every parameter that has one."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {p: p.grad.clone() for p in parameters if p.grad is not None}


@contextmanager
def moved(gradients: dict[Any, Tensor], rho: float) -> Iterator[None]:
    """Inside, every parameter p is p + ρ g/‖g‖, the norm being that of all together; afterwards exactly p again."""
    norm = torch.stack([gradient.norm() for gradient in gradients.values()]).norm()
    here = {p: p.detach().clone() for p in gradients}
    try:
        with torch.no_grad():
            for p, gradient in gradients.items():
                p.add_(gradient * (rho / (norm + TINY)))
        yield
    finally:
        with torch.no_grad():
            for p, weight in here.items():
                p.copy_(weight)
