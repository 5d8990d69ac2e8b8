"""A backbone that all tasks share, and one linear head a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.func import functional_call

from nesskit.networks.gates import TaskGates
from nesskit.networks.private_parts import PrivateParts
from nesskit.networks.scaled_weights import ScaledWeights


class TaskModel(nn.Module):
    """Task-incremental network: ``heads[task](backbone(x))``; the task is known also at test time.

    Capture and adaptation concern the backbone alone; a head belongs to one task and cannot be forgotten. A method may
    let a task use the backbone in its own way: with weights of its own (``private``, see ness-private), with scaled
    ones (``scaled``, see TRGP), or with so much of each unit (``gates``, see HAT). All of them are empty otherwise.

    Args:
        backbone: any module that maps inputs (n, …) to features (n, features). Inputs may be a mapping of tensors; the
            backbone then gets them by name, ``backbone(**x)``.
        features: width of the features.
        class_counts: number of classes of each task, in the order of the stream.
    """

    def __init__(self, backbone: nn.Module, features: int, class_counts: Sequence[int]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(nn.Linear(features, count, bias=False) for count in class_counts)
        self.scaled = ScaledWeights()
        self.private = PrivateParts(len(class_counts))
        self.gates = TaskGates()
        like = next((parameter for parameter in backbone.parameters() if parameter.is_floating_point()), None)
        if like is not None:
            self.heads.to(like.dtype)

    def forward(self, x: Tensor | Mapping[str, Tensor], task: int) -> Tensor:
        """Logits (n, classes of the task) for inputs ``x`` (n, …).

        Floating-point inputs become of the type of the model's weights, integers stay what they are.
        """
        head, scaled = self.heads[task], self.scaled.weights(self.backbone, task)
        if scaled:
            return head(self.features(x, scaled))
        with self.gates.at_work(self.backbone, task):
            return head(_call_with(self.backbone, self.private.weights(self.backbone, task), _in_type_of(head, x)))

    def features(self, x: Tensor | Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Features (n, features) of inputs ``x`` (n, …).

        Args:
            x: inputs, a tensor or several by name.
            weights: layer name → weight to compute with instead of the layer's own.
        """
        names = {f"{layer}.weight".removeprefix("."): weight for layer, weight in (weights or {}).items()}
        return _call_with(self.backbone, names, _in_type_of(self.heads[0], x))

    def forget_own_parts(self) -> None:
        """From now on all tasks use the backbone's weights as they are."""
        self.scaled.clear()
        self.gates.clear()
        self.private.clear()
        self.private.rest()


def _call_with(backbone: nn.Module, parameters: Mapping[str, Tensor], x: Tensor | Mapping[str, Tensor]) -> Tensor:
    """``backbone(x)``, computed with other tensors (by name) in place of some of its parameters."""
    args, named = ((), dict(x)) if isinstance(x, Mapping) else ((x,), {})
    features: Tensor = (
        functional_call(backbone, dict(parameters), args, named) if parameters else backbone(*args, **named)
    )
    return features


def _in_type_of(head: nn.Module, x: Tensor | Mapping[str, Tensor]) -> Tensor | Mapping[str, Tensor]:
    """Floating-point inputs in the type of a head's weight, others as they are."""
    weight = head.weight
    assert isinstance(weight, Tensor)
    if isinstance(x, Mapping):
        return {name: t.to(weight.dtype) if t.is_floating_point() else t for name, t in x.items()}
    return x.to(weight.dtype) if x.is_floating_point() else x
