"""What single tasks have for themselves, beside the weights that all share.

In the directions M that old inputs occupy, the shared weights must stay. What a task has for itself there costs the
others nothing. Of a layer with the weight W (in the paper's orientation, (d, d_out)) task t may have

    scale     S (k, k):      x (W + M S MᵀW), which mixes anew what old tasks have put along M
    full      S (k, d_out):  x (W + M S)
    adapter   A (d, r) and B (r, d_out): x (W + A B), which knows of no directions

and *own* parameters of the network, BatchNorm's affine pair, say, that it uses instead of the shared ones. A matrix S,
and B, is zero at the start. M is kept once for all tasks: it only grows, and a task uses as many of its columns as S
has rows.

They belong to the model, so that whoever is given the model, a copy of it or its ``state_dict`` gets the same answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from nesskit.adaptation.weights import known_kind
from nesskit.errors import AdaptationError
from nesskit.networks.packed_state import PackedState

Form = Literal["scale", "full", "down", "up", "own"]


class Part(NamedTuple):
    """What a tensor is to a task: S of a layer, Aᵀ or Bᵀ of its adapter, or a parameter of the task's own.

    ``name`` is that of the layer, or of the parameter, in the backbone.
    """

    form: Form
    name: str

    @classmethod
    def parse(cls, text: str) -> Part:
        """What ``f"{form} {name}"`` says.

        Raises:
            AdaptationError: a form that is not known.
        """
        form, _, name = text.partition(" ")
        if form not in get_args(Form):
            raise AdaptationError(
                f"this is of a newer nesskit: it knows private parts of a form '{form}', this one not"
            )
        return cls(form, name)  # type: ignore[arg-type]


class PrivateParts(PackedState):
    """The private parts of all tasks, and M of each layer.

    Args:
        tasks: how many tasks the model has heads for.

    Attributes:
        bases: layer name → number of its M, kept as Mᵀ (k, d): its first rows are the same tensor for every task.
        learned: the tasks that have been learned, with or without parts.
        places: (task, part) of each tensor kept.
        learning: the task that is learning at present, if any.
        present: which of its parts ``values`` holds.
        values: parameters, while a task learns.
    """

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.tasks = tasks
        self.bases: dict[str, int] = {}
        self.learned: list[int] = []
        self.places: list[tuple[int, Part]] = []
        self.learning: int | None = None
        self.present: list[Part] = []
        self.values = nn.ParameterList()

    def grow(self, layer: str, directions: Tensor, most: int | None = None) -> Tensor:
        """Add to M of ``layer`` those of the directions that it does not hold yet.

        A direction of which M holds less than half is new; what is outside of M of all new ones is added.

        Args:
            layer: its name in the backbone.
            directions: (d, n) orthonormal columns, the strongest first.
            most: how many columns M may have.

        Returns:
            Mᵀ (k, d), float32 at least; k = 0 where nothing is occupied.
        """
        if layer not in self.bases:
            number = len(self.bases)
            self.hold(f"basis{number}", directions.new_empty(0, len(directions)))
            self.bases[layer] = number
        before = self.basis(layer).to(directions).T
        held = (before.T @ directions).square().sum(dim=0)
        room = directions.shape[1] if most is None else max(most - before.shape[1], 0)
        new = directions[:, held < 0.5][:, :room]
        if new.shape[1]:
            whole = torch.linalg.qr(torch.cat([before, new], dim=1)).Q
            rows = torch.cat([self.basis(layer).to(whole), whole[:, before.shape[1] :].T])
            self.hold(f"basis{self.bases[layer]}", rows)
        return self.basis(layer)

    def basis(self, layer: str) -> Tensor:
        """Mᵀ (k, d) of ``layer``."""
        return self.get_buffer(f"basis{self.bases[layer]}")

    def begin(self, task: int, parts: Mapping[Part, Tensor] | None = None) -> None:
        """``task`` learns, with these parts and the values that they begin with; what it had before is let go."""
        self.learning, self.present = task, list(parts or {})
        self.values = nn.ParameterList(nn.Parameter(value.detach().clone()) for value in (parts or {}).values())

    def end(self) -> None:
        """What the present task has learned stays with it."""
        if self.learning is None:
            return
        for part, value in self.of(self.learning).items():
            self._keep(self.learning, part, value)
        if self.learning not in self.learned:
            self.learned.append(self.learning)
        self.rest()

    def rest(self) -> None:
        """No task is learning."""
        self.learning, self.present, self.values = None, [], nn.ParameterList()

    def of(self, task: int) -> dict[Part, Tensor]:
        """The parts of ``task``; none for a task that shares everything.

        Raises:
            AdaptationError: it was never learned, but others were that have parts.
        """
        if task == self.learning:
            return dict(zip(self.present, self.values, strict=True))
        if self.places and task not in self.learned:
            known = ", ".join(str(number + 1) for number in sorted(self.learned))
            raise AdaptationError(
                f"task {task + 1} was never learned, so it has no private parts and the model no answer for it; "
                f"learned are the tasks {known}"
            )
        return {part: self._kept(number) for number, (owner, part) in enumerate(self.places) if owner == task}

    def weights(self, backbone: nn.Module, task: int) -> dict[str, Tensor]:
        """Name of a parameter of ``backbone`` → what ``task`` uses in its place, for all that it has of its own.

        Raises:
            AdaptationError: as :meth:`of`; or a part belongs to a layer that ``backbone`` does not have.
        """
        own: dict[str, Tensor] = {}
        for layer, parts in itertools.groupby(self.of(task).items(), key=lambda item: item[0].name):
            values = {part.form: value for part, value in parts}
            own |= {layer: values["own"]} if "own" in values else self._changed(backbone, layer, values)
        return own

    def _changed(self, backbone: nn.Module, name: str, values: Mapping[Form, Tensor]) -> dict[str, Tensor]:
        """The weight of a layer with the parts ``values`` of a task; and its bias, if M has a row for it."""
        try:
            layer = backbone.get_submodule(name)
        except AttributeError as error:
            raise AdaptationError(
                f"the model has no layer '{name}', of which a task has a private part: it is another network"
            ) from error
        kind = known_kind(layer)
        weight, bias = kind.weight_of(layer), kind.bias_of(layer)
        matrix = kind.layout.matrix(layer, weight)
        d = matrix.shape[1]
        if bias is not None and self._rows(name, values) > d:
            matrix = torch.cat([matrix, bias.unsqueeze(1)], dim=1)
        change = self._change(name, matrix, values)
        own = {kind.name: weight + kind.layout.weight(layer, change[:, :d], weight)}
        if bias is not None and change.shape[1] > d:
            own[kind.bias] = bias + change[:, d]
        return {f"{name}.{key}".removeprefix("."): value.to(weight.dtype) for key, value in own.items()}

    def _rows(self, layer: str, values: Mapping[Form, Tensor]) -> int:
        """How many inputs of a layer the parts know of: d, or d + 1 with the constant one of its bias."""
        return values["down"].shape[1] if "down" in values else self.basis(layer).shape[1]

    def _change(self, layer: str, matrix: Tensor, values: Mapping[Form, Tensor]) -> Tensor:
        """What ``values`` change of a layer's weight (d_out, d): (M S MᵀW)ᵀ, (M S)ᵀ or (A B)ᵀ."""
        if "up" in values:
            return values["up"] @ values["down"]
        form, S = next(iter(values.items()))
        rows = self.basis(layer)[: len(S)]
        return (matrix.to(rows.dtype) @ rows.T) @ S.T @ rows if form == "scale" else S.T @ rows

    @contextmanager
    def in_place(self, backbone: nn.Module, task: int) -> Iterator[None]:
        """Inside, the parameters of ``backbone`` hold what ``task`` uses; afterwards exactly what they held."""
        with torch.no_grad():
            own = self.weights(backbone, task)
            parameters = {name: backbone.get_parameter(name) for name in own}
            before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            for name, weight in own.items():
                parameters[name].copy_(weight)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, weight in before.items():
                    parameters[name].copy_(weight)

    def numbers_of(self, task: int) -> int:
        """How many numbers ``task`` has for itself, its head not counted."""
        return sum(value.numel() for value in self.of(task).values())

    def sizes(self) -> dict[str, int]:
        """Bytes of what is private, and of M; empty if no task has anything for itself."""
        if not self.places:
            return {}
        parts = sum(self._kept(number).nbytes for number in range(len(self.places)))
        return {"private parts": parts, "shared directions": sum(self.basis(layer).nbytes for layer in self.bases)}

    def clear(self) -> None:
        """All tasks share everything; what learns at present goes on."""
        super().clear()
        self.bases.clear()
        self.places.clear()
        self.learned.clear()

    def content(self) -> dict[str, Tensor]:
        """Each M, each part with task, number and form, and which tasks were learned."""
        if not self.bases and not self.places:
            return {}
        content = {f"basis {layer}": self.basis(layer) for layer in self.bases}
        for number, (task, part) in enumerate(self.places):
            content[f"part {task} {number} {part.form} {part.name}"] = self._kept(number)
        return {**content, **{f"learned {task}": torch.empty(0) for task in self.learned}}

    def restore(self, content: Mapping[str, Tensor]) -> None:
        """Keep all of it again.

        Raises:
            AdaptationError: it is of a model with more tasks, or with parts of a form that is not known.
        """
        learned = [int(key.partition(" ")[2]) for key in content if key.startswith("learned ")]
        if max(learned, default=0) >= self.tasks:
            raise AdaptationError(
                f"these private parts are of a model that has learned task {max(learned) + 1}, and this one has "
                f"heads for {self.tasks} tasks: build it for the same stream"
            )
        for key, value in content.items():
            what, _, name = key.partition(" ")
            if what == "basis":
                self.bases[name] = len(self.bases)
                self.hold(f"basis{self.bases[name]}", value)
            elif what == "part":
                task, _, part = name.split(" ", 2)
                self._keep(int(task), Part.parse(part), value)
        self.learned = learned

    def _keep(self, task: int, part: Part, value: Tensor) -> None:
        if (task, part) not in self.places:
            self.places.append((task, part))
        self.hold(f"part{self.places.index((task, part))}", value)

    def _kept(self, number: int) -> Tensor:
        return self.get_buffer(f"part{number}")


def own_parameters(backbone: nn.Module, kinds: tuple[type[nn.Module], ...]) -> dict[Part, Tensor]:
    """The parameters of all modules of these kinds, as parts that a task may have of its own."""
    return {
        Part("own", f"{name}.{own}".removeprefix(".")): parameter
        for name, module in backbone.named_modules()
        if isinstance(module, kinds)
        for own, parameter in module.named_parameters(recurse=False)
    }
