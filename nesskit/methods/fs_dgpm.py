"""FS-DGPM: flattening sharpness for dynamic gradient projection memory (Deng et al., NeurIPS 2021).

The four choices: directions come from layer *inputs* of a few remembered examples; the spectrum is cut at a share of
its *energy*, and every direction kept has an *importance*, which is learned; it is enforced by projecting the
*gradient*, which is that of a point uphill; remembered are *data*, bases and importances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from nesskit.methods.gpm import GPM
from nesskit.methods.held import full_precision
from nesskit.methods.remembered import Remembered, Replay, packed, reservoir, size_of, unpacked
from nesskit.methods.subspace import (
    BATCH,
    kept_beside,
    moments_of_batches,
    protected_weights,
    sample,
    weight_of,
)
from nesskit.networks.task_model import TaskModel
from nesskit.settings import FSDGPMSettings, TrainingSettings
from nesskit.spectra.moment import Moment
from nesskit.spectra.precision import at_least_float32
from nesskit.spectra.projections import project_out
from nesskit.streams.batches import Batch, TaskData, pieces
from nesskit.streams.fields import joined

SHARPNESS = 10.0  # of the sigmoid that keeps importances within (0, 1)
IGNORED = -100  # a label that the cross-entropy does not count


class FSDGPM(GPM):
    """GPM with graded protection that follows the gradient of a flattened loss on new and remembered examples.

    One step on a batch, with M the directions that old inputs occupy in a layer and Λ = diag(λ) their importances:

        1. climb, once for each half H of the batch: w' ← w' + η₁ clip(∂L_H/∂w' M Λ Mᵀ, ±c), beginning at w' = w;
        2. after each climb take the loss at w' on the batch and as many remembered examples; L' is the mean of both;
        3. G = ∂L'/∂w and ∂L'/∂λ, through the steps of w' (second derivatives and all), ‖G‖₂ clipped at c;
        4. λ ← σ(10 (λ - η₂ ∂L'/∂λ));
        5. follow G - G M Λ Mᵀ.

    Heads have no M: they climb by their gradient as it is, and so does everything in task 1. Heads of old tasks go on
    learning, from the memory. When a task is learned, M is made anew, from a few of the remembered examples, and every
    λ is 1 again. When the learning rate falls, η₁ and η₂ fall with it, and the momentum begins at 0.

    In the authors' code λ is wrapped anew in every step, so that the optimizer that holds the old one never moves it:
    λ ← σ(10 λ), which from 1 goes to 0.99995 and stays. ``importance="fixed"`` is that, "learned" what the text says;
    with its σ and small rates both come to nearly the same.

    Otherwise than there, the memory takes a task's examples when the task begins, not while its first epoch goes on;
    what no projection protects (BatchNorm's affine pair too) stays as task 1 left it, as in every method here; and our
    AlexNet has a BatchNorm behind each layer, theirs one in all, with running averages.

    What the network is made of must have second derivatives.

    Attributes:
        bases: layer name → M (d, k), orthonormal columns.
        importances: layer name → λ (k,), one for each column of M.
        memory: for every task begun what is left of its examples.
        seen: how many examples could have come into the memory.
    """

    name = "fs-dgpm"
    settings_type = FSDGPMSettings
    replayable = True
    fresh_momentum = True
    settings: FSDGPMSettings

    def __init__(self, settings: FSDGPMSettings | None = None) -> None:
        super().__init__(settings)
        self.importances: dict[str, Tensor] = {}
        self.memory: list[Remembered] = []
        self.seen = 0
        self.replay: Replay | None = None  # the memory as steps use it
        self.first_rate: float | None = None

    def begin_run(self, training: TrainingSettings) -> None:
        """Note the learning rate, of which η₁ and η₂ are shares."""
        super().begin_run(training)
        self.first_rate = training.lr

    def begin_task(self, model: TaskModel, data: TaskData) -> None:
        """Let the task's examples into the memory."""
        super().begin_task(model, data)
        self.memory = reservoir(self.memory, self.seen, data, self.settings.memory)
        self.seen += len(data.train.y)
        self.replay = Replay.of(self.memory)

    def parameter_groups(self, model: TaskModel, tasks: Sequence[int], weight_decay: float) -> list[dict[str, Any]]:
        """As with GPM, and the heads of all tasks so far."""
        return super().parameter_groups(model, range(max(tasks) + 1), weight_decay)

    def project(self, name: str, change: Tensor) -> Tensor:
        """G - G M Λ Mᵀ."""
        return project_out(change, self.bases[name], self.importances[name])

    # One step --------------------------------------------------------------------------------------------------------

    def closure(self, model: TaskModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
        """What moves the importances, leaves the projected gradient of L' behind and returns L'."""
        assert self.replay is not None, "begin_task comes before the first step"
        replay = self.replay.draw(len(batch.y))
        learning = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        lr = optimizer.param_groups[0]["lr"]
        share = lr / (self.first_rate or lr)

        def gradients() -> Tensor:
            optimizer.zero_grad()
            learned = self.settings.importance == "learned"
            importances = {name: value.clone().requires_grad_(learned) for name, value in self.importances.items()}
            loss = self.flattened_loss(model, batch, replay, learning, importances, self.settings.ascent_rate * share)
            loss.backward()
            nn.utils.clip_grad_norm_(learning, self.settings.clip)
            for name, value in importances.items():
                moved = next_importance(value, value.grad, self.settings.importance_rate * share)
                self.importances[name].copy_(moved)
            self.adjust_gradients(model)
            return loss

        return gradients

    def flattened_loss(
        self,
        model: TaskModel,
        batch: Batch,
        replay: Replay,
        learning: Sequence[nn.Parameter],
        importances: Mapping[str, Tensor],
        rate: float,
    ) -> Tensor:
        """L', which can be differentiated by what is ``learning`` and by the importances.

        Args:
            model: with the weights w.
            batch: of the task that is learned.
            replay: remembered examples.
            learning: the parameters that are moved uphill.
            importances: layer name → λ (k,).
            rate: η₁.
        """
        network, ours, limit = _Network(model), set(learning), self.settings.clip
        weights: dict[str, Tensor] = {name: p for name, p in network.named_parameters() if p in ours}
        layers: dict[Tensor, str] = {weight_of(model, layer): layer for layer in self.held()}
        held = {name: layers[p] for name, p in weights.items() if p in layers}
        losses = []
        for half in halves(batch):
            loss = network.at(weights, self.loss, half)
            slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True, materialize_grads=True)
            uphill = dict(zip(weights, slopes, strict=True))
            for name, layer in held.items():
                uphill[name] = along(uphill[name], self.bases[layer], importances[layer])
            weights = {name: w + rate * uphill[name].clamp(-limit, limit) for name, w in weights.items()}
            losses.append(network.at(weights, self.replayed_loss, batch, replay))
        return torch.stack(losses).mean()

    def replayed_loss(self, model: TaskModel, batch: Batch, replay: Replay) -> Tensor:
        """Mean cross-entropy of the batch and of the remembered examples, which pass the backbone together.

        Every head is applied to all examples and counts its own: the same operations whatever was drawn.
        """
        features = model.features(joined([batch.x, replay.x]))
        labels = torch.cat([batch.y, replay.y])
        owners = torch.cat([torch.full_like(batch.y, batch.task), replay.task])
        losses = [
            self.cross_entropy(head(features), labels.where(owners == task, IGNORED), reduction="sum")
            for task, head in enumerate(model.heads[: batch.task + 1])
        ]
        return torch.stack(losses).sum() / len(labels)

    # Between tasks ---------------------------------------------------------------------------------------------------

    def end_task(self, model: TaskModel, data: TaskData) -> Iterable[Any]:
        """Make M anew."""
        self.bases, self.importances, self.replay = {}, {}, None
        return super().end_task(model, data)

    def moments(self, model: TaskModel, data: TaskData) -> dict[str, Moment]:
        """Those of a few remembered examples."""
        examples = sample(Replay.of(self.memory).x, self.settings.samples)
        return moments_of_batches(model, pieces(examples, BATCH, data.company))

    def remember(self, name: str, moment: Moment, share: float, weight: Tensor) -> None:
        """Take the M of one layer; every direction matters alike at first."""
        super().remember(name, moment, share, weight)
        self.importances[name] = torch.ones_like(self.bases[name][0])

    def state_dict(self) -> dict[str, Any]:
        """The bases, the importances and the memory."""
        own = {"importances": dict(self.importances), "memory": packed(self.memory), "seen": self.seen}
        return {**super().state_dict(), **own}

    def load_state_dict(self, model: TaskModel, state: Mapping[str, Any]) -> None:
        """Restore the bases, the importances and the memory."""
        super().load_state_dict(model, state)
        weights = protected_weights(model)
        self.importances = {name: kept_beside(weights[name], saved) for name, saved in state["importances"].items()}
        self.memory = unpacked(state["memory"], next(model.parameters()).device)
        self.seen = state["seen"]
        self.replay = Replay.of(self.memory) if self.memory else None

    def memory_report(self) -> dict[str, int]:
        """Bytes of the bases, the importances and the examples."""
        importances = sum(value.nbytes for value in self.importances.values())
        return {**super().memory_report(), "importances": importances, "memory of examples": size_of(self.memory)}


class _Network(nn.Module):
    """A model whose losses can be computed with other weights than its own."""

    def __init__(self, model: TaskModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, loss: Callable[..., Tensor], *examples: Any) -> Tensor:
        """``loss(model, *examples)``."""
        return loss(self.model, *examples)

    def at(self, weights: Mapping[str, Tensor], loss: Callable[..., Tensor], *examples: Any) -> Tensor:
        """The same with these ``weights``, by the names of the parameters; it can be differentiated twice."""
        with sdpa_kernel(SDPBackend.MATH):  # torch's fast kernels of attention have no second derivatives
            value: Tensor = functional_call(self, dict(weights), (loss, *examples))
        return value


def along(gradient: Tensor, basis: Tensor, importance: Tensor) -> Tensor:
    """G M Λ Mᵀ, in the shape and type of G: its part along the columns of M (d, k), by their importances λ (k,)."""
    with full_precision():
        wide = gradient.to(at_least_float32(gradient))
        return (wide - project_out(wide, basis, importance)).to(gradient)


def halves(batch: Batch) -> list[Batch]:
    """The batch in two, the first no smaller; in one if a half would be a single example of several."""
    size = max(math.ceil(len(batch.y) / 2), 2)
    inputs, labels = pieces(batch.x, size, company=True), pieces(batch.y, size, company=True)
    return [Batch(x, y, batch.task) for x, y in zip(inputs, labels, strict=True)]


def next_importance(importance: Tensor, gradient: Tensor | None, rate: float) -> Tensor:
    """σ(10 (λ - η₂ ∂λ)), in (0, 1), for λ (k,) and its gradient (k,), which is 0 if there is None."""
    value = importance.detach()
    return torch.sigmoid(SHARPNESS * (value if gradient is None else value - rate * gradient))
