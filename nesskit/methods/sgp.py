"""SGP: scaled gradient projection (Saha and Roy, Continual Learning with Scaled Gradient Projection, AAAI 2023).

The four choices: directions come from layer *inputs* of a few sampled images; the spectrum is cut at a share of its
*energy*, and every direction kept has an *importance*; it is enforced by projecting the *gradient*, the more of it the
more a direction matters; remembered are *bases* and importances.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nesskit.methods.gpm import GPM
from nesskit.methods.subspace import kept_beside
from nesskit.networks.task_model import TaskModel
from nesskit.settings import SGPSettings
from nesskit.spectra.moment import Moment
from nesskit.spectra.projections import energy_along, project_out


class SGP(GPM):
    """GPM whose protection is graded: G - G M Λ Mᵀ with importances Λ in [0, 1].

    A task gives the direction m_i, along which its inputs R have σ_i = ‖m_iᵀ R‖, the importance

        λ_i = (α + 1) σ_i / (α σ_i + max_j σ_j)                                                                (Eq. 2)

    and importances of all tasks add up, to at most 1 (Eq. 10). For a direction that the task itself adds to M, σ_i is a
    singular value of what lies outside of M; for an older one it is the paper's surrogate singular value (Eq. 6 to 8).
    With α → ∞ every λ is 1, and SGP is GPM.

    The defaults were chosen on validation data (20 %) of seeds 1 to 3 of permuted-digits: α of 3, 10 and 30 at GPM's
    threshold of 0.97 + 0.003 a task, then 0.98 and 0.985 + 0.002 a task, since what is held less firmly must be more.

    Attributes:
        importances: layer name → λ (k,), one for each column of the layer's basis.
    """

    name = "sgp"
    settings_type = SGPSettings
    replayable = True
    settings: SGPSettings

    def __init__(self, settings: SGPSettings | None = None) -> None:
        super().__init__(settings)
        self.importances: dict[str, Tensor] = {}

    def project(self, name: str, change: Tensor) -> Tensor:
        """G - G M Λ Mᵀ."""
        return project_out(change, self.bases[name], self.importances[name])

    def remember(self, name: str, moment: Moment, share: float, weight: Tensor) -> None:
        """Grow M as GPM does, then add what the task's inputs give each direction of it in importance."""
        super().remember(name, moment, share, weight)
        sizes = energy_along(self.bases[name], moment).clamp(min=0).sqrt()
        new = kept_beside(weight, importance(sizes, self.settings.alpha))
        before = self.importances.get(name, new[:0])
        new[: len(before)] += before
        self.importances[name] = new.clamp(max=1)

    def state_dict(self) -> dict[str, Any]:
        """The bases and importances."""
        return {**super().state_dict(), "importances": dict(self.importances)}

    def load_state_dict(self, model: TaskModel, state: Mapping[str, Any]) -> None:
        """Restore the bases and importances."""
        super().load_state_dict(model, state)
        self.importances = {name: saved.to(self.bases[name]) for name, saved in state["importances"].items()}

    def memory_report(self) -> dict[str, int]:
        """Bytes of the bases and importances."""
        return {**super().memory_report(), "importances": sum(value.nbytes for value in self.importances.values())}


def importance(sizes: Tensor, alpha: float) -> Tensor:
    """(k,) λ_i = (α + 1) σ_i / (α σ_i + max σ), in [0, 1] (Eq. 2); all 0 if every σ (k,) is."""
    if not sizes.any():
        return torch.zeros_like(sizes)
    return (alpha + 1) * sizes / (alpha * sizes + sizes.max())
