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
from nesskit.networks.sentences import build_encoder, has_tokens
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
        SettingsError: the network is none for inputs of that kind or shape.
        DataError: a pretrained network cannot be had, or the sentences were tokenised for another one.
    """
    settings, shape = settings or NetworkSettings(), stream[0].input_shape
    _refuse_other_inputs(settings.name, stream)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "network"))
        if settings.name == "encoder":
            encoder = build_encoder(stream, settings)
            return TaskModel(encoder.train(), encoder.width, [len(task.classes) for task in stream], shared_head)
        assert not isinstance(shape, dict), "refused above"
        backbone = _backbone(settings, shape)
        with torch.no_grad():
            features = backbone.eval()(torch.zeros(2, *shape)).shape[1]
        return TaskModel(backbone.train(), features, [len(task.classes) for task in stream], shared_head)


def _refuse_other_inputs(name: str, stream: TaskStream) -> None:
    """A SettingsError if the network of that name is none for the inputs of ``stream``."""
    shape, tokens = stream[0].input_shape, has_tokens(stream[0].train.x)
    if name == "encoder":
        if not tokens:
            raise SettingsError(
                f"the network encoder takes sentences, and {stream.name} has none: use the network mlp, or another one "
                "for images"
            )
        return
    if isinstance(shape, dict):
        raise SettingsError(
            f"the network {name} takes one tensor, but {stream.name} has the fields {', '.join(shape)}: give "
            "fit() a TaskModel(backbone, features, class_counts) whose backbone takes them by name"
            + (", or use the network encoder" if tokens else "")
        )
    if tokens:
        raise SettingsError(
            f"the network {name} computes with pixels and the like, but {stream.name} has numbers of tokens: use the "
            "network encoder"
        )
    if name != "mlp" and len(shape) != 3:
        raise SettingsError(
            f"the network {name} takes images (channels, height, width), but {stream.name} has inputs of "
            f"shape {shape}: use the network mlp"
        )


def _backbone(settings: NetworkSettings, shape: tuple[int, ...]) -> nn.Module:
    if settings.name == "alexnet":
        return AlexNet(settings.norm, shape[0])
    if settings.name == "convnet":
        return ConvNet(shape, settings.widths, settings.norm)
    if settings.name == "resnet18":
        return ResNet18(settings.norm, stem_stride=settings.stem_stride, channels=shape[0])
    return MLP(math.prod(shape), settings.widths, settings.bias)
