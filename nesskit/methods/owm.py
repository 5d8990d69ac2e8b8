"""OWM: orthogonal weights modification (Zeng, Chen, Cui and Yu, Continual learning of context-dependent processing in
neural networks, Nature Machine Intelligence 2019).

The four choices: directions come from layer *inputs*, of which only the mean of each batch is looked at; the spectrum
is filtered *softly*, 1/(1 + σ²/α); it is enforced by projecting the *gradient*; remembered is one *projector* a layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from nesskit.methods.subspace import SubspaceMethod, batch_means, kept_beside, protected_weights, shuffled_rows
from nesskit.networks.task_model import TaskModel
from nesskit.settings import OWMSettings
from nesskit.spectra.precision import float64_device
from nesskit.streams.base import normalise
from nesskit.streams.batches import TaskData


class OWM(SubspaceMethod):
    """Every task after the first follows G P, with P = I - A (AᵀA + α I)⁻¹ Aᵀ of the old batch-mean inputs A (Eq. 1).

    P is never computed from A: recursive least squares takes in one mean after another and forgets it (Eq. 3 to 5 of
    the paper's Methods, see :func:`update_projector`). A convolution has one mean at each of its positions.

    The authors' code differs: projectors grow with every training batch, in task 1 too, whose gradient is projected as
    well; the patches of a convolution are taken with a stride of 2 from a mean image that is padded by repeating its
    border; gradients are clipped at a norm of 10. Here a convolution's inputs are those that it really has, the
    projectors grow when a task is learned (the text), and task 1 is free.

    Attributes:
        projectors: layer name → P (d, d), in the weight's dtype, float32 at least.
    """

    name = "owm"
    settings_type = OWMSettings
    replayable = True
    settings: OWMSettings

    def __init__(self, settings: OWMSettings | None = None) -> None:
        super().__init__(settings)
        self.projectors: dict[str, Tensor] = {}

    def held(self) -> Collection[str]:
        """Every layer that has a projector."""
        return self.projectors.keys()

    def project(self, name: str, change: Tensor) -> Tensor:
        """G P."""
        return (change.flatten(1) @ self.projectors[name]).view_as(change)

    def end_task(self, model: TaskModel, data: TaskData) -> Iterable[Any]:
        """Take the task's training examples, in batches in random order, into the projectors."""
        rows = shuffled_rows(data, self.settings.batch)
        projectors = {name: self._projector(name, weight) for name, weight in protected_weights(model).items()}
        means = batch_means(model.backbone, (normalise(data.train.x[p], data.normalisation) for p in rows))
        for number, inputs in enumerate(means):
            alpha = self.settings.alpha * self.settings.alpha_decay ** (number / len(rows))
            for name, X in inputs.items():
                projectors[name] = update_projector(projectors[name], X, alpha)
        weights = protected_weights(model)
        self.projectors = {name: kept_beside(weights[name], P) for name, P in projectors.items()}
        return super().end_task(model, data)

    def _projector(self, name: str, weight: Tensor) -> Tensor:
        """P (d, d) in float64 as it stands; the identity before anything was learned."""
        device = float64_device(weight.device)
        if name in self.projectors:
            return self.projectors[name].to(device, torch.float64)
        return torch.eye(weight[0].numel(), dtype=torch.float64, device=device)

    def state_dict(self) -> dict[str, Any]:
        """The projectors."""
        return {**super().state_dict(), "projectors": dict(self.projectors)}

    def load_state_dict(self, model: TaskModel, state: Mapping[str, Any]) -> None:
        """Restore the projectors."""
        super().load_state_dict(model, state)
        weights = protected_weights(model)
        self.projectors = {name: kept_beside(weights[name], P) for name, P in state["projectors"].items()}

    def memory_report(self) -> dict[str, int]:
        """Bytes of the projectors."""
        return {"projectors": sum(P.nbytes for P in self.projectors.values())}


def update_projector(projector: Tensor, rows: Tensor, alpha: float) -> Tensor:
    """P after seeing the inputs X: P - P Xᵀ (α I + X P Xᵀ)⁻¹ X P, that is (P⁻¹ + Xᵀ X/α)⁻¹.

    For one row x this is Sherman and Morrison's P - P x xᵀ P/(α + xᵀ P x), the step of the paper; several rows at once
    (Woodbury) give what one after another would.

    Args:
        projector: P, (d, d), symmetric.
        rows: X, (m, d).
        alpha: α > 0; the smaller, the closer P comes to projecting X out.
    """
    X = rows.to(projector)
    if len(X) > X.shape[1]:
        X = torch.linalg.qr(X, mode="r").R  # only Xᵀ X matters, and d rows are enough for that
    seen = X @ projector
    inner = alpha * torch.eye(len(X)).to(X) + seen @ X.T
    updated = projector - seen.T @ torch.linalg.solve(inner, seen)
    return (updated + updated.T) / 2
