"""What subspace methods share: which weights they protect, what they learn after task 1, and what they look at.

A subspace method is four choices: where directions come from, how their spectrum is filtered, how the result is
enforced, and what is remembered. A method's file names its four; the parts stand here, in
:mod:`nesskit.spectra.projections` and in :mod:`nesskit.adaptation.capture`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from nesskit.adaptation.adapt import adaptable_layers
from nesskit.adaptation.capture import call, collect_moments, evaluating
from nesskit.adaptation.watch import Use, watching
from nesskit.adaptation.weights import known_kind
from nesskit.errors import SpectrumError
from nesskit.methods.base import learning
from nesskit.methods.held import HoldingMethod
from nesskit.networks.task_model import TaskModel
from nesskit.spectra.moment import Moment
from nesskit.spectra.precision import at_least_float32
from nesskit.streams.base import normalise
from nesskit.streams.batches import Rows, TaskData, pieces
from nesskit.streams.fields import Inputs, Stored

BATCH = 256  # samples per forward pass when layers are looked at


class SubspaceMethod(HoldingMethod):
    """Task 1 trains everything; later tasks train the weights of linear layers and convolutions, and their own head.

    What no projection protects (biases, the affine parameters of BatchNorm) stays as task 1 left it. A method says
    which layers are held (:meth:`held`) and what of a change is allowed (:meth:`project`).

    With SGD without weight decay that is applied to the gradients, as published; in all other cases to the optimizer's
    step (methods/held.py). None of the publications decays along old directions: where their code has a decay
    (Adam-NSCL's), it is projected with the rest.
    """

    def __init__(self, settings: Any = None) -> None:
        super().__init__(settings)
        self.tasks_learned = 0

    def held(self) -> Collection[str]:
        """Names of the layers that may learn in some directions only; none during task 1."""
        return ()

    def project(self, name: str, change: Tensor) -> Tensor:
        """What is allowed of a change of the weight of layer ``name``, a gradient or a step; linear in ``change``."""
        return change

    def held_parameters(self, model: TaskModel) -> dict[str, nn.Parameter]:
        """Layer name → weight, of the layers that are held."""
        return {name: weight_of(model, name) for name in self.held()}

    def parameter_groups(self, model: TaskModel, tasks: Sequence[int], weight_decay: float) -> list[dict[str, Any]]:
        """Task 1: every weight. Later: the weights of the protected layers, and the heads of ``tasks``."""
        if not self.tasks_learned:
            return super().parameter_groups(model, tasks, weight_decay)
        heads = [p for task in tasks for p in model.heads[task].parameters()]
        weights = [*protected_weights(model).values(), *heads]
        return [{"params": learning(weights), "weight_decay": weight_decay}]

    def train_mode(self, model: TaskModel) -> None:
        """Training mode; after task 1 without running averages, which would drift to the newest task."""
        super().train_mode(model)
        if self.tasks_learned:
            keep_running_statistics(model.backbone)

    def end_task(self, model: TaskModel, data: TaskData) -> Iterable[Any]:
        """Count the task; a method remembers what it needs and calls this."""
        self.tasks_learned += 1
        return ()

    def state_dict(self) -> dict[str, Any]:
        """How many tasks were learned; a method adds its memory."""
        return {"tasks_learned": self.tasks_learned}

    def load_state_dict(self, model: TaskModel, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`."""
        self.tasks_learned = state["tasks_learned"]


def kept_beside(weight: Tensor, tensor: Tensor) -> Tensor:
    """``tensor``, what a projection of ``weight`` needs, on the weight's device and in its type, float32 at least."""
    return tensor.to(weight.device, at_least_float32(weight))


def protected_weights(model: TaskModel) -> dict[str, nn.Parameter]:
    """Layer name → weight, (d_out, …), of every linear layer and convolution of the backbone."""
    return {name: layer.weight for name, layer in protected_layers(model.backbone).items()}  # type: ignore[misc]


def weight_of(model: TaskModel, name: str) -> nn.Parameter:
    """The weight of the protected layer called ``name``; for every step, in which looking for all layers takes long."""
    weight: nn.Parameter = model.backbone.get_submodule(name).weight  # type: ignore[assignment]
    return weight


def protected_layers(backbone: nn.Module) -> dict[str, nn.Module]:
    """Linear layers and convolutions by name: layers whose ``weight`` has a row an output, as projections take it."""
    return {
        name: layer
        for name, layer in adaptable_layers(backbone).items()
        if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }


def keep_running_statistics(model: nn.Module) -> None:
    """Stop the running state of normalisations and of spectral norm: what they hold stays as it is."""
    for module in model.modules():
        if isinstance(module, _NormBase) or _has_spectral_norm(module):
            module.training = False


def _has_spectral_norm(module: nn.Module) -> bool:
    """Whether running the module in training mode moves vectors of spectral norm, in torch's new or old form."""
    old = any(isinstance(hook, SpectralNorm) for hook in module._forward_pre_hooks.values())
    return old or isinstance(module, _SpectralNorm)


def moments_of(
    model: TaskModel, data: TaskData, x: Stored | None = None, samples: Mapping[str, int] | None = None
) -> dict[str, Moment]:
    """Layer name → moment of what every protected layer sees of the task's training inputs.

    Args:
        model: with the task's weights in place.
        data: the task.
        x: raw inputs (n, …) to look at instead of all, see :func:`sample`.
        samples: layer name → how many of them count for it, the first ones. They then pass the network as one batch, as
            in the code of GPM's authors: where BatchNorm has the statistics of a batch, those are of all of them.

    Raises:
        SpectrumError: a layer was never called; says which.
    """
    chosen = data.train.x if x is None else x
    parts = [chosen] if samples else pieces(chosen, BATCH, data.company)
    return moments_of_batches(model, (normalise(part, data.normalisation) for part in parts), samples)


def moments_of_batches(
    model: TaskModel, batches: Iterable[Inputs], samples: Mapping[str, int] | None = None
) -> dict[str, Moment]:
    """Layer name → moment of what every protected layer sees of batches (n, …) of normalised inputs.

    Args:
        model: with the weights of interest in place.
        batches: what it sees.
        samples: layer name → how many samples of a batch count for it, the first ones.

    Raises:
        SpectrumError: a layer was never called; says which.
    """
    return all_seen(collect_moments(model.backbone, batches, list(protected_layers(model.backbone)), samples=samples))


def moments_of_means(model: TaskModel, data: TaskData, size: int) -> dict[str, Moment]:
    """Layer name → moment of the means of the inputs of ``size`` training examples at a time, in random order.

    Raises:
        SpectrumError: a layer was never called; says which.
    """
    weights = protected_weights(model)
    moments = {name: Moment(weight[0].numel(), weight.device) for name, weight in weights.items()}
    batches = (normalise(data.train.x[rows], data.normalisation) for rows in shuffled_rows(data, size))
    for means in batch_means(model.backbone, batches):
        for name, rows in means.items():
            moments[name].update(rows)
    return all_seen(moments)


def all_seen(moments: dict[str, Moment]) -> dict[str, Moment]:
    """The moments as they are; a SpectrumError names a layer of which no input was seen."""
    for name, moment in moments.items():
        if moment.count == 0:
            raise SpectrumError(f"layer '{name}' was never called, so its inputs are unknown and cannot be protected")
    return moments


def shuffled_rows(data: TaskData, size: int) -> Sequence[Tensor]:
    """The rows of the task's training examples in random order, ``size`` at a time."""
    return pieces(torch.randperm(len(data.train.y)).to(data.train.x.device), size, data.company)


@torch.no_grad()
def batch_means(backbone: nn.Module, batches: Iterable[Inputs]) -> Iterable[dict[str, Tensor]]:
    """For each batch: layer name → (positions, d), the mean over the batch of the layer's input at each position."""
    means: dict[str, list[Tensor]] = {}

    def seen(name: str, use: Use) -> None:
        means.setdefault(name, []).extend(rows for rows, _ in use.mean().rows())

    layers = protected_layers(backbone)
    kinds = {name: known_kind(layer) for name, layer in layers.items()}
    for batch in batches:
        means.clear()
        with evaluating(backbone), watching(backbone, layers, kinds, seen) as watch:
            watch.begin(batch)
            call(backbone, batch)
        yield {name: torch.cat(rows) for name, rows in means.items()}


def sample(x: Rows, count: int) -> Rows:
    """``count`` rows of ``x`` drawn without replacement by torch's generator; all of them if there are no more."""
    rows = torch.randperm(len(x))[:count]
    return cast("Rows", x[rows.to(x.device)])
