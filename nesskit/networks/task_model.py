"""A backbone that all tasks share, and one linear head a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from nesskit.networks.gates import TaskGates
from nesskit.networks.scaled_weights import ScaledWeights, call_with


class TaskModel(nn.Module):
    """Task-incremental network: ``heads[task](backbone(x))``; the task is known also at test time.

    Capture and adaptation concern the backbone alone; a head belongs to one task and cannot be forgotten. A method may
    let a task use the backbone's weights in its own way (TRGP does): ``scaled`` holds how, and is empty otherwise. So
    are ``gates``, which say how much of each unit a task uses (HAT).

    Args:
        backbone: any module that maps inputs (n, …) to features (n, features).
        features: width of the features.
        class_counts: number of classes of each task, in the order of the stream.
    """

    def __init__(self, backbone: nn.Module, features: int, class_counts: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(nn.Linear(features, count, bias=False) for count in class_counts)
        self.scaled = ScaledWeights()
        self.gates = TaskGates()
        like = next((parameter for parameter in backbone.parameters() if parameter.is_floating_point()), None)
        if like is not None:
            self.heads.to(like.dtype)

    def forward(self, x: Tensor, task: int) -> Tensor:
        """Logits (n, classes of the task) for inputs ``x`` (n, …), which become of the type of the model's weights."""
        head, own = self.heads[task], self.scaled
        if own.places:
            return head(self.features(x, own.weights(self.backbone, task)))
        if self.gates.places:
            with self.gates.at_work(self.backbone, task):
                return head(self.backbone(_in_type_of(head, x)))
        return head(self.backbone(_in_type_of(head, x)))

    def features(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Features (n, features) of inputs ``x`` (n, …).

        Args:
            x: inputs.
            weights: layer name → weight to compute with instead of the layer's own.
        """
        return call_with(self.backbone, weights or {}, _in_type_of(self.heads[0], x))


def _in_type_of(head: nn.Module, x: Tensor) -> Tensor:
    """Floating-point inputs in the type of a head's weight, others as they are."""
    weight = head.weight
    assert isinstance(weight, Tensor)
    return x.to(weight.dtype) if x.is_floating_point() else x
