"""NESS with a private scale: in the directions that old inputs occupy, each task has something for itself.

The four choices are NESS's: directions of layer *inputs*, any *filter*, *reparametrisation*, *moments* or old *data*.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from nesskit.methods.ness import BEFORE_THE_FIRST, NESS
from nesskit.methods.private import PrivateLearning, affine_pairs
from nesskit.networks.task_model import TaskModel
from nesskit.settings import NESSPrivateSettings
from nesskit.spectra.moment import Moment
from nesskit.streams.base import Normalisation
from nesskit.streams.batches import TaskData
from nesskit.streams.fields import Stored


class NESSPrivate(PrivateLearning, NESS):
    """Task t computes x W + (x U) V + (x M) S_t (MᵀW): V is shared and merged as ever, S_t stays with its task.

    M are the directions in which the filter leaves less than half, those that old inputs occupy. There the shared
    weights must stand still, and NESS learns too little; S_t (k, k) mixes anew what old tasks have learned to see
    there. It starts at zero, and the task's name, known at test time as it is for heads, says which S is meant. Nothing
    that S_t does reaches another task. What V does is as small for old tasks as NESS keeps it, in the term MᵀW of their
    scales too: later U are orthogonal to M as far as what old inputs occupy only grows.

    Settings choose S_t (k, d_out) instead, without MᵀW (``private="full"``), in every layer the one with fewer numbers
    (``"smaller"``), or an adapter of low rank that asks for no directions, for comparison; only the strongest
    directions; and whether BatchNorm's affine pair is the task's own.

    The published relative is TRGP, whose scale matrices are one for each old task that a layer trusts.
    """

    name = "ness-private"
    settings_type = NESSPrivateSettings
    replayable = True
    settings: NESSPrivateSettings

    def begin_task(self, model: TaskModel, data: TaskData) -> None:
        """Open the null space, and give the task what it has for itself (nothing to do if nothing is protected)."""
        norms = affine_pairs(model)  # before all but the updates is frozen
        super().begin_task(model, data)
        if self.constrained:
            self.learn_privately(model, {name: space.held for name, space in self.spaces.items()}, norms)

    def parameter_groups(self, model: TaskModel, tasks: Sequence[int], weight_decay: float) -> list[dict[str, Any]]:
        """NESS's, and what the task has for itself."""
        return [*super().parameter_groups(model, tasks, weight_decay), *self.private_groups(model, weight_decay)]

    def _collect(
        self, model: TaskModel, inputs: Sequence[tuple[Stored, Normalisation | None]], first: int
    ) -> dict[str, Moment]:
        """The moments of what layers see of each task with the task's own parts at work; reference inputs have none."""
        total: dict[str, Moment] = {}
        for task, one in enumerate(inputs, first):
            with nullcontext() if task == BEFORE_THE_FIRST else self.own_parts_in_place(model, task):
                moments = super()._collect(model, [one], task)
            total = {name: total[name] + moment if name in total else moment for name, moment in moments.items()}
        return total

    def _warn_that_nothing_is_free(self, task: int) -> None:
        """Only where a task has nothing for itself either."""
        if self.settings.private == "none":
            super()._warn_that_nothing_is_free(task)
