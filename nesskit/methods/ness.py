"""NESS: learn in the null space of what came before (paper, Section 3 and Algorithm 1).

Four choices make a subspace method. Here: directions come from layer *inputs*; the spectrum is filtered by any filter
(hard, by default); it is enforced by *reparametrisation*, ΔW = U V; remembered are *moments* or the old *data*.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nesskit.adaptation.adapt import adapt, adapted_layers, merge
from nesskit.adaptation.capture import collect_moments, evaluating, named_layers
from nesskit.adaptation.layers import NESSLayer, Projected
from nesskit.adaptation.weights import known_kind
from nesskit.errors import DataError, SettingsError, SpectrumError
from nesskit.methods.base import Method
from nesskit.methods.subspace import BATCH, keep_running_statistics
from nesskit.networks.task_model import TaskModel
from nesskit.settings import NESSSettings, TrainingSettings
from nesskit.spectra.filters import FixedRank, Probe, Threshold
from nesskit.spectra.moment import Moment
from nesskit.spectra.profile import LayerProfile, layer_profile
from nesskit.spectra.spectrum import Spectrum
from nesskit.streams.base import Normalisation, TaskStream, normalise
from nesskit.streams.batches import TaskData, pieces
from nesskit.streams.fields import Inputs, Stored, as_stored, joined, packed_inputs

BEFORE_THE_FIRST = -1  # the number of the task that reference inputs are of


class NullSpaceWarning(UserWarning):
    """No layer has a free direction: a task can learn nothing but its head."""


@dataclass(frozen=True, eq=False)
class NullSpace:
    """What one layer may do during the current task.

    Attributes:
        spectrum: of the layer's old inputs, as the task found them.
        weights: (d,) the filter's weight of each direction; 1 for the free and 0 for the others if the filter is hard.
        count: how many old inputs there were.
    """

    spectrum: Spectrum
    weights: Tensor
    count: int

    @property
    def basis(self) -> Tensor:
        """(d, r) the columns √w_i u_i with w_i > 0; U_t itself for a hard filter.

        Under gradient descent on V the weight's gradient is then filtered by U diag(w) Uᵀ.
        """
        kept = self.weights > 0
        return self.spectrum.directions[:, kept] * self.weights[kept].sqrt()

    @property
    def occupied(self) -> Tensor:
        """(d, d - r) the directions with w_i = 0."""
        return self.spectrum.directions[:, self.weights == 0]

    @property
    def held(self) -> Tensor:
        """(d, k) the directions with w_i < 1/2, the strongest first: those that belong to old tasks."""
        return self.spectrum.directions[:, self.weights < 0.5]

    @property
    def rank(self) -> int:
        """r, how many directions have w_i > 0."""
        return int((self.weights > 0).sum())

    @property
    def is_hard(self) -> bool:
        """Whether every direction is either free or not."""
        return bool(((self.weights == 0) | (self.weights == 1)).all())

    @property
    def largest_free(self) -> float:
        """σ_j, the largest singular value with a free direction; 0 if none is free."""
        free = self.spectrum.singular_values[self.weights > 0]
        return float(free[0]) if len(free) else 0.0


class NESS(Method):
    """Every task after the first trains V of ΔW = U V, with U frozen in the small directions of all earlier inputs.

    With ``protect="reference"`` the first task does so too: earlier inputs are then the stream's reference inputs.
    """

    name = "ness"
    settings_type = NESSSettings
    replayable = True
    settings: NESSSettings

    def __init__(self, settings: NESSSettings | None = None) -> None:
        super().__init__(settings)
        self.moments: dict[str, Moment] = {}  # of all earlier inputs; stays empty with memory="data"
        self.old_inputs: list[tuple[Stored, Normalisation | None]] = []  # reference, one entry a task; memory="data"
        self.spaces: dict[str, NullSpace] = {}  # by layer, during a task that something is protected from
        self.constrained = False  # during such a task: all but the updates and the head stands still
        self.projected: list[str] = []  # of these the layers that train ΔW in the projected form
        self.may_project = False

    def begin_run(self, training: TrainingSettings) -> None:
        """Whether layers may take the projected form (layers.py), which is cheaper and, under SGD, equal.

        Adam does not commute with rotations, so that only V will do; the cap of ``stability`` needs V; and a projection
        in half precision would be none.
        """
        super().begin_run(training)
        sgd = training.optimizer in ("sgd", "sam")
        self.may_project = sgd and training.precision == "float32" and self.settings.stability is None

    def check(self, model: TaskModel) -> None:
        """There are layers to adapt, and a fixed rank is one that they have."""
        if self._protects_reference and model.shares_head:
            raise SettingsError(
                "protect = reference protects what the backbone knows, and a shared head is a part of it that knows "
                "nothing yet: take head = task or means"
            )
        rule = self.settings.filter
        for name, layer in named_layers(model.backbone, self.settings.layers or None).items():
            d = known_kind(layer).dimension(layer)
            if isinstance(rule, FixedRank) and rule.rank > d + 1:
                raise SpectrumError(f"rank {rule.rank} is out of range: layer '{name}' has {d} directions (0 … {d})")

    def check_stream(self, stream: TaskStream) -> None:
        """There are reference inputs, if they are to be protected."""
        if self._protects_reference and stream.reference is None:
            raise DataError(
                f"protect = reference needs inputs that stand for what the network knows, and stream '{stream.name}' "
                "has none: give it some, TaskStream(…, reference=x), or set protect to tasks"
            )

    def begin_stream(self, model: TaskModel, stream: TaskStream) -> None:
        """Remember what the layers see of the reference inputs, as if they were of a task before the first."""
        if self._protects_reference and stream.reference is not None:
            x = stream.reference.to(next(model.parameters()).device)
            self._remember(model, x, stream[0].normalisation, BEFORE_THE_FIRST)

    def begin_task(self, model: TaskModel, data: TaskData) -> None:
        """Freeze the backbone and open the null space of everything seen so far (nothing to do if that is nothing)."""
        moments = self._remembered_moments(model)
        if not moments:
            return
        rule = self.settings.filter
        probes = self._probes(model, data, list(moments)) if rule.needs_probe else {}
        for name, moment in moments.items():
            layer = model.backbone.get_submodule(name)
            if not known_kind(layer).weight_of(layer).requires_grad:
                continue  # frozen by the user, and so it stays
            spectrum = moment.spectrum()
            self.spaces[name] = NullSpace(spectrum, rule.weights(spectrum, probes.get(name)), moment.count)
        if self.spaces and not any(space.weights.any() for space in self.spaces.values()):
            self._warn_that_nothing_is_free(data.index)
        if self.may_project:
            self.projected = [name for name, space in self.spaces.items() if projection_pays(space)]
        self.constrained = True
        self._adapt(model)

    def parameter_groups(self, model: TaskModel, tasks: Sequence[int], weight_decay: float) -> list[dict[str, Any]]:
        """Where nothing is protected yet every weight; else V (or ΔW) of every adapted layer, and the task's head."""
        if not self.constrained:
            return super().parameter_groups(model, tasks, weight_decay)
        decay = self.settings.coefficient_decay
        updates = [layer.trained for layer in adapted_layers(model.backbone).values()]
        heads = [p for task in tasks for p in model.heads[task].parameters()]
        return [
            {"params": updates, "weight_decay": weight_decay if decay is None else decay},
            {"params": heads, "weight_decay": weight_decay},
        ]

    def train_mode(self, model: TaskModel) -> None:
        """Training mode; where something is protected without BatchNorm's running averages, which would drift."""
        model.train()
        if self.constrained:
            keep_running_statistics(model.backbone)

    def end_epoch(self, model: TaskModel) -> None:
        """Keep every ΔW where it belongs: out of the occupied directions, and within the cap if one is asked for.

        The cap keeps ‖V‖₂ ≤ √ε/σ_j exactly (Eq. 8, for any rule: σ_j is the largest free σ).
        """
        for name, layer in adapted_layers(model.backbone).items():
            if isinstance(layer, Projected):
                layer.remove_round_off()
            elif self.settings.stability is not None and self.spaces[name].largest_free > 0:
                limit = math.sqrt(self.settings.stability) / self.spaces[name].largest_free
                cap_spectral_norm_(layer.trained.data, limit)

    def end_task(self, model: TaskModel, data: TaskData) -> Iterable[LayerProfile]:
        """Fold the updates into the weights, then remember what the layers see of this task."""
        profiles = [self._profile(model, name, data.index) for name in self.spaces]
        merge(model.backbone)
        self.spaces, self.projected, self.constrained = {}, [], False
        self._remember(model, data.train.x, data.normalisation, data.index)
        return profiles

    def state_dict(self) -> dict[str, Any]:
        """The memory, and inside a task its null spaces: bases are restored, never computed again."""
        return {
            "moments": {name: moment.state_dict() for name, moment in self.moments.items()},
            "old_inputs": [(packed_inputs(x), n and [list(n.mean), list(n.std)]) for x, n in self.old_inputs],
            "spaces": {
                name: (space.spectrum.singular_values, space.spectrum.directions, space.weights, space.count)
                for name, space in self.spaces.items()
            },
            "projected": list(self.projected),
            "constrained": self.constrained,
        }

    def load_state_dict(self, model: TaskModel, state: Mapping[str, Any]) -> None:
        """Restore the memory; inside a task, adapt ``model`` with the saved bases."""
        device = next(model.parameters()).device
        self.moments = {name: Moment.from_state_dict(m, device) for name, m in state["moments"].items()}
        self.old_inputs = [
            (as_stored(x).to(device), n and Normalisation(tuple(n[0]), tuple(n[1]))) for x, n in state["old_inputs"]
        ]
        self.spaces = {
            name: NullSpace(Spectrum(values, directions), weights, count)
            for name, (values, directions, weights, count) in state["spaces"].items()
        }
        self.projected = list(state.get("projected", ()))  # checkpoints of older versions know no such form
        self.constrained = state.get("constrained", bool(self.spaces))
        if self.constrained:
            self._adapt(model)

    def memory_report(self) -> dict[str, int]:
        """Bytes of moments or of old data."""
        return {
            "moments": sum(moment.nbytes for moment in self.moments.values()),
            "old data": sum(x.nbytes for x, _ in self.old_inputs),
        }

    @property
    def _protects_reference(self) -> bool:
        return self.settings.protect == "reference"

    def _remember(self, model: TaskModel, x: Stored, normalisation: Normalisation | None, task: int) -> None:
        """Protect from now on what the layers see of raw inputs ``x`` of ``task``."""
        if self.settings.memory == "data":
            self.old_inputs.append((x, normalisation))
        else:
            new = self._collect(model, [(x, normalisation)], task)
            self.moments = {name: self.moments[name] + m if name in self.moments else m for name, m in new.items()}

    def _remembered_moments(self, model: TaskModel) -> dict[str, Moment]:
        """Moments of all earlier inputs: the sums kept, or computed with today's weights from the data kept."""
        if self.settings.memory == "data" and self.old_inputs:
            return self._collect(model, self.old_inputs, BEFORE_THE_FIRST if self._protects_reference else 0)
        return self.moments

    def _collect(
        self, model: TaskModel, inputs: Sequence[tuple[Stored, Normalisation | None]], first: int
    ) -> dict[str, Moment]:
        """The moments of what layers see of ``inputs``, one entry a task; the first entry is of task ``first``."""
        size, across = self.settings.moment_batch_size, self.settings.moment_batches == "across-tasks"
        parts = [inputs] if across else [[one] for one in inputs]
        batches = (batch for part in parts for batch in end_to_end(part, size))
        augment = self.settings.bias == "augment"
        moments = collect_moments(model.backbone, batches, self._layers(model), augment)
        for name, moment in moments.items():
            if moment.count == 0:
                raise SpectrumError(
                    f"layer '{name}' was never called, so its inputs are unknown: "
                    "leave it out by naming the layers to adapt in NESSSettings(layers=…)"
                )
        return moments

    def _layers(self, model: TaskModel) -> Sequence[str] | None:
        """Names of the layers that are looked at: those of the settings, or all that the user did not freeze."""
        if self.settings.layers:
            return self.settings.layers
        known = named_layers(model.backbone)
        return [name for name, layer in known.items() if known_kind(layer).weight_of(layer).requires_grad] or None

    def _adapt(self, model: TaskModel) -> None:
        """Freeze the backbone, but for an update of every layer that has a free direction."""
        adapt(
            model.backbone,
            {name: s.basis for name, s in self.spaces.items() if s.rank and name not in self.projected},
            {name: self.spaces[name].occupied for name in self.projected},
        )
        for layer in adapted_layers(model.backbone).values():
            if isinstance(layer, Projected):
                layer.trusting = True  # the form is taken under SGD alone

    def _profile(self, model: TaskModel, name: str, task: int) -> LayerProfile:
        layer, space = model.backbone.get_submodule(name), self.spaces[name]
        augmented = self.settings.bias == "augment"
        if isinstance(layer, NESSLayer):
            weight, update = weight_matrix(layer, augmented), layer.update_matrix()
        else:  # no direction was free, so the layer was left as it is
            weight = weight_matrix(layer, augmented)
            update = torch.zeros_like(weight)
        return layer_profile(name, task, space.rank, space.count, space.spectrum, update, weight)

    def _probes(self, model: TaskModel, data: TaskData, names: Sequence[str]) -> dict[str, Probe]:
        """For each layer its weight, the number of old tasks and, if the filter asks, the gradient of the new loss."""
        layers = {name: model.backbone.get_submodule(name) for name in names}
        augmented = self.settings.bias == "augment"
        gradients = self._gradients(model, data, layers) if self.settings.filter.needs_update else {}
        return {
            name: Probe(
                weight_matrix(layer, augmented),
                _matrix(layer, gradients[name], augmented) if gradients else None,
                tasks=data.index + self._protects_reference,
            )
            for name, layer in layers.items()
        }

    def _gradients(self, model: TaskModel, data: TaskData, layers: Mapping[str, nn.Module]) -> dict[str, list[Tensor]]:
        """For each layer the gradients of its weight and bias over all training examples: where a task pushes first."""
        own = {name: _weight_and_bias(layer) for name, layer in layers.items()}
        parameters = [p for group in own.values() for p in group]
        total = {p: torch.zeros_like(p) for p in parameters}
        with evaluating(model):
            for batch in data.batches(data.train, BATCH):
                gradients = torch.autograd.grad(self.loss(model, batch) * len(batch.y), parameters)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    total[parameter] += gradient
        return {name: [total[p] for p in group] for name, group in own.items()}

    def _warn_that_nothing_is_free(self, task: int) -> None:
        """Say that no layer has a free direction, and which ε₁ would free some."""
        rule = self.settings.filter
        text = f"task {task + 1}: {rule} frees no direction in any layer, so this task can only learn its head."
        if isinstance(rule, Threshold):
            spectra = [space.spectrum for space in self.spaces.values()]
            needed = torch.cat([rule.eps_to_free(spectrum) for spectrum in spectra])
            shares = ", ".join(f"{float(needed.quantile(share)):.2g} frees {share:.0%}" for share in (0.01, 0.1, 0.5))
            text += f" Of all directions together, eps = {shares}."
        warnings.warn(text, NullSpaceWarning, stacklevel=3)


