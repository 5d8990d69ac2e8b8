"""Networks by name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from nesskit.networks.mlp import MLP
from nesskit.networks.task_model import TaskModel
from nesskit.seeds import derive_seed
from nesskit.settings import NetworkSettings

if TYPE_CHECKING:
    from nesskit.streams.base import TaskStream

__all__ = ["MLP", "TaskModel", "build_model"]


def build_model(stream: TaskStream, settings: NetworkSettings | None = None, seed: int = 0) -> TaskModel:
    """A freshly initialised network (torch's default initialisation) that fits the tasks of ``stream``.

    Leaves torch's global random state as it was.
    """
    settings = settings or NetworkSettings()
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "network"))
        backbone = MLP(math.prod(stream[0].input_shape), settings.widths, settings.bias)
        return TaskModel(backbone, settings.widths[-1], [len(task.classes) for task in stream])
