"""BatchNorm for continual learning: which statistics are used at test time.

``batch``: those of the batch at hand, at test time too, as in the paper's networks. An answer then depends on the other
images of its batch: right on shuffled test batches, the same network may fall apart on batches sorted by class.

``running``: averages gathered in training. Answers no longer depend on the batch; NESS stops the averages after task 1,
because averages that follow the newest task are themselves a way to forget.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

Norm = Literal["batch", "running"]


def batch_norm(channels: int, norm: Norm, images: bool = True) -> nn.Module:
    """A BatchNorm over (n, channels, h, w), or over (n, channels) if not ``images``."""
    kind = nn.BatchNorm2d if images else nn.BatchNorm1d
    return kind(channels, track_running_stats=norm == "running")
