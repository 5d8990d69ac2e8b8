"""GPM: gradient projection memory (Saha, Garg and Roy, Gradient Projection Memory for Continual Learning, ICLR 2021).

The four choices: directions come from layer *inputs* of a few sampled images; the spectrum is cut at a share of its
*energy* that grows with the tasks; it is enforced by projecting the *gradient*; remembered are *bases*.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor

from nesskit.methods.subspace import SubspaceMethod, kept_beside, moments_of, protected_weights, sample
from nesskit.networks.task_model import TaskModel
from nesskit.settings import GPMSettings
from nesskit.spectra.moment import Moment
from nesskit.spectra.projections import grow_basis, project_out
from nesskit.streams.batches import TaskData


class GPM(SubspaceMethod):
    """Every task after the first follows its gradient without its part along the old inputs: G - G M Mᵀ (Eq. 6, 7).

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

    def held(self) -> Collection[str]:
        """Every layer that has a basis."""
        return self.bases.keys()

    def project(self, name: str, change: Tensor) -> Tensor:
        """G - G M Mᵀ."""
        return project_out(change, self.bases[name])

    def end_task(self, model: TaskModel, data: TaskData) -> Sequence[Any]:
        """Add the directions of the task's inputs to M, so that it holds the threshold's share of their energy."""
        share = min(self.settings.threshold + self.settings.increment * data.index, 1.0)
        moments = self.moments(model, data)
        for name, weight in protected_weights(model).items():
            self.remember(name, moments[name], share, weight)
        return super().end_task(model, data)

    def moments(self, model: TaskModel, data: TaskData) -> dict[str, Moment]:
        """Layer name → moment of the inputs whose directions are added: those of a few examples of the task."""
        return moments_of(model, data, sample(data.train.x, self.settings.samples))

    def remember(self, name: str, moment: Moment, share: float, weight: Tensor) -> None:
        """Grow the M of one layer, whose ``weight`` says in which type (float32 at least) and where it is kept."""
        basis = self.bases.get(name, weight.new_empty(moment.dimension, 0))
        self.bases[name] = kept_beside(weight, grow_basis(basis, moment, share))

    def state_dict(self) -> dict[str, Any]:
        """The bases."""
        return {**super().state_dict(), "bases": dict(self.bases)}

    def load_state_dict(self, model: TaskModel, state: Mapping[str, Any]) -> None:
        """Restore the bases."""
        super().load_state_dict(model, state)
        weights = protected_weights(model)
        self.bases = {name: kept_beside(weights[name], basis) for name, basis in state["bases"].items()}

    def memory_report(self) -> dict[str, int]:
        """Bytes of the bases."""
        return {"bases": sum(basis.nbytes for basis in self.bases.values())}
