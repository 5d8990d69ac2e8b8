"""O-LoRA: orthogonal subspace learning for language model continual learning (Wang et al., Findings of EMNLP 2023).

The four choices: directions to avoid are those that old tasks' updates *read*, the rows of their A, and not what old
inputs occupy; *all* of them count alike; it is asked for by a *penalty*; remembered are the old *A*.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from nesskit.methods.lora import LoRA
from nesskit.networks.task_model import TaskModel
from nesskit.settings import OLoRASettings
from nesskit.spectra.profile import LayerProfile
from nesskit.streams.batches import Batch, TaskData


class OLoRA(LoRA):
    """Task t computes with W + (α/r) Σ_{i≤t} B_i A_i and learns A_t and B_t, with λ Σ_{i<t} ‖A_i A_tᵀ‖_F² in its loss.

    The idea: gradients of a task lie in the rows of its A, so that orthogonal rows do not disturb each other. It is an
    idea of weights. Old inputs may well lie in the rows of A_t, and then old outputs move however orthogonal these are
    to the rows of A_i. NESS looks at the inputs instead.

    A pair that has been learned is added to W, which computes the same; of it A_i is kept. The penalty has squares, as
    in the paper's text; the authors' code sums the absolute values of A_i A_tᵀ.

    Random weights at first: see :class:`nesskit.methods.lora.LoRA`.

    Attributes:
        old: layer name → (t r, d), the rows of A_i of all tasks that are learned, one below the other.
    """

    name = "o-lora"
    settings_type = OLoRASettings
    replayable = True
    settings: OLoRASettings

    def __init__(self, settings: OLoRASettings | None = None) -> None:
        super().__init__(settings)
        self.old: dict[str, Tensor] = {}

    def loss(self, model: TaskModel, batch: Batch) -> Tensor:
        """The mean cross-entropy, and the penalty."""
        loss = super().loss(model, batch)
        penalties = [overlap(self.old[name], update.A) for name, update in self.updates.items() if name in self.old]
        return loss + self.settings.strength * torch.stack(penalties).sum() if penalties else loss

    def end_task(self, model: TaskModel, data: TaskData) -> Iterable[LayerProfile]:
        """Add the pairs to the weights, and keep each A."""
        for name, (A, _) in self.factors.items():
            self.old[name] = torch.cat([self.old[name], A]) if name in self.old else A.clone()
        self._fold(model)
        return super().end_task(model, data)

    def state_dict(self) -> dict[str, Any]:
        """LoRA's, and the old A."""
        return {**super().state_dict(), "old": dict(self.old)}

    def load_state_dict(self, model: TaskModel, state: Mapping[str, Any]) -> None:
        """Restore it."""
        super().load_state_dict(model, state)
        device = next(model.parameters()).device
        self.old = {name: A.to(device) for name, A in state["old"].items()}

    def memory_report(self) -> dict[str, int]:
        """LoRA's, and bytes of the old A."""
        return {**super().memory_report(), "old A": sum(A.nbytes for A in self.old.values())}


def overlap(old: Tensor, new: Tensor) -> Tensor:
    """Σ_i ‖A_i A_tᵀ‖_F², of the rows of all A_i (n, d) and those of A_t (r, d)."""
    return (old @ new.T).square().sum()
