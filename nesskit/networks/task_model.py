"""A backbone that all tasks share, and one linear head a task."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nesskit.networks.scaled_weights import ScaledWeights


class TaskModel(nn.Module):
    """Task-incremental network: ``heads[task](backbone(x))``; the task is known also at test time.

    Capture and adaptation concern the backbone alone; a head belongs to one task and cannot be forgotten. A method may
    let a task use the backbone's weights in its own way (TRGP does): ``scaled`` holds how, and is empty otherwise.

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

    def forward(self, x: Tensor, task: int) -> Tensor:
        """Logits (n, classes of the task) for inputs ``x`` (n, …)."""
        return self.heads[task](self.scaled(self.backbone, x, task))
