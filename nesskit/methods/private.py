"""What a method needs whose tasks have something for themselves, see :mod:`nesskit.networks.private_parts`.

Old tasks know nothing of a new task's own parts, so nothing protects them and nothing has to.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from nesskit.adaptation.weights import known_kind
from nesskit.methods.base import Method
from nesskit.methods.subspace import kept_beside
from nesskit.networks.private_parts import Part, own_parameters
from nesskit.networks.task_model import TaskModel
from nesskit.settings import PrivateSettings
from nesskit.spectra.profile import LayerProfile
from nesskit.streams.batches import TaskData

NORMALISATIONS = (_NormBase, nn.LayerNorm, nn.GroupNorm)  # with an affine pair, if they have one


class PrivateWarning(UserWarning):
    """A layer in which a task gets nothing for itself."""


class PrivateLearning(Method):
    """Every task after the first may learn parts of its own; a method says in which directions.

    A method derives from this class before its own, and calls :meth:`learn_privately` once it knows what old inputs
    occupy.
    """

    settings: PrivateSettings

    def __init__(self, settings: Any = None) -> None:
        super().__init__(settings)
        self.learning: int | None = None  # the task that learns at present
        self.own_shapes: dict[Part, tuple[int, ...]] = {}  # of what it learns for itself
        self.own_sizes: dict[str, int] = {}  # bytes of what all tasks have
        self.learned: list[int] = []  # the tasks that are learned, with or without anything of their own

    def begin_task(self, model: TaskModel, data: TaskData) -> None:
        """The task begins without anything of its own."""
        self.learning = data.index
        model.private.begin(data.index)
        super().begin_task(model, data)

    def learn_privately(self, model: TaskModel, occupied: Mapping[str, Tensor], norms: Mapping[Part, Tensor]) -> None:
        """Let the present task learn what the settings ask for, from now on.

        Args:
            model: what learns.
            occupied: layer name → (d, k) directions that belong to old tasks, the strongest first.
            norms: the affine pairs of the normalisations, as :func:`affine_pairs` had them.
        """
        assert self.learning is not None
        parts: dict[Part, Tensor] = {}
        if self.settings.private != "none":
            for name, directions in occupied.items():
                parts |= self._parts_of(model, name, directions)
        if self.settings.norm == "private":
            parts |= norms
        self.own_shapes = {part: tuple(value.shape) for part, value in parts.items()}
        model.private.begin(self.learning, parts)

    def _parts_of(self, model: TaskModel, name: str, directions: Tensor) -> dict[Part, Tensor]:
        """What the task gets in one layer, with its first values: a layer that computes as before."""
        layer, form = model.backbone.get_submodule(name), self.settings.private
        kind = known_kind(layer)
        weight = kind.layout.matrix(layer, kind.weight_of(layer).detach())
        outputs, d = weight.shape
        if form == "adapter":
            rank = min(self.settings.directions or d, d, outputs)
            down = nn.init.kaiming_uniform_(kept_beside(weight, weight.new_empty(rank, d)), a=math.sqrt(5))
            return {Part("down", name): down, Part("up", name): down.new_zeros(outputs, rank)}
        rows = model.private.grow(name, kept_beside(weight, directions), self.settings.directions)
        k = len(rows)
        if k == 0:
            warnings.warn(
                f"layer '{name}': old inputs occupy none of its directions, so a task has nothing for itself there",
                PrivateWarning,
                stacklevel=4,
            )
            return {}
        # With k > d_out the full S has fewer numbers, and can do all that a scale can.
        if form == "scale" or (form == "smaller" and k <= outputs):
            return {Part("scale", name): rows.new_zeros(k, k)}
        return {Part("full", name): rows.new_zeros(k, outputs)}

    def private_groups(self, model: TaskModel, weight_decay: float) -> list[dict[str, Any]]:
        """A parameter group of what the present task learns for itself; none if that is nothing."""
        values = list(model.private.values)
        return [{"params": values, "weight_decay": weight_decay}] if values else []

    def end_task(self, model: TaskModel, data: TaskData) -> Iterable[LayerProfile]:
        """What the task has learned for itself stays with it."""
        self._settle(model)
        return super().end_task(model, data)

    def end_run(self, model: TaskModel) -> None:
        """In the middle of a task, too, the model gets what the task has learned so far."""
        self._settle(model)
        super().end_run(model)

    def own_parts_in_place(self, model: TaskModel, task: int) -> AbstractContextManager[None]:
        """Inside, the backbone is what ``task`` makes of it: for whoever looks at what its layers see."""
        if task == self.learning:
            self._settle(model)
        return model.private.in_place(model.backbone, task)

    def _settle(self, model: TaskModel) -> None:
        learned = model.private.learned  # the state of a model says nothing of them as long as none has parts
        learned += [task for task in self.learned if task not in learned]
        model.private.end()
        self.learned = list(learned)
        self.learning, self.own_shapes, self.own_sizes = None, {}, model.private.sizes()

    def state_dict(self) -> dict[str, Any]:
        """Which task learns, and what it learns for itself; the values are the model's."""
        shapes = {f"{part.form} {part.name}": list(shape) for part, shape in self.own_shapes.items()}
        own = {"learning": self.learning, "own_shapes": shapes, "own_sizes": dict(self.own_sizes)}
        return {**super().state_dict(), **own, "learned": list(self.learned)}

    def load_state_dict(self, model: TaskModel, state: Mapping[str, Any]) -> None:
        """Restore it; inside a task give ``model`` the parts, whose values follow after."""
        # Checkpoints of older versions know of nothing private.
        self.learning, self.own_sizes = state.get("learning"), dict(state.get("own_sizes", {}))
        self.learned = list(state.get("learned", ()))
        self.own_shapes = {Part.parse(key): tuple(shape) for key, shape in state.get("own_shapes", {}).items()}
        if self.learning is not None:
            like = next(parameter for parameter in model.backbone.parameters() if parameter.is_floating_point())
            empty = kept_beside(like, like.detach()).new_empty(0)
            model.private.begin(self.learning, {part: empty.new_zeros(s) for part, s in self.own_shapes.items()})
        super().load_state_dict(model, state)

    def memory_report(self) -> dict[str, int]:
        """Bytes of what tasks have for themselves, and of the directions in which."""
        return {**super().memory_report(), **self.own_sizes}


def affine_pairs(model: TaskModel) -> dict[Part, Tensor]:
    """Scale and shift of every normalisation of the backbone; what the user froze gets no twin and is left out."""
    pairs = own_parameters(model.backbone, NORMALISATIONS)
    return {part: parameter.detach() for part, parameter in pairs.items() if parameter.requires_grad}
