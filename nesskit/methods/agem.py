"""A-GEM: averaged gradient episodic memory (Chaudhry et al., Efficient Lifelong Learning with A-GEM, ICLR 2019).

No subspace but one direction: it comes from *gradients* on remembered examples; nothing is filtered; it is enforced by
projecting the *gradient*, and only where it would do harm; remembered are *data*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nesskit.methods.base import Method
from nesskit.methods.remembered import Remembered, packed, size_of, unpacked
from nesskit.networks.task_model import TaskModel
from nesskit.settings import AGEMSettings
from nesskit.streams.base import normalise
from nesskit.streams.batches import TaskData
from nesskit.streams.fields import joined


class AGEM(Method):
    """A step that would raise the loss on old examples loses its part along their gradient.

    With g the gradient of the new task and g_ref that of a batch drawn from the memory of all old tasks, the step
    follows g̃ = g - (gᵀg_ref / g_refᵀg_ref) g_ref if gᵀg_ref < 0, else g (Eq. 10 and 11; the constraint is
    g̃ᵀg_ref ≥ 0). Both are taken over the backbone: heads of old tasks do not move, and the new one serves no old task.
    As published, it is the gradient that is constrained: weight decay and Adam's rescaling come after it. (The authors'
    code takes both over the heads, too: a step that is projected then also lowers the memory's loss in old heads.)

    Attributes:
        memory: per old task its inputs, labels, and how the inputs are normalised.
    """

    name = "a-gem"
    settings_type = AGEMSettings
    settings: AGEMSettings

    def __init__(self, settings: AGEMSettings | None = None) -> None:
        super().__init__(settings)
        self.memory: list[Remembered] = []

    def adjust_gradients(self, model: TaskModel) -> None:
        """Replace the backbone's gradient g by g̃."""
        if not self.memory:
            return
        parameters = [p for p in model.backbone.parameters() if p.grad is not None]
        if not parameters:
            return
        reference = torch.autograd.grad(self.reference_loss(model), parameters, materialize_grads=True)
        gradients = [p.grad for p in parameters if p.grad is not None]
        for gradient, projected in zip(gradients, project(gradients, reference), strict=True):
            gradient.copy_(projected)

    def reference_loss(self, model: TaskModel) -> Tensor:
        """Mean cross-entropy of a batch drawn from the memory of all old tasks alike.

        All its examples pass the backbone together, whatever their task, so that BatchNorm sees one batch.
        """
        counts = torch.tensor([len(y) for _, y, _ in self.memory])
        chosen = torch.randperm(int(counts.sum()))[: self.settings.reference_batch].sort().values
        owners = torch.repeat_interleave(torch.arange(len(counts)), counts)[chosen]
        starts = counts.cumsum(0) - counts
        inputs, labels, tasks = [], [], []
        for task in owners.unique().tolist():
            x, y, normalisation = self.memory[task]
            rows = (chosen[owners == task] - starts[task]).to(x.device)
            inputs.append(normalise(x[rows], normalisation))
            labels.append(y[rows])
            tasks.append(task)
        features = model.features(joined(inputs)).split([len(y) for y in labels])
        losses = [
            self.cross_entropy(model.heads[task](part), y, reduction="sum")
            for task, part, y in zip(tasks, features, labels, strict=True)
        ]
        return torch.stack(losses).sum() / len(chosen)

    def end_task(self, model: TaskModel, data: TaskData) -> Sequence[Any]:
        """Keep some training examples of the task, drawn at random."""
        self.memory.append(Remembered.of(data, torch.randperm(len(data.train.y))[: self.settings.samples]))
        return ()

    def state_dict(self) -> dict[str, Any]:
        """The memory."""
        return {"memory": packed(self.memory)}

    def load_state_dict(self, model: TaskModel, state: Mapping[str, Any]) -> None:
        """Restore the memory."""
        self.memory = unpacked(state["memory"], next(model.parameters()).device)

    def memory_report(self) -> dict[str, int]:
        """Bytes of inputs and labels."""
        return {"old data": size_of(self.memory)}


def project(gradient: Sequence[Tensor], reference: Sequence[Tensor]) -> list[Tensor]:
    """g̃, the vector nearest to g with g̃ᵀg_ref ≥ 0, both given in the same parts of any shape (Eq. 10 and 11)."""
    along = torch.stack([(g * r).sum() for g, r in zip(gradient, reference, strict=True)]).sum()
    length = torch.stack([r.square().sum() for r in reference]).sum()
    share = torch.where(along < 0, along / length, 0.0)  # a tensor: no waiting for a GPU; 0/0 is never chosen
    return [g - share * r for g, r in zip(gradient, reference, strict=True)]
