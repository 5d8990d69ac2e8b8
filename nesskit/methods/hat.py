"""HAT: hard attention to the task (Serrà, Surís, Miron and Karatzoglou, Overcoming Catastrophic Forgetting with Hard
Attention to the Task, ICML 2018).

No subspace: directions are *units*. Each task learns which it uses, by gates that come to be 0 or 1; it is enforced by
holding the *gradient* of every weight between two units that old tasks use; remembered are the *gates* of each task.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nesskit.methods.held import HoldingMethod
from nesskit.methods.subspace import keep_running_statistics
from nesskit.networks.task_model import TaskModel
from nesskit.networks.units import Units, gated, units_of
from nesskit.settings import HATSettings
from nesskit.spectra.precision import at_least_float32
from nesskit.streams.batches import Batch, TaskData
from nesskit.streams.fields import Inputs

OPEN = 17.0  # from this s e on a gate is 1
LARGEST_EMBEDDING = 6.0  # e is kept within ± this, so that σ(e) can still be moved
LARGEST_EXPONENT = 50.0  # of cosh, for float32
LARGEST_GRADIENT = 10_000.0  # the norm of everything together

Gates = Mapping[str, Tensor]  # name of the units → (units,), from 0 to 1


class HAT(HoldingMethod):
    """Task t multiplies the output of every unit by a gate a = σ(s e) of its own; e ~ N(0, 1) is learned (Eq. 1).

    Within each epoch s grows from 1/s_max, where all gates are half open, to s_max, where nearly all
    are 0 or 1 (Eq. 3).
    With A the largest gate that any old task has for a unit, a step on a new task

        1. lowers the cross-entropy + c R, where R = Σ a (1 - A) / Σ (1 - A) is the share of the units that are new to
           use: those in use cost nothing (Eq. 5 and 6; in task 1 R is the mean gate);
        2. follows 1 - min(A_out, A_in) of a weight's gradient, and 1 - A_out of a bias' (Eq. 2);
        3. scales the gradient of e as if σ' had been taken at e: at s e it all but vanishes for most s (Eq. 4).

    So nothing that an old task uses moves, but for the little by which its gates are not 0 or 1. As everywhere in
    nesskit that holds under any optimizer: where a step is no sum of gradients, 2. is applied to the step.

    BatchNorm, which the authors' network does not have, normalises every unit by itself. Its affine pair belongs to one
    unit and is held like a bias, not frozen after task 1 as in our subspace methods, which have nothing that would
    protect it: so a unit that nobody uses yet can still learn it. Running averages stop after task 1.

    The digits' presets train it as most others, with momentum 0.9 at lr 0.05; the authors do without momentum. On
    validation data (20 %) of seeds 1 to 3 of permuted-digits, with c = 0.75, that comes to 96.2 %, and without momentum
    lr 0.05, 0.2 and 0.5 to 80.0, 94.5 and 95.7 %: 30 epochs of small tasks are few steps.

    Attributes:
        gates: task → its gates, as σ(s_max e).
        task: the task that is being learned, None between tasks; ``examples`` is the number of its training examples.
        units: of the backbone.
        used: A, name of the units → (units,).
        free: in a task after the first, name of a backbone's parameter → which part of a change is allowed.
    """

    name = "hat"
    settings_type = HATSettings
    replayable = True
    settings: HATSettings

    def __init__(self, settings: HATSettings | None = None) -> None:
        super().__init__(settings)
        self.gates: dict[int, dict[str, Tensor]] = {}
        self.task: int | None = None
        self.examples = 0
        self.units: tuple[Units, ...] = ()
        self.used: dict[str, Tensor] = {}
        self.free: dict[str, Tensor] = {}

    def check(self, model: TaskModel) -> None:
        """The backbone must say what its units are."""
        units_of(model.backbone)

    def begin_task(self, model: TaskModel, data: TaskData) -> None:
        """Draw the embeddings e, and find out what old tasks leave free."""
        self._attach(model)
        self.task, self.examples = data.index, len(data.train.y)
        with torch.no_grad():
            for e in embeddings_of(model):
                e.copy_(torch.randn(e.shape))  # on the CPU, the same whatever the model's device and type

    def parameter_groups(self, model: TaskModel, tasks: Sequence[int], weight_decay: float) -> list[dict[str, Any]]:
        """Every weight, and the embeddings, which no decay pulls to zero."""
        groups = super().parameter_groups(model, tasks, weight_decay)
        return [*groups, {"params": list(embeddings_of(model)), "weight_decay": 0.0}]

    def train_mode(self, model: TaskModel) -> None:
        """Training mode, s at its smallest; after task 1 without running averages, which gates do not protect."""
        super().train_mode(model)
        embeddings_of(model).seen.zero_()
        if self.gates:
            keep_running_statistics(model.backbone)

    def loss(self, model: TaskModel, batch: Batch) -> Tensor:
        """Cross-entropy of what the gated model computes, and c R."""
        gates = self._present(model, self._annealed(model))
        with gated(model.backbone, self.units, gates):
            return super().loss(model, batch) + self._price(gates)

    def validation_loss(self, model: TaskModel, batch: Batch, logits: Tensor) -> Tensor:
        """With c R, too: weights are kept for how few units they use, as well."""
        loss = super().validation_loss(model, batch, logits)
        if batch.task != self.task:
            return loss
        return loss + len(batch.y) * self._price(self._present(model, self.settings.s_max))

    def held_parameters(self, model: TaskModel) -> dict[str, nn.Parameter]:
        """Every parameter of the backbone, once a task was learned."""
        return {name: model.backbone.get_parameter(name) for name in self.free}

    def project(self, name: str, change: Tensor) -> Tensor:
        """Its part that no old task feels: 1 - min(A_out, A_in) of it."""
        return change * self.free[name]

    def adjust_gradients(self, model: TaskModel) -> None:
        """Hold the weights back, drive the embeddings on, and clip the norm of both together."""
        super().adjust_gradients(model)
        s = self._annealed(model)
        for e in embeddings_of(model):
            if e.grad is not None:
                e.grad.mul_(compensation(e.detach(), s, self.settings.s_max))
        nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)

    def step(self, model: TaskModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        """One step, after which s is larger."""
        loss = super().step(model, batch, optimizer)
        with torch.no_grad():
            for e in embeddings_of(model):
                e.clamp_(-LARGEST_EMBEDDING, LARGEST_EMBEDDING)
        embeddings_of(model).seen += len(batch.y)
        return loss

    def features(self, model: TaskModel, x: Inputs, task: int) -> Tensor:
        """Features with the task's gates, which the model has once the task is learned."""
        if task != self.task:
            return super().features(model, x, task)
        with gated(model.backbone, self.units, self._present(model, self.settings.s_max)):
            return super().features(model, x, task)

    def end_task(self, model: TaskModel, data: TaskData) -> Sequence[Any]:
        """Give the model the task's gates for good."""
        self._hand_over(model)
        return ()

    def end_run(self, model: TaskModel) -> None:
        """In the middle of a task, too, the model gets the gates that the task has learned so far."""
        self._hand_over(model)
        super().end_run(model)

    def state_dict(self) -> dict[str, Any]:
        """The gates, and which task is being learned."""
        gates = {task: dict(own) for task, own in self.gates.items()}
        return {"gates": gates, "task": self.task, "examples": self.examples}

    def load_state_dict(self, model: TaskModel, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`; inside a task give ``model`` its embeddings, whose values follow after."""
        device = next(model.parameters()).device
        self.gates = {
            task: {name: gate.to(device) for name, gate in own.items()} for task, own in state["gates"].items()
        }
        if state["task"] is not None:
            self._attach(model)
        self.task, self.examples = state["task"], state["examples"]
        model.gates.clear()
        for task, own in self.gates.items():
            model.gates.keep(task, own)

    def memory_report(self) -> dict[str, int]:
        """Bytes of all tasks' gates."""
        return {"gates": sum(gate.nbytes for own in self.gates.values() for gate in own.values())}

    def _attach(self, model: TaskModel) -> None:
        """Make embeddings part of the model, all 0, and note what old tasks use and what they leave free."""
        self.units = units_of(model.backbone)
        model.embeddings = Embeddings(each.weight(model.backbone) for each in self.units)
        nothing = {each.name: torch.zeros_like(e) for each, e in zip(self.units, model.embeddings, strict=True)}
        self.used = largest([nothing, *self.gates.values()])
        self.free = free_shares(model.backbone, self.units, self.used) if self.gates else {}

    def _hand_over(self, model: TaskModel) -> None:
        """Keep the gates of the present task, if there is one; from now on the model uses them by itself."""
        if self.task is None:
            return
        gates = self._present(model, self.settings.s_max)
        self.gates[self.task] = {name: gate.detach().clone() for name, gate in gates.items()}
        model.gates.keep(self.task, self.gates[self.task])
        del model.embeddings
        self.task, self.examples, self.used, self.free = None, 0, {}, {}

    def _present(self, model: TaskModel, s: Tensor | float) -> dict[str, Tensor]:
        """The gates σ(s e) of the task that is being learned."""
        return {each.name: gate(s * e) for each, e in zip(self.units, embeddings_of(model), strict=True)}

    def _price(self, gates: Gates) -> Tensor:
        """c R."""
        return self.settings.sparsity * newly_used(gates, self.used)

    def _annealed(self, model: TaskModel) -> Tensor:
        """s, a scalar."""
        return annealed(embeddings_of(model).seen, self.examples, self.settings.s_max)


class Embeddings(nn.ParameterList):
    """The e (units,) of each of the units that have these ``weights``, at first 0, in float32 at least.

    Attributes:
        seen: how many examples of the epoch have been trained on; a tensor, so that a recorded step counts, too.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        weights = list(weights)
        super().__init__(w.new_zeros(len(w), dtype=at_least_float32(w)) for w in weights)
        self.register_buffer("seen", torch.zeros((), device=weights[0].device), persistent=False)

    seen: Tensor


def embeddings_of(model: TaskModel) -> Embeddings:
    """Those of the task that is being learned."""
    embeddings = model.embeddings
    assert isinstance(embeddings, Embeddings)
    return embeddings


def gate(z: Tensor) -> Tensor:
    """σ(z); above 17, where float32 rounds it to 1, it is 1 in any precision and without a gradient.

    So it is in the authors' code: what is on when s is large stays on. With a gradient there, as Eq. 4 would have it, a
    task can switch off a whole layer: on validation data as above, c = 1.5 came to 72 % instead of 95.7 %.
    """
    return torch.where(z > OPEN, 1.0, torch.sigmoid(z))


def annealed(seen: Tensor, examples: int, s_max: float) -> Tensor:
    """s = 1/s_max + (s_max - 1/s_max) i/N when i of N ``examples`` have been ``seen`` in an epoch (Eq. 3)."""
    return 1 / s_max + (s_max - 1 / s_max) * seen / examples


def compensation(e: Tensor, s: Tensor, s_max: float) -> Tensor:
    """s_max (cosh(s e) + 1) / (s (cosh e + 1)), by which the gradient of e is multiplied (Eq. 4).

    That makes s_max σ'(e) of s σ'(s e), which the gate multiplied the gradient by.
    """
    exponent = (s * e).clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT)
    return s_max / s * (exponent.cosh() + 1) / (e.cosh() + 1)


def largest(gates: Sequence[Gates]) -> dict[str, Tensor]:
    """A: of each unit the largest gate."""
    return {name: torch.stack([own[name] for own in gates]).amax(dim=0) for name in gates[0]}


def newly_used(gates: Gates, used: Gates) -> Tensor:
    """R = Σ a (1 - A) / Σ (1 - A): of the units that no old task uses, the share that is used now (Eq. 5 and 6).

    Args:
        gates: a.
        used: A. Where it is 1 everywhere, nothing can be newly used: R = 0.
    """
    a, free = torch.cat([gates[name] for name in used]), 1 - torch.cat(list(used.values()))
    return (a * free).sum() / free.sum().clamp_min(torch.finfo(free.dtype).tiny)


def free_shares(backbone: nn.Module, units: Iterable[Units], used: Gates) -> dict[str, Tensor]:
    """Name of each parameter of ``backbone`` → which part of its change no old task feels (Eq. 2).

    That is 1 - min(A_out, A_in) for a weight between two units, and 1 - A_out for one whose inputs are the network's
    own, for a bias and for an affine parameter of BatchNorm; in a shape that the parameter's can be multiplied by.

    Args:
        backbone: whose parameters have a row a unit.
        units: all of them.
        used: A, name of the units → (units,).
    """
    units = tuple(units)
    inputs = {layer: used[each.name] for each in units for layer in each.feed}
    shares = {}
    for each in units:
        for module in each.made_by:
            for name, parameter in backbone.get_submodule(module).named_parameters():
                held = used[each.name].view(-1, *[1] * (parameter.ndim - 1))
                if module in inputs:
                    held = torch.minimum(held, _spread(inputs[module], parameter)) if parameter.ndim > 1 else held
                shares[f"{module}.{name}"] = 1 - held
    return shares


def _spread(gates: Tensor, weight: Tensor) -> Tensor:
    """(1, inputs, 1, …): a unit's value for each of the inputs of ``weight`` that a flattening made of it."""
    each = gates.repeat_interleave(weight.shape[1] // len(gates))
    return each.view(1, -1, *[1] * (weight.ndim - 2))
