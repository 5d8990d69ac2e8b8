"""A method of your own: ``nesskit run permuted-digits --method examples/own_method.py:Anchor``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nesskit import Method, MethodSettings


@dataclass(frozen=True)
class AnchorSettings(MethodSettings):
    """Anchor: every weight is held where the last task left it, all alike."""

    strength: float = 0.05
    """λ: how hard it is held."""


class Anchor(Method):
    """Cross-entropy and λ/2 ‖θ - θ*‖², with θ* the backbone's weights at the end of the last task."""

    settings_type = AnchorSettings
    settings: AnchorSettings

    def __init__(self, settings: AnchorSettings | None = None) -> None:
        super().__init__(settings)
        self.anchors: list[Tensor] = []

    def loss(self, model: Any, batch: Any) -> Tensor:
        """What a step minimises."""
        pairs = zip(model.backbone.parameters(), self.anchors, strict=False)  # no anchors during task 1
        moved = sum(((weight - anchor).square().sum() for weight, anchor in pairs), start=torch.zeros(()))
        return super().loss(model, batch) + self.settings.strength / 2 * moved

    def end_task(self, model: Any, data: Any) -> tuple[()]:
        """Called with the best weights of the task in place."""
        self.anchors = [weight.detach().clone() for weight in model.backbone.parameters()]
        return ()

    def state_dict(self) -> dict[str, Any]:
        """What a stopped run needs to go on."""
        return {"anchors": self.anchors}

    def load_state_dict(self, model: Any, state: Mapping[str, Any]) -> None:
        """Restore that."""
        device = next(model.parameters()).device
        self.anchors = [anchor.to(device) for anchor in state["anchors"]]

    def memory_report(self) -> dict[str, int]:
        """What is kept between tasks, in bytes."""
        return {"anchors": sum(anchor.nbytes for anchor in self.anchors)}
