"""One head over the classes of all tasks, for streams whose tasks have no name when they are tested.

It belongs to what the tasks share, and so to the backbone: a method protects its weight as it protects any other layer,
NESS in the null space of old features. What stands in a task's place of a head only picks the classes seen so far.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from nesskit.networks.units import Units, units_of

NAME = "head"  # of its layer in the backbone


class SharedHead(nn.Module):
    """``head(network(x))``: logits (n, classes) of all classes of all tasks, in the order of the stream.

    Args:
        network: maps inputs to features (n, features).
        features: their width.
        classes: of all tasks together.
    """

    def __init__(self, network: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.network = network
        self.head = nn.Linear(features, classes, bias=False)

    def forward(self, *args: Any, **named: Any) -> Tensor:
        """Logits (n, classes)."""
        logits: Tensor = self.head(self.network(*args, **named))
        return logits

    def units(self) -> tuple[Units, ...]:
        """Those of the network, the last of which feed the head, and a unit a class: what HAT gates."""
        inner = [_prefixed(each, "network.") for each in units_of(self.network)]
        inner[-1] = dataclasses.replace(inner[-1], feed=(*inner[-1].feed, NAME))
        return (*inner, Units((NAME,), (NAME,)))


class SeenClasses(nn.Module):
    """The first ``count`` of all logits: the classes of the tasks seen so far; at first all.

    The count is part of the model's state, so that a model that is loaded answers as the one that was saved.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.count = classes

    def forward(self, logits: Tensor) -> Tensor:
        """(n, classes) → (n, count)."""
        return logits[:, : self.count]

    def get_extra_state(self) -> Tensor:
        """The count."""
        return torch.tensor(self.count)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore it."""
        self.count = int(state)


def _prefixed(units: Units, prefix: str) -> Units:
    """The same units in a module in which their network stands under ``prefix``."""
    places = (units.made_by, units.gated_at, units.feed)
    made_by, gated_at, feed = (tuple(prefix + name for name in names) for names in places)
    return Units(made_by, gated_at, feed)
