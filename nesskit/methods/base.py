"""The contract between a method and the training loop.

The loop (nesskit/training/) owns epochs, batches, the learning rate, checkpoints and evaluation. A method says which
parameters learn, what one step does, and what it remembers between tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nesskit.adaptation.adapt import merge
from nesskit.networks.task_model import TaskModel
from nesskit.settings import MethodSettings, TrainingSettings
from nesskit.spectra.profile import LayerProfile
from nesskit.streams.base import TaskStream
from nesskit.streams.batches import Batch, TaskData
from nesskit.streams.fields import Inputs


class Method:
    """A way of learning one task after another; as it stands, plain training of every weight.

    The loop calls ``begin_run`` and ``begin_stream`` once, and for every task: ``begin_task``, then
    ``parameter_groups``; for every epoch ``train_mode``, ``step`` on each batch, then ``end_epoch``; finally
    ``end_task``. ``predict`` is called at any time, and ``end_run`` when the loop is left, whatever the reason. What a
    method draws from torch's generator in ``begin_task``, ``step`` and ``end_task`` is determined by the run's seed.

    One object may serve many runs, one after another: each begins as the first did, see :meth:`reset`.
    """

    name: ClassVar[str]
    settings_type: ClassVar[type[MethodSettings]] = MethodSettings
    learns_together: ClassVar[bool] = False
    """Whether all tasks are trained at once, as one stage, instead of one after another."""
    replayable: ClassVar[bool] = True
    """Whether every step of a task does the same operations on the same tensors, whatever the data.

    On a GPU such steps are recorded once and replayed (training/graphs.py): what a step decides or counts in Python
    would be decided or counted once. So a class says it for itself; one that derives from it begins with False."""
    fresh_momentum: ClassVar[bool] = False
    """Whether the optimizer forgets its momentum when the learning rate falls, since the validation loss does not."""
    label_smoothing: float = 0.0
    """Of the run; the loop sets it, :meth:`cross_entropy` uses it."""

    def __init_subclass__(cls, **named: Any) -> None:
        """What a derived class does in a step nobody knows, unless it says so itself."""
        super().__init_subclass__(**named)
        if "replayable" not in vars(cls):
            cls.replayable = False

    def __new__(cls, *arguments: Any, **named: Any) -> Self:
        """A method that knows what it was made with, for :meth:`reset`."""
        method = super().__new__(cls)
        method._made_with = arguments, named
        return method

    _made_with: tuple[tuple[Any, ...], dict[str, Any]]
    _own: frozenset[str]

    def __init__(self, settings: MethodSettings | None = None) -> None:
        self.settings = self.settings_type() if settings is None else settings

    def reset(self) -> None:
        """Forget everything that was learned: construct the object anew, with the settings that it has now.

        Whatever ``__init__`` sets is set again, and attributes that have come up since the first run are deleted. What
        was set by hand before that (``method.verbose = True``) stays.
        """
        attributes, settings = vars(self), self.settings
        if "_own" not in attributes:
            self._own = frozenset({*attributes, "_own"})
        for name in attributes.keys() - self._own:
            del attributes[name]
        arguments, named = self._made_with
        self.__init__(*arguments, **named)  # type: ignore[misc]
        self.settings = settings

    def begin_run(self, training: TrainingSettings) -> None:
        """Called once, before anything else, with how every task will be trained: forget any earlier run.

        A resumed run loads its state afterwards.
        """
        self.reset()

    def check(self, model: TaskModel) -> None:
        """Called before anything is trained or written: raise a NesskitError if ``model`` is none for this method."""

    def check_inputs(self, x: Inputs) -> None:
        """Called before anything is trained or written: raise a NesskitError if this method cannot learn from inputs
        such as ``x`` (n, …), the first two of a task as the network sees them.
        """

    def check_stream(self, stream: TaskStream) -> None:
        """Called before anything is trained or written: raise a NesskitError if ``stream`` lacks what this needs."""

    def begin_stream(self, model: TaskModel, stream: TaskStream) -> None:
        """Called before the first task begins, with the network as it came: note what is to be kept of it.

        A run that goes on later has it from :meth:`load_state_dict`.
        """

    def begin_task(self, model: TaskModel, data: TaskData) -> None:
        """Prepare ``model`` for the task of ``data``, whose index is 0 for the first."""

    def parameter_groups(self, model: TaskModel, tasks: Sequence[int], weight_decay: float) -> list[dict[str, Any]]:
        """What learns, as torch optimizers take it: by default the backbone and the heads of ``tasks``.

        What the user froze is no part of it.
        """
        heads = [p for task in tasks for p in model.heads[task].parameters()]
        return [{"params": learning([*model.backbone.parameters(), *heads]), "weight_decay": weight_decay}]

    def train_mode(self, model: TaskModel) -> None:
        """Put ``model`` into training mode."""
        model.train()

    def step(self, model: TaskModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        """One training step on ``batch``; returns its loss, detached."""
        loss: Tensor = optimizer.step(self.closure(model, batch, optimizer))  # type: ignore[assignment, arg-type]
        return loss.detach()

    def closure(self, model: TaskModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Callable[[], Tensor]:
        """What the optimizer calls, once or several times a step: it leaves gradients behind and returns the loss."""

        def gradients() -> Tensor:
            optimizer.zero_grad()
            loss = self.loss(model, batch)
            loss.backward()
            self.adjust_gradients(model)
            return loss

        return gradients

    def loss(self, model: TaskModel, batch: Batch) -> Tensor:
        """What a step minimises: the mean cross-entropy, unless a method adds to it."""
        return self.cross_entropy(model(batch.x, batch.task), batch.y)

    def cross_entropy(self, logits: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        """The cross-entropy that is trained with: that of ``logits`` (n, classes), the labels ``y`` (n,) smoothed."""
        return F.cross_entropy(logits, y, reduction=reduction, label_smoothing=self.label_smoothing)

    def validation_loss(self, model: TaskModel, batch: Batch, logits: Tensor) -> Tensor:
        """What the falling learning rate and the kept weights go by: a loss, summed over the examples of ``batch``.

        Args:
            model: in evaluation mode.
            batch: of validation examples.
            logits: (n, classes), what :meth:`predict` answered to it.
        """
        return F.cross_entropy(logits, batch.y, reduction="sum")

    def adjust_gradients(self, model: TaskModel) -> None:
        """Called after every backward pass, before the optimizer sees the gradients."""

    def end_epoch(self, model: TaskModel) -> None:
        """Called after the steps of an epoch, before it is validated."""

    def end_task(self, model: TaskModel, data: TaskData) -> Iterable[LayerProfile]:
        """Called with the task's best weights in place; may return what the task did to each layer."""
        return ()

    def end_run(self, model: TaskModel) -> None:
        """Called when the loop is left, at the end or in the middle of a task: leave an ordinary model behind.

        By default what is adapted is merged. A run that goes on later gives the model its structure back
        (:meth:`load_state_dict`).
        """
        merge(model)

    def predict(self, model: TaskModel, x: Inputs, task: int) -> Tensor:
        """Logits (n, classes) of normalised inputs ``x`` of ``task``.

        After the run ``model(x, task)`` must answer the same: who gets the model gets no method with it.
        """
        logits: Tensor = model.heads[task](self.features(model, x, task))
        return logits

    def features(self, model: TaskModel, x: Inputs, task: int) -> Tensor:
        """Features (n, features) of normalised inputs ``x``, as ``task`` uses the backbone."""
        return model.task_features(x, task)

    def state_dict(self) -> dict[str, Any]:
        """Everything that must survive a restart, as tensors and plain values."""
        return {}

    def load_state_dict(self, model: TaskModel, state: Mapping[str, Any]) -> None:
        """Restore :meth:`state_dict`, and give ``model`` the structure that it had (its weights follow after)."""

    def memory_report(self) -> dict[str, int]:
        """What is kept between tasks, in bytes by name."""
        return {}


def learning(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """Those that the user did not freeze."""
    return [parameter for parameter in parameters if parameter.requires_grad]
