"""Networks by name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from nesskit.errors import SettingsError
from nesskit.networks.alexnet import AlexNet
from nesskit.networks.convnet import ConvNet
from nesskit.networks.encoder import Encoder
from nesskit.networks.load import Pretrained, pretrained
from nesskit.networks.mlp import MLP
from nesskit.networks.resnet import ResNet18
from nesskit.networks.task_model import TaskModel
from nesskit.seeds import derive_seed
from nesskit.settings import NetworkSettings

if TYPE_CHECKING:
    from nesskit.streams.base import TaskStream

__all__ = [
    "MLP",
    "AlexNet",
    "ConvNet",
    "Encoder",
    "Pretrained",
    "ResNet18",
    "TaskModel",
    "build_model",
    "pretrained",
]


def build_model(
    stream: TaskStream, settings: NetworkSettings | None = None, seed: int = 0, shared_head: bool = False
) -> TaskModel:
    """A freshly initialised network (torch's default initialisation) that fits the tasks of ``stream``.

    Leaves torch's global random state as it was. All tasks have a head each, or one ``shared_head`` over all classes.

    Raises:
        SettingsError: the network is none for inputs of that shape, or they are several tensors by name.
    """
    settings, shape = settings or NetworkSettings(), stream[0].input_shape
    if isinstance(shape, dict):
        raise SettingsError(
            f"the network {settings.name} takes one tensor, but {stream.name} has the fields {', '.join(shape)}: give "
            "fit() a TaskModel(backbone, features, class_counts) whose backbone takes them by name"
        )
    if settings.name != "mlp" and len(shape) != 3:
        raise SettingsError(
            f"the network {settings.name} takes images (channels, height, width), but {stream.name} has inputs of "
            f"shape {shape}: use the network mlp"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "network"))
        backbone = _backbone(settings, shape)
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(2, *shape)).shape[1]
        return TaskModel(backbone.train(), features, [len(task.classes) for task in stream], shared_head)


def _backbone(settings: NetworkSettings, shape: tuple[int, ...]) -> nn.Module:
    if settings.name == "alexnet":
        return AlexNet(settings.norm, shape[0])
    if settings.name == "convnet":
        return ConvNet(shape, settings.widths, settings.norm)
    if settings.name == "resnet18":
        return ResNet18(settings.norm, stem_stride=settings.stem_stride, channels=shape[0])
    return MLP(math.prod(shape), settings.widths, settings.bias)
