"""One task after another with the ``Trainer`` of ``transformers`` in place of our loop.

The Trainer owns epochs, batches, the optimizer and the learning rate. A callback does what our loop does around them:
begin the task, project what must be projected, end the task. What that is, the method says (methods/base.py).
``transformers`` is imported when a callback is made: ``pip install 'nesskit[text]'``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from nesskit.errors import SettingsError, TrainingError
from nesskit.methods import Method, make_method
from nesskit.methods.held import HoldingMethod
from nesskit.networks.task_model import TaskModel
from nesskit.seeds import derive_seed
from nesskit.settings import TrainingSettings
from nesskit.spectra.profile import LayerProfile
from nesskit.streams.base import Examples, Task, TaskStream, normalise
from nesskit.streams.batches import Batch, TaskData
from nesskit.streams.fields import Fields, Inputs, Stored, in_memory
from nesskit.streams.tokens import from_transformers
from nesskit.training.trainer import keep_frozen_statistics


class NullSpaceCallback:
    """Lets the ``Trainer`` of ``transformers`` learn a task with a method of ours; a ``TrainerCallback``.

    For every task :meth:`begin_task` comes first, since a Trainer makes its optimizer of what learns then::

        callback = nesskit.NullSpaceCallback(model, "ness")
        for task in stream:
            examples = callback.begin_task(task)
            Trainer(callback.module, arguments, train_dataset=examples, callbacks=[callback]).train()
        callback.end_run()

    The end of ``train()`` ends the task: updates are merged, and what the layers see of its training examples is added
    to the moments. After an interrupt the task is still open: ``train()`` again, or :meth:`end_task`.

    Only what the method trains has ``requires_grad`` while a task is open. A checkpoint of the Trainer holds no method,
    so that a run cannot be resumed from one in the middle of a stream.

    Args:
        model: with a head for each task; trained in place.
        method: a method that leaves its step to an optimizer, or the name of one: NESS, the subspace methods, EWC, …
        seed: of what the method draws at the beginning and at the end of a task.
        reference: inputs of no task that the method is to protect before the first, see :class:`TaskStream`.

    Attributes:
        module: what the Trainer trains: takes ``labels`` beside the inputs, and returns ``loss`` and ``logits`` of the
            present task.
        tasks_done: how many tasks were learned.
        profiles: what each task did to each layer.

    Raises:
        SettingsError: ``transformers`` is not installed, or the method has steps of its own.
    """

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """A callback of transformers, whose class is only then known."""
        base = from_transformers("TrainerCallback")
        derived = cls if issubclass(cls, base) else type(cls.__name__, (cls, base), {"__doc__": cls.__doc__})
        return object.__new__(derived)

    def __init__(
        self, model: TaskModel, method: Method | str = "ness", seed: int = 0, reference: Stored | None = None
    ) -> None:
        self.model, self.seed, self.reference = model, seed, reference
        self.method = make_method(method) if isinstance(method, str) else method
        _refuse_own_steps(self.method)
        model.forget_own_parts()
        self.method.reset()
        # Which optimizer the Trainer takes is not known here; with Adam's form of the updates any is right.
        self.method.begin_run(TrainingSettings(optimizer="adam"))
        self.method.check(model)
        self.module = TaskModule(model, self.method)
        self.tasks_done = 0
        self.profiles: list[LayerProfile] = []
        self._task: Task | None = None
        self._frozen: list[nn.Parameter] = []
        self._step = contextlib.ExitStack()

    def begin_task(self, task: Task) -> Dataset[dict[str, Tensor]]:
        """Open the null space of what was seen before, and let nothing else learn; before the Trainer is made.

        Returns:
            The task's training examples, as a Trainer takes them; see :meth:`examples`.

        Raises:
            TrainingError: a task is still open, or the model has no head for this one.
            DataError: the method protects reference inputs, and there are none, or none such as the task's.
        """
        index = self.tasks_done
        if self._task is not None:
            raise TrainingError(f"task {index + 1} ('{self._task.name}') has not ended: train(), or end_task()")
        if index >= len(self.model.heads) or self.model.class_counts[index] != len(task.classes):
            heads = ", ".join(str(count) for count in self.model.class_counts)
            raise TrainingError(
                f"task {index + 1} ('{task.name}') has {len(task.classes)} classes, but the heads of the model's tasks "
                f"are for {heads}"
            )
        data = self._data(task)
        stream = TaskStream(task.name, [task], reference=self.reference)
        self.method.check_inputs(task.normalise(task.train.x[:2]))
        self.method.check_stream(stream)
        self.model.see(index + 1)
        if index == 0:
            self.method.begin_stream(self.model, stream)
        with self._noise("begin task"):
            self.method.begin_task(self.model, data)
        self._task, self.module.task, self.module.normalisation = task, index, task.normalisation
        learning = {parameter for group in self.parameter_groups() for parameter in group["params"]}
        self._frozen = [p for p in self.model.parameters() if p.requires_grad and p not in learning]
        for parameter in self._frozen:
            parameter.requires_grad_(False)
        return self.examples(task.train)

    def examples(self, part: Examples) -> Dataset[dict[str, Tensor]]:
        """Examples of the present task, ``task.test`` say, as a dataset of dicts with ``labels``."""
        first = self.model.classes_of(self.module.task).start if self.model.shares_head else 0
        return _Rows(part, first)

    def parameter_groups(self, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """What learns in the present task, for an optimizer of your own: ``Trainer(optimizers=(optimizer, None))``."""
        return self.method.parameter_groups(self.model, [self.module.task], weight_decay)

    def end_task(self) -> None:
        """Merge what was learned, and remember what the layers see of the task; the end of ``train()`` calls it."""
        if self._task is None:
            raise TrainingError("no task is open that could end: begin_task(task) first")
        self._step.close()
        for parameter in self._frozen:
            parameter.requires_grad_(True)
        self.model.zero_grad()
        with self._noise("end task"):
            self.profiles.extend(self.method.end_task(self.model, self._data(self._task)))
        self._task, self._frozen, self.tasks_done = None, [], self.tasks_done + 1

    def end_run(self) -> None:
        """Leave an ordinary model behind, as after the last task a method may want it; NESS has merged everything."""
        self.method.end_run(self.model)

    def _data(self, task: Task) -> TaskData:
        device = next(self.model.parameters()).device
        company = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.model.modules())
        first = self.model.classes_of(self.tasks_done).start if self.model.shares_head else 0
        return TaskData(task, self.tasks_done, device, company, first)

    @contextlib.contextmanager
    def _noise(self, purpose: str) -> Iterator[None]:
        """torch's generator as our loop has it for this purpose."""
        device = next(self.model.parameters()).device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed(self.seed, purpose, self.tasks_done))
            yield

    # ------------------------------------------------------------------------------------------ what the Trainer tells

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The module knows its inputs by the task, not by its signature, from which the Trainer would guess them."""
        args.remove_unused_columns = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Refuse what would not learn the task that was begun."""
        self._step.close()  # of a train() that was interrupted in the middle of one
        if self._task is None:
            raise TrainingError("no task was begun: call begin_task(task) before the Trainer is made")
        if args.world_size > 1 or args.n_gpu > 1:
            raise TrainingError(
                "the moments of a task are those of one process: train on one device, such as with "
                "CUDA_VISIBLE_DEVICES=0"
            )
        if args.label_smoothing_factor:
            raise SettingsError(
                "with label_smoothing_factor the Trainer computes a loss of its own: leave it at 0 and set "
                "callback.method.label_smoothing"
            )
        if self.module not in given["model"].modules():
            raise TrainingError("the Trainer trains another model than callback.module: give it that one")
        trained = {p for group in given["optimizer"].param_groups for p in group["params"] if p.requires_grad}
        if trained != {p for group in self.parameter_groups() for p in group["params"] if p.requires_grad}:
            raise TrainingError(
                "the optimizer was made of other parameters than those that learn in this task: make the Trainer, and "
                "an optimizer of your own, after begin_task(task)"
            )

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Let the method have its way with the gradients, and remember what its projection starts from."""
        optimizer = getattr(given["optimizer"], "optimizer", given["optimizer"])  # without accelerate's wrapper
        if isinstance(self.method, HoldingMethod):
            self._step.enter_context(self.method.holding(self.model, optimizer))
        self.method.adjust_gradients(self.model)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Project the step, if it is steps that the method projects."""
        self._step.close()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """What the method does after an epoch, such as keeping an update within its cap."""
        self.method.end_epoch(self.model)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The task is learned."""
        self.end_task()


class TaskModule(nn.Module):
    """A :class:`TaskModel` as a Trainer wants a model: inputs and ``labels`` in, ``loss`` and ``logits`` out.

    Attributes:
        task: which one, 0 for the first; may be set for the evaluation of another.
        normalisation: of its inputs.
    """

    config = None  # of transformers' own models; the Trainer looks for one
    accepts_loss_kwargs = False  # the loss is a mean, whatever the Trainer offers to divide it by

    def __init__(self, model: TaskModel, method: Method) -> None:
        super().__init__()
        self.model, self.method, self.task = model, method, 0
        self.normalisation: Any = None

    def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> dict[str, Tensor]:
        """The method's loss while training; afterwards the logits (n, classes), and their loss if there are labels.

        Args:
            labels: (n,) int64.
            inputs: the fields of the task by name, or the one tensor that it has as ``x``.
        """
        x: Inputs = normalise(inputs["x"] if inputs.keys() == {"x"} else Fields(inputs), self.normalisation)
        if self.training and labels is not None:
            return {"loss": self.method.loss(self.model, Batch(x, labels, self.task))}
        logits = self.method.predict(self.model, x, self.task)
        if labels is None:
            return {"logits": logits}
        loss = self.method.validation_loss(self.model, Batch(x, labels, self.task), logits)
        return {"loss": loss / len(labels), "logits": logits}

    def train(self, mode: bool = True) -> Self:
        """Training mode as the method wants it: what the user or the method holds still stays so."""
        super().train(mode)
        if mode:
            self.method.train_mode(self.model)
            keep_frozen_statistics(self.model)
        return self


class _Rows(Dataset[dict[str, Tensor]]):
    """Examples one by one, as dicts."""

    def __init__(self, examples: Examples, first_label: int) -> None:
        self.x, self.y = examples.x, examples.y + first_label

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        x = in_memory(self.x[row : row + 1])
        fields = x if isinstance(x, Fields) else {"x": x}
        return {**{name: value[0] for name, value in fields.items()}, "labels": self.y[row]}


def _refuse_own_steps(method: Method) -> None:
    """A SettingsError for a method that does more in a step than to change gradients and to project."""
    kind = type(method)
    plain = kind.closure is Method.closure and kind.step in (Method.step, HoldingMethod.step)
    if method.learns_together or not plain:
        what = "learns all tasks at once" if method.learns_together else "has training steps of its own"
        raise SettingsError(
            f"method '{method.name}' {what}, which the Trainer of transformers does not: use nesskit.fit"
        )
