"""LoRA: low-rank adaptation (Hu et al., ICLR 2022), one update for all tasks; NESS's ΔW = U V without a choice of U.

The four choices: directions A are drawn at *random* and learned; *none* is filtered out; what is enforced is the *rank*
alone; of old tasks *nothing* is remembered, so that the update follows the newest one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from nesskit.adaptation.adapt import adaptable_layers
from nesskit.adaptation.low_rank import Factors, LowRank, attach, fold, initial_factors, low_rank_updates
from nesskit.adaptation.weights import known_kind
from nesskit.methods.frozen import StandingBackbone
from nesskit.networks.task_model import TaskModel
from nesskit.settings import LoRASettings
from nesskit.streams.batches import TaskData


class LoRA(StandingBackbone):
    """Every layer computes with W + (α/r) B A, where W stands still from the first task on and A and B learn.

    All layers of the backbone that can be adapted have such an update, but for those that the user froze. A is drawn
    at random, B is zero. One pair serves all tasks: what a new task changes in it, older ones have to live with. When
    the run is over, the update becomes part of W.

    In the paper no bias, embedding or LayerNorm learns, and none does here. It adapts the projections of attention
    alone, which is a setting of the network here: ``layers``.

    With random weights at first, as all of our networks for images and digits have, W stays random and the update is
    all that is ever learned, which is not what LoRA was made for.

    Attributes:
        updates: layer name → its update, as long as it is one.
        merged: layer name → A and B of a run that is over.
    """

    name = "lora"
    settings_type = LoRASettings
    replayable = True
    settings: LoRASettings

    def __init__(self, settings: LoRASettings | None = None) -> None:
        super().__init__(settings)
        self.updates: dict[str, LowRank] = {}
        self.merged: dict[str, Factors] = {}

    def begin_task(self, model: TaskModel, data: TaskData) -> None:
        """Give every layer an update that changes nothing yet, unless it has one."""
        super().begin_task(model, data)
        if not self.updates:
            layers = self._layers(model.backbone)
            self._attach(model, {name: initial_factors(layer, self.settings.rank) for name, layer in layers.items()})

    def parameter_groups(self, model: TaskModel, tasks: Sequence[int], weight_decay: float) -> list[dict[str, Any]]:
        """A and B of every layer, and the heads of ``tasks``."""
        factors = [factor for update in self.updates.values() for factor in (update.A, update.B)]
        groups = super().parameter_groups(model, tasks, weight_decay)
        return [{"params": factors, "weight_decay": weight_decay}, *groups] if factors else groups

    def end_run(self, model: TaskModel) -> None:
        """The updates become part of the weights."""
        self.merged = self.factors
        self._fold(model)
        super().end_run(model)

    @property
    def factors(self) -> dict[str, Factors]:
        """Layer name → A (r, d) and B (d_out, r), of the updates or of a run that is over."""
        return {name: update.factors for name, update in self.updates.items()} or self.merged

    def _layers(self, backbone: nn.Module) -> dict[str, nn.Module]:
        """The layers that can be adapted and that the user did not freeze."""
        layers = adaptable_layers(backbone)
        weights = {name: f"{name}.{known_kind(layer).name}".removeprefix(".") for name, layer in layers.items()}
        return {name: layer for name, layer in layers.items() if weights[name] in self.stopped}

    def _attach(self, model: TaskModel, factors: Mapping[str, Factors]) -> None:
        for name, pair in factors.items():
            attach(model.backbone.get_submodule(name), pair, self.settings.alpha / self.settings.rank)
        self.updates = low_rank_updates(model.backbone)

    def _fold(self, model: TaskModel) -> None:
        fold(model.backbone)
        self.updates = {}

    def state_dict(self) -> dict[str, Any]:
        """A and B of every layer."""
        return {**super().state_dict(), "factors": self.factors}

    def load_state_dict(self, model: TaskModel, state: Mapping[str, Any]) -> None:
        """Give the layers their updates."""
        super().load_state_dict(model, state)
        device = next(model.parameters()).device
        self._attach(model, {name: (A.to(device), B.to(device)) for name, (A, B) in state["factors"].items()})

    def memory_report(self) -> dict[str, int]:
        """Bytes of A and B."""
        size = sum(A.nbytes + B.nbytes for A, B in self.factors.values())
        return {**super().memory_report(), **({"low-rank updates": size} if size else {})}