def projection_pays(space: NullSpace) -> bool:
    """Whether the projected form is exact and costs less: all is free or occupied, and more is free than occupied.

    The factored form multiplies by U (d, r), the projected one by M (d, d - r) and otherwise by as much as a plain
    layer; measured on every size of layer, the two take equally long at r = d/2 (speed/README.md).
    """
    return space.is_hard and 2 * space.rank > len(space.weights)


def end_to_end(inputs: Sequence[tuple[Stored, Normalisation | None]], size: int) -> Iterator[Inputs]:
    """Normalised batches of ``size`` that run over all ``inputs`` as if they lay end to end; none is of one sample."""
    for rows in pieces(torch.arange(sum(len(x) for x, _ in inputs)), size, True):
        first, last, start, parts = int(rows[0]), int(rows[-1]), 0, []
        for x, normalisation in inputs:
            own = x[max(first - start, 0) : max(last + 1 - start, 0)]
            start += len(x)
            if len(own):
                parts.append(normalise(own, normalisation))
        yield parts[0] if len(parts) == 1 else joined(parts)


@torch.no_grad()
def cap_spectral_norm_(coefficients: Tensor, limit: float) -> None:
    """Clip the singular values of V (r, d_out) at ``limit``, in place; nothing to do while ‖V‖_F is within it."""
    if float(torch.linalg.matrix_norm(coefficients)) <= limit:
        return
    left, values, right = torch.linalg.svd(coefficients, full_matrices=False)
    coefficients.copy_(left @ (values.clamp(max=limit).unsqueeze(1) * right))


def weight_matrix(layer: nn.Module, augmented: bool) -> Tensor:
    """W as (d_out, d), of an adapted layer without its update; with the bias as a last column if ``augmented``."""
    return _matrix(layer, [p.detach() for p in _weight_and_bias(layer)], augmented)


def _weight_and_bias(layer: nn.Module) -> list[nn.Parameter]:
    """The weight of a layer, and its bias if it has one that can learn with it."""
    kind = known_kind(layer)
    bias = kind.bias_of(layer) if kind.augments else None
    return [kind.weight_of(layer), *([] if bias is None else [bias])]


def _matrix(layer: nn.Module, tensors: Sequence[Tensor], augmented: bool) -> Tensor:
    weight, *bias = tensors
    matrix = known_kind(layer).layout.matrix(layer, weight)
    return torch.cat([matrix, *(b.unsqueeze(1) for b in bias)], dim=1) if augmented else matrix
