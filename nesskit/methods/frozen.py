"""A backbone that never learns. Where it was pretrained well, the floor that learning it has to rise above."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nesskit.methods.base import Method, learning
from nesskit.methods.subspace import keep_running_statistics
from nesskit.networks.task_model import TaskModel
from nesskit.settings import FrozenSettings
from nesskit.streams.batches import TaskData


class StandingBackbone(Method):
    """All that the backbone is made of stands still from the first task on; a derived class may let more learn.

    Attributes:
        stopped: names of the backbone's parameters that would have learned, and will again after the run.
    """

    def __init__(self, settings: Any = None) -> None:
        super().__init__(settings)
        self.stopped: list[str] = []

    def begin_task(self, model: TaskModel, data: TaskData) -> None:
        """Stop what learns in the backbone, before its first task."""
        if not self.stopped:
            heads = set(model.head_parameters([]))  # a head that all tasks share is a part of the backbone
            parameters = model.backbone.named_parameters()
            self.stopped = [name for name, p in parameters if p.requires_grad and p not in heads]
            self._let_learn(model, False)

    def parameter_groups(self, model: TaskModel, tasks: Sequence[int], weight_decay: float) -> list[dict[str, Any]]:
        """The heads of ``tasks``."""
        return [{"params": learning(model.head_parameters(tasks)), "weight_decay": weight_decay}]

    def train_mode(self, model: TaskModel) -> None:
        """Training mode, in which running statistics stand still, too."""
        super().train_mode(model)
        keep_running_statistics(model)

    def end_run(self, model: TaskModel) -> None:
        """Whoever gets the model may train all of it."""
        self._let_learn(model, True)
        super().end_run(model)

    def state_dict(self) -> dict[str, Any]:
        """What was stopped."""
        return {**super().state_dict(), "stopped": list(self.stopped)}

    def load_state_dict(self, model: TaskModel, state: Mapping[str, Any]) -> None:
        """Stop it again."""
        super().load_state_dict(model, state)
        self.stopped = list(state["stopped"])
        self._let_learn(model, False)

    def _let_learn(self, model: TaskModel, may: bool) -> None:
        for name in self.stopped:
            model.backbone.get_parameter(name).requires_grad_(may)


class Frozen(StandingBackbone):
    """Only the heads learn, each on the same features, so that nothing is forgotten and nothing transferred.

    With a pretrained encoder these are the features that it came with. A network with random weights, as all of ours
    for images and digits are at first, offers random features: the figure says what a head alone can do with them.
    """

    name = "frozen"
    settings_type = FrozenSettings
    replayable = True
