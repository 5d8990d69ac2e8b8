"""A backbone that all tasks share, and one linear head a task, or one that they share, too."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor, nn
from torch.func import functional_call

from nesskit.networks.class_means import ClassMeans
from nesskit.networks.gates import TaskGates
from nesskit.networks.private_parts import PrivateParts
from nesskit.networks.scaled_weights import ScaledWeights
from nesskit.networks.shared_head import SeenClasses, SharedHead


class TaskModel(nn.Module):
    """Task-incremental network: ``heads[task](backbone(x))``; the task is known also at test time.

    Capture and adaptation concern the backbone alone; a head belongs to one task and cannot be forgotten. A method may
    let a task use the backbone in its own way: with weights of its own (``private``, see ness-private), with scaled
    ones (``scaled``, see TRGP), or with so much of each unit (``gates``, see HAT). All of them are empty otherwise.

    For streams whose tasks have no name when they are tested, all tasks can share one head over all classes, which is
    a part of the backbone then (:class:`SharedHead`), or classes have ``means`` of their features.

    Args:
        backbone: any module that maps inputs (n, …) to features (n, features). Inputs may be a mapping of tensors; the
            backbone then gets them by name, ``backbone(**x)``.
        features: width of the features.
        class_counts: number of classes of each task, in the order of the stream.
        shared_head: whether all tasks share one head over all their classes.
    """

    def __init__(
        self, backbone: nn.Module, features: int, class_counts: Sequence[int], shared_head: bool = False
    ) -> None:
        super().__init__()
        self.class_counts = tuple(class_counts)
        like = next((parameter for parameter in backbone.parameters() if parameter.is_floating_point()), None)
        self.backbone = SharedHead(backbone, features, sum(class_counts)) if shared_head else backbone
        self.heads = nn.ModuleList(
            SeenClasses(sum(class_counts)) if shared_head else nn.Linear(features, count, bias=False)
            for count in class_counts
        )
        self.scaled = ScaledWeights()
        self.private = PrivateParts(len(class_counts))
        self.gates = TaskGates()
        self.means = ClassMeans()
        if like is not None:
            (self.backbone.head if isinstance(self.backbone, SharedHead) else self.heads).to(like.dtype)

    def forward(self, x: Tensor | Mapping[str, Tensor], task: int) -> Tensor:
        """Logits (n, classes of the task) for inputs ``x`` (n, …); with a shared head of all classes seen so far.

        Floating-point inputs become of the type of the model's weights, integers stay what they are.
        """
        logits: Tensor = self.heads[task](self.task_features(x, task))
        return logits

    def task_features(self, x: Tensor | Mapping[str, Tensor], task: int) -> Tensor:
        """Features (n, features) of inputs ``x`` (n, …), as ``task`` uses the backbone."""
        scaled = self.scaled.weights(self.backbone, task)
        if scaled:
            return self.features(x, scaled)
        with self.gates.at_work(self.backbone, task):
            return _call_with(self.backbone, self.private.weights(self.backbone, task), self._in_own_type(x))

    def features(self, x: Tensor | Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Features (n, features) of inputs ``x`` (n, …).

        Args:
            x: inputs, a tensor or several by name.
            weights: layer name → weight to compute with instead of the layer's own.
        """
        names = {f"{layer}.weight".removeprefix("."): weight for layer, weight in (weights or {}).items()}
        return _call_with(self.backbone, names, self._in_own_type(x))

    @property
    def shares_head(self) -> bool:
        """Whether all tasks share one head over all classes."""
        return isinstance(self.backbone, SharedHead)

    @property
    def tasks_have_parts(self) -> bool:
        """Whether a task uses the backbone in a way of its own: what it answers then depends on the task's name."""
        return any(bool(parts.places) for parts in (self.scaled, self.private, self.gates))

    def classes_of(self, task: int) -> slice:
        """Which of all classes, counted through the stream, are those of ``task``."""
        first = sum(self.class_counts[:task])
        return slice(first, first + self.class_counts[task])

    def see(self, tasks: int) -> None:
        """From now on a shared head answers with the classes of the first ``tasks`` tasks; other heads do not care."""
        for head in self.heads:
            if isinstance(head, SeenClasses):
                head.count = sum(self.class_counts[:tasks])

    def head_parameters(self, tasks: Iterable[int]) -> list[nn.Parameter]:
        """Those of the heads of ``tasks``; of the head that all share, if they do."""
        if isinstance(self.backbone, SharedHead):
            return list(self.backbone.head.parameters())
        return [parameter for task in tasks for parameter in self.heads[task].parameters()]

    def forget_own_parts(self) -> None:
        """From now on all tasks use the backbone's weights as they are."""
        self.scaled.clear()
        self.gates.clear()
        self.means.clear()
        self.private.clear()
        self.private.rest()

    def _in_own_type(self, x: Tensor | Mapping[str, Tensor]) -> Tensor | Mapping[str, Tensor]:
        """Floating-point inputs in the type of the heads' weights, others as they are."""
        dtype = self.head_parameters([0])[0].dtype
        if isinstance(x, Mapping):
            return {name: t.to(dtype) if t.is_floating_point() else t for name, t in x.items()}
        return x.to(dtype) if x.is_floating_point() else x


def _call_with(backbone: nn.Module, parameters: Mapping[str, Tensor], x: Tensor | Mapping[str, Tensor]) -> Tensor:
    """``backbone(x)``, computed with other tensors (by name) in place of some of its parameters."""
    args, named = ((), dict(x)) if isinstance(x, Mapping) else ((x,), {})
    features: Tensor = (
        functional_call(backbone, dict(parameters), args, named) if parameters else backbone(*args, **named)
    )
    return features
