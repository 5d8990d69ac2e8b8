"""What subspace methods share: which weights they protect, what they learn after task 1, and what they look at.

A subspace method is four choices: where directions come from, how their spectrum is filtered, how the result is
enforced, and what is remembered. A method's file names its four; the parts stand here, in
:mod:`nesskit.spectra.projections` and in :mod:`nesskit.adaptation.capture`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nesskit.adaptation.adapt import adaptable_layers
from nesskit.adaptation.capture import collect_moments
from nesskit.errors import SpectrumError
from nesskit.methods.base import Method
from nesskit.networks.task_model import TaskModel
from nesskit.spectra.moment import Moment
from nesskit.streams.base import normalise
from nesskit.streams.batches import TaskData

BATCH = 256  # samples per forward pass when layers are looked at


class SubspaceMethod(Method):
    """Task 1 trains everything; later tasks train the weights of linear layers and convolutions, and their own head.

    What no projection protects (biases, the affine parameters of BatchNorm) stays as task 1 left it.
    """

    def __init__(self, settings: Any = None) -> None:
        super().__init__(settings)
        self.tasks_learned = 0

    def parameter_groups(self, model: TaskModel, tasks: Sequence[int], weight_decay: float) -> list[dict[str, Any]]:
        """Task 1: every weight. Later: the weights of the protected layers, and the heads of ``tasks``."""
        if not self.tasks_learned:
            return super().parameter_groups(model, tasks, weight_decay)
        heads = [p for task in tasks for p in model.heads[task].parameters()]
        return [{"params": [*protected_weights(model).values(), *heads], "weight_decay": weight_decay}]

    def train_mode(self, model: TaskModel) -> None:
        """Training mode; after task 1 without BatchNorm's running averages, which would drift to the newest task."""
        model.train()
        if self.tasks_learned:
            keep_running_statistics(model.backbone)

    def end_task(self, model: TaskModel, data: TaskData) -> Sequence[Any]:
        """Count the task; a method remembers what it needs and calls this."""
        self.tasks_learned += 1
        return ()

    def state_dict(self) -> dict[str, Any]:
        """How many tasks were learned; a method adds its memory."""
        return {"tasks_learned": self.tasks_learned}

    def load_state_dict(self, model: TaskModel, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.tasks_learned = state["tasks_learned"]


def protected_weights(model: TaskModel) -> dict[str, Tensor]:
    """Layer name → weight, (d_out, …), of every linear layer and convolution of the backbone."""
    return {name: layer.weight for name, layer in protected_layers(model.backbone).items()}  # type: ignore[misc]


def protected_layers(backbone: nn.Module) -> dict[str, nn.Module]:
    """Linear layers and convolutions by name: layers whose ``weight`` has a row an output, as projections take it."""
    return {
        name: layer
        for name, layer in adaptable_layers(backbone).items()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }


def keep_running_statistics(model: nn.Module) -> None:
    """Put every BatchNorm with running averages into evaluation mode: its averages stay as they are."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


def moments_of(model: TaskModel, data: TaskData, x: Tensor | None = None) -> dict[str, Moment]:
    """Layer name → moment of what every protected layer sees of the task's training inputs.

    Args:
        model: with the task's weights in place.
        data: the task.
        x: raw inputs (n, …) to look at instead of all, see :func:`sample`.

    Raises:
        SpectrumError: a layer was never called; says which.
    """
    chosen = data.train.x if x is None else x
    batches = (normalise(piece, data.normalisation) for piece in chosen.split(BATCH))
    moments = collect_moments(model.backbone, batches, list(protected_layers(model.backbone)))
    for name, moment in moments.items():
        if moment.count == 0:
            raise SpectrumError(f"layer '{name}' was never called, so its inputs are unknown and cannot be protected")
    return moments


def sample(x: Tensor, count: int) -> Tensor:
    """``count`` rows of ``x`` drawn without replacement by torch's generator; all of them if there are no more."""
    rows = torch.randperm(len(x))[:count]
    return x[rows.to(x.device)]
