"""A backbone that all tasks share, and one linear head a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nesskit.networks.scaled_weights import ScaledWeights


class TaskModel(nn.Module):
    """Task-incremental network: ``heads[task](backbone(x))``; the task is known also at test time.

    Capture and adaptation concern the backbone alone; a head belongs to one task and cannot be forgotten. A method may
    let a task use the backbone's weights in its own way (TRGP does): ``scaled`` holds how, and is empty otherwise.

    Inputs become of the type that the backbone's weights have, and heads start with it: a model of float64 or bfloat16
    takes the same data.

    Args:
        backbone: any module that maps inputs (n, …) to features (n, features).
        features: width of the features.
        class_counts: number of classes of each task, in the order of the stream.
    """

    def __init__(self, backbone: nn.Module, features: int, class_counts: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone
        backbone.register_forward_pre_hook(_in_own_type)
        self.heads = nn.ModuleList(nn.Linear(features, count, bias=False) for count in class_counts)
        self.heads.to(_type_of(backbone))
        self.scaled = ScaledWeights()

    def forward(self, x: Tensor, task: int) -> Tensor:
        """Logits (n, classes of the task) for inputs ``x`` (n, …)."""
        return self.heads[task](self.scaled(self.backbone, x, task))


def _type_of(module: nn.Module) -> torch.dtype | None:
    """The type of the first floating-point parameter, None if there is none."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)


def _in_own_type(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Floating-point inputs in the type of the module's weights."""
    own = _type_of(module)
    return tuple(x.to(own) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs)
