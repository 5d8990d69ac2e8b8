"""GPM: gradient projection memory (Saha, Garg and Roy, Gradient Projection Memory for Continual Learning, ICLR 2021).

The four choices: directions come from layer *inputs* of a few sampled images; the spectrum is cut at a share of its
*energy* that grows with the tasks; it is enforced by projecting the *gradient*; remembered are *bases*.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from nesskit.errors import SettingsError
from nesskit.methods.private import PrivateLearning, affine_pairs
from nesskit.methods.subspace import SubspaceMethod, kept_beside, moments_of, protected_weights, sample
from nesskit.networks.task_model import TaskModel
from nesskit.settings import GPMSettings
from nesskit.spectra.moment import Moment
from nesskit.spectra.projections import grow_basis, project_out
from nesskit.streams.batches import TaskData


class GPM(PrivateLearning, SubspaceMethod):
    """Every task after the first follows its gradient without its part along the old inputs: G - G M Mᵀ (Eq. 6, 7).

    The authors' code differs from Eq. 5: in task 1 it keeps one direction a layer less, so that M holds less than the
    threshold's share (``bases="authors"``; later tasks are as in Eq. 9). And not every layer sees all sampled images:
    the bases of early layers are made from few of them (``samples_of_layers``), since each gives many patches.

    As an option of ours, a task has something for itself along M, see :class:`nesskit.methods.NESSPrivate`.

    Attributes:
        bases: layer name → M (d, k), orthonormal columns.
    """

    name = "gpm"
    settings_type = GPMSettings
    replayable = True
    settings: GPMSettings

    def __init__(self, settings: GPMSettings | None = None) -> None:
        super().__init__(settings)
        self.bases: dict[str, Tensor] = {}

    def check(self, model: TaskModel) -> None:
        """A number of samples for each layer, or for none.

        Raises:
            SettingsError: more or fewer numbers than layers.
        """
        counts, layers = self.settings.samples_of_layers, protected_weights(model)
        if counts and len(counts) != len(layers):
            raise SettingsError(
                f"samples_of_layers has {len(counts)} numbers, but this network has {len(layers)} layers to protect "
                f"({', '.join(layers)}): give one for each, or none"
            )

    def held(self) -> Collection[str]:
        """Every layer that has a basis."""
        return self.bases.keys()

    def project(self, name: str, change: Tensor) -> Tensor:
        """G - G M Mᵀ."""
        return project_out(change, self.bases[name])

    def begin_task(self, model: TaskModel, data: TaskData) -> None:
        """Give the task what it has for itself, if the settings ask for it."""
        super().begin_task(model, data)
        if self.tasks_learned:
            self.learn_privately(model, self.bases, affine_pairs(model))

    def parameter_groups(self, model: TaskModel, tasks: Sequence[int], weight_decay: float) -> list[dict[str, Any]]:
        """Those of any subspace method, and what the task has for itself."""
        return [*super().parameter_groups(model, tasks, weight_decay), *self.private_groups(model, weight_decay)]

    def end_task(self, model: TaskModel, data: TaskData) -> Iterable[Any]:
        """Add the directions of the task's inputs to M, so that it holds the threshold's share of their energy."""
        share = min(self.settings.threshold + self.settings.increment * data.index, 1.0)
        with self.own_parts_in_place(model, data.index):
            moments = self.moments(model, data)
        for name, weight in protected_weights(model).items():
            self.remember(name, moments[name], share, weight)
        return super().end_task(model, data)

    def moments(self, model: TaskModel, data: TaskData) -> dict[str, Moment]:
        """Layer name → moment of the inputs whose directions are added: those of a few examples of the task."""
        settings = self.settings
        counts = dict(zip(protected_weights(model), settings.samples_of_layers, strict=False))  # none: all see all
        return moments_of(model, data, sample(data.train.x, settings.samples), counts)

    def remember(self, name: str, moment: Moment, share: float, weight: Tensor) -> None:
        """Grow the M of one layer, whose ``weight`` says in which type (float32 at least) and where it is kept."""
        first = name not in self.bases
        basis = weight.new_empty(moment.dimension, 0) if first else self.bases[name]
        grown = grow_basis(basis, moment, share)
        one_less = first and self.settings.bases == "authors"
        self.bases[name] = kept_beside(weight, grown[:, :-1] if one_less else grown)

    def state_dict(self) -> dict[str, Any]:
        """The bases."""
        return {**super().state_dict(), "bases": dict(self.bases)}

    def load_state_dict(self, model: TaskModel, state: Mapping[str, Any]) -> None:
        """Restore the bases."""
        super().load_state_dict(model, state)
        weights = protected_weights(model)
        self.bases = {name: kept_beside(weights[name], basis) for name, basis in state["bases"].items()}

    def memory_report(self) -> dict[str, int]:
        """Bytes of the bases, and of what tasks have for themselves."""
        return {**super().memory_report(), "bases": sum(basis.nbytes for basis in self.bases.values())}
