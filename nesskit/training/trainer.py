"""The training loop: a generator of events, between any two of which a run can be saved and taken up again."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nesskit.adaptation.capture import call, evaluating
from nesskit.analysis.similarity import kept_similarity
from nesskit.errors import TrainingError
from nesskit.methods import Method
from nesskit.networks.shared_head import SharedHead
from nesskit.networks.task_model import TaskModel
from nesskit.runs.events import EpochFinished, Event, TaskFinished, TaskStarted
from nesskit.runs.profile_file import pack_profiles, unpack_profiles
from nesskit.runs.record import EpochRecord, Run
from nesskit.seeds import derive_seed
from nesskit.settings import TrainingSettings
from nesskit.streams.base import Examples, TaskStream, normalise
from nesskit.streams.batches import Batch, MixedData, TaskData
from nesskit.training.answers import class_means, right_answers
from nesskit.training.averaging import WeightAverage
from nesskit.training.graphs import make_steps
from nesskit.training.optim import forget_momentum, make_optimizer
from nesskit.training.schedule import Schedule
from nesskit.training.steps import Steps


@dataclass
class Stage:
    """How far the current stage (one task, or all of them in joint training) has come."""

    schedule: Schedule
    epochs_done: int = 0
    best_score: float = -math.inf
    best_weights: dict[str, Tensor] | None = None  # those with the best score; None where nothing is scored
    resumed: dict[str, Any] | None = None  # what the optimizer and the average of the weights go on from


class Trainer:
    """The state of a run and the generator that advances it.

    Between two events the state is whole: ``state_dict`` may be saved, and a trainer that loads it goes on right there.
    """

    def __init__(
        self,
        model: TaskModel,
        stream: TaskStream,
        method: Method,
        settings: TrainingSettings,
        run: Run,
        seed: int,
        device: torch.device,
    ) -> None:
        self.model = model.to(device)
        self.stream, self.method, self.settings = stream, method, settings
        self.run, self.seed, self.device = run, seed, device
        model.forget_own_parts()  # what an earlier run let single tasks use is none of this one's
        method.reset()  # also where a method's own begin_run does not
        method.begin_run(settings)
        method.label_smoothing = settings.label_smoothing
        every = range(len(stream))
        self.stages = [tuple(every)] if method.learns_together else [(task,) for task in every]
        self.stages_done = 0
        self.stage: Stage | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.average: WeightAverage | None = None
        self.first_features: Tensor | None = None  # (n, d) of the held-out inputs, before the first task
        self.left = False

    def leave(self) -> None:
        """Make an ordinary model of the model, wherever the run has come; the trainer is of no use afterwards."""
        if not self.left:
            self.left = True
            self.method.end_run(self.model)

    @property
    def tasks_left(self) -> bool:
        """Whether there is anything left to learn."""
        return self.stages_done < len(self.stages)

    def events(self) -> Iterator[Event]:
        """Train what is left, yielding what happens."""
        while self.tasks_left:
            yield from self._learn(self.stages[self.stages_done])

    def _learn(self, tasks: Sequence[int]) -> Iterator[Event]:
        data = [self._data(task) for task in tasks]
        last = tasks[-1]
        self.model.see(last + 1)
        started = time.perf_counter()
        if self.stage is None:
            if not self.stages_done:
                self.first_features = self._held_out_features()
                self.method.begin_stream(self.model, self.stream)
            with self._noise("begin task", last):
                for task_data in data:
                    self.method.begin_task(self.model, task_data)
            self.stage = Stage(Schedule(self.settings.lr))
        yield TaskStarted(last, self.stream[last].name, self.settings.epochs)

        self.optimizer = self._optimizer(tasks, self.stage)
        self.average = self._average(self.optimizer, self.stage)
        self.stage.resumed = None
        trained = _numbers_that_learn(self.optimizer)
        training = [MixedData(data)] if self.model.shares_head and len(data) > 1 else data
        replayable = self.method.replayable and all(task_data.alike for task_data in training)
        steps = make_steps(self._step, replayable, self.optimizer, self.device)
        while self.stage.epochs_done < self.settings.epochs and not self.stage.schedule.over:
            yield self._epoch(training, data, self.stage, steps)

        if self.stage.best_weights is not None:
            self.model.load_state_dict(self.stage.best_weights, strict=False)
        elif self.average is not None:
            self.average.keep()
        self.model.zero_grad()  # or frozen weights and earlier heads would keep their last gradient, as large as they
        with self._noise("end task", last):
            for task_data in data:
                self.run.profiles.extend(self.method.end_task(self.model, task_data))
        if self.settings.head == "means":
            self._keep_means(data)
        row = self._evaluate_row(last)
        self._note_costs(trained)
        self.stage, self.optimizer, self.average = None, None, None
        self.stages_done += 1
        yield TaskFinished(last, self.stream[last].name, tuple(row), time.perf_counter() - started)

    def _keep_means(self, data: Sequence[TaskData]) -> None:
        """The mean features of each class of these tasks, as they are now, become part of the model."""
        for task_data in data:
            means = class_means(self.method, self.model, task_data, self.settings.evaluation_batch_size)
            self.model.means.keep(task_data.index, means)

    def _note_costs(self, trained: int) -> None:
        """How many numbers a stage has trained, what it left of pretrained similarities, and what is kept from it."""
        self.run.trained_numbers.append(trained)
        if self.first_features is not None:
            self.run.kept_similarity.append(kept_similarity(self.first_features, self._held_out_features()))
        self.run.memory = {**self.method.memory_report(), **self.model.means.sizes()}

    def _data(self, task: int) -> TaskData:
        """The task with this number on the device; a network with BatchNorm gets no batch of one."""
        company = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in self.model.modules())
        first_label = self.model.classes_of(task).start if self.model.shares_head else 0
        return TaskData(self.stream[task], task, self.device, company, first_label)

    def _optimizer(self, tasks: Sequence[int], stage: Stage) -> torch.optim.Optimizer:
        """A fresh optimizer for the stage, or the one that a resumed stage had."""
        groups = self.method.parameter_groups(self.model, tasks, self.settings.weight_decay)
        if not any(parameter.requires_grad for group in groups for parameter in group["params"]):
            raise TrainingError(
                f"task {tasks[-1] + 1} can learn nothing: all that method '{self.method.name}' would train is frozen"
            )
        optimizer = make_optimizer(self.settings, groups, self.stages_done)
        if stage.resumed is not None:
            optimizer.load_state_dict(stage.resumed["optimizer"])
        return optimizer

    def _average(self, optimizer: torch.optim.Optimizer, stage: Stage) -> WeightAverage | None:
        """The average of what learns, from the stage's beginning on or as a resumed stage had it; None if not asked."""
        if not self.settings.ema_decay:
            return None
        learning = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
        average = WeightAverage(learning, self.settings.ema_decay)
        if stage.resumed is not None:
            average.load(stage.resumed["averages"])
        return average

    def _epoch(
        self, training: Sequence[TaskData], data: Sequence[TaskData], stage: Stage, steps: Steps
    ) -> EpochFinished:
        """Train on the batches of ``training`` once, and validate on those of ``data``."""
        started = time.perf_counter()
        epoch, task = stage.epochs_done, data[-1].index
        lr = stage.schedule.rate(epoch, self.settings)
        train_loss = self._train_epoch(training, stage, steps, lr)
        self.method.end_epoch(self.model)
        stage.epochs_done += 1
        valid_loss = valid_accuracy = None
        if any(len(d.valid.y) for d in data):
            with contextlib.nullcontext() if self.average is None else self.average.in_place():
                valid_loss, valid_accuracy = self._validate(data, epoch)
                self._keep_if_best(stage, valid_loss, valid_accuracy)
            before, stage.schedule = stage.schedule, stage.schedule.after(valid_loss, self.settings)
            if self.method.fresh_momentum and stage.schedule.lr < before.lr:
                forget_momentum(steps.optimizer)
        seconds = time.perf_counter() - started
        self.run.seconds += seconds
        self.run.history.append(EpochRecord(task, epoch, train_loss, valid_loss, valid_accuracy, lr))
        return EpochFinished(
            task, epoch, self.settings.epochs, train_loss, valid_loss, valid_accuracy, lr, round(seconds, 3)
        )

    def _keep_if_best(self, stage: Stage, valid_loss: float, valid_accuracy: float) -> None:
        """Keep the present weights if they are judged better than any before; equal is not better."""
        score = {"lowest-loss": -valid_loss, "highest-accuracy": valid_accuracy}.get(self.settings.kept_weights)
        if score is not None and score > stage.best_score:
            stage.best_score, stage.best_weights = score, _changing_tensors(self.model)

    def _train_epoch(self, data: Sequence[TaskData], stage: Stage, steps: Steps, lr: float) -> float:
        """One pass over the training examples in random order; the mean loss."""
        place = (self.stages_done, stage.epochs_done)
        shuffle = torch.Generator().manual_seed(derive_seed(self.seed, "shuffle", *place))
        self.method.train_mode(self.model)
        keep_frozen_statistics(self.model)
        steps.begin_epoch(lr)
        with self._noise("noise", *place):  # dropout and whatever else a model or method draws
            for task_data, rows in _shuffled(data, self.settings.batch_size, shuffle):
                steps.take(task_data, rows)
        mean = float(steps.total) / sum(len(d.train.y) for d in data)
        if not math.isfinite(mean):
            raise TrainingError(self._diverged(data[-1].index, stage.epochs_done))
        return mean

    def _step(self, batch: Batch) -> Tensor:
        """One training step on ``batch``; its mean loss."""
        assert self.optimizer is not None
        # Entered anew for every step: autocast keeps its half-precision copies of the weights until it is left.
        half = self.settings.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16) if half else contextlib.nullcontext():
            loss = self.method.step(self.model, batch, self.optimizer)
        if self.average is not None:
            self.average.update()
        return loss

    @contextlib.contextmanager
    def _noise(self, *purpose: int | str) -> Iterator[None]:
        """Torch's generator, seeded for one purpose inside and as it was before afterwards."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derive_seed(self.seed, *purpose))
            yield

    def _validate(self, data: Sequence[TaskData], epoch: int) -> tuple[float, float]:
        """Mean loss and accuracy (percent) over the validation examples of the stage."""
        place = ("validation", self.stages_done, epoch)
        results = [(len(d.valid.y), *self._evaluate(d, d.valid, *place)) for d in data if len(d.valid.y)]
        count = sum(n for n, _, _ in results)
        loss = sum(n * loss for n, loss, _ in results) / count
        if not math.isfinite(loss):
            raise TrainingError(self._diverged(data[-1].index, epoch))
        return loss, sum(n * accuracy for n, _, accuracy in results) / count

    @torch.no_grad()
    def _held_out_features(self) -> Tensor | None:
        """(n, d) what the network that tasks share makes of the stream's held-out inputs; None if there are none."""
        if self.stream.held_out is None:
            return None
        backbone, normalisation = self.model.backbone, self.stream[0].normalisation
        network = backbone.network if isinstance(backbone, SharedHead) else backbone
        with evaluating(network):
            parts = self.stream.held_out.split(self.settings.evaluation_batch_size)
            return torch.cat([call(network, normalise(x, normalisation)).cpu() for x in parts])

    def _evaluate_row(self, last: int) -> list[float]:
        """Test (and validate) every task up to ``last`` and note it in the accuracy matrices."""
        started = time.perf_counter()
        for task in range(last + 1):
            data = self._data(task)
            accuracy, named = self._test(data, data.test, "test", last)
            self.run.accuracy[last, task] = accuracy
            if self.settings.head != "task":
                self.run.named_accuracy[last, task] = named
            if len(data.valid.y):
                self.run.valid_accuracy[last, task] = self._test(data, data.valid, "valid", last)[0]
        self.run.seconds += time.perf_counter() - started
        return self.run.accuracy[last, : last + 1].tolist()

    @torch.no_grad()
    def _test(self, data: TaskData, examples: Examples, part: str, last: int) -> tuple[float, float]:
        """Accuracy in percent after task ``last``, as the settings' head has it, and with the task's name."""
        self.model.eval()
        right = torch.zeros(2, dtype=torch.int64, device=self.device)
        for batch in self._batches(data, examples, part, last):
            right += torch.stack(right_answers(self.method, self.model, batch, last + 1, self.settings.head))
        accuracy, named = (100 * count / len(examples.y) for count in right.tolist())
        return accuracy, named

    def _batches(self, data: TaskData, examples: Examples, *purpose: int | str) -> Iterator[Batch]:
        """The batches of an evaluation.

        Fixed, the same examples always share one; reshuffled, ``purpose`` and the task draw them.
        """
        order = data.shortest_first(examples)
        if self.settings.evaluation_order == "reshuffled":
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "evaluation", *purpose, data.index))
            order = torch.randperm(len(examples.y), generator=generator)
        return data.batches(examples, self.settings.evaluation_batch_size, order)

    @torch.no_grad()
    def _evaluate(self, data: TaskData, examples: Examples, *purpose: int | str) -> tuple[float, float]:
        """Mean loss and accuracy in percent, by the head that is trained."""
        self.model.eval()
        loss = torch.zeros((), device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for batch in self._batches(data, examples, *purpose):
            logits = self.method.predict(self.model, batch.x, batch.task)
            loss += self.method.validation_loss(self.model, batch, logits)
            correct += (logits.argmax(dim=1) == batch.y).sum()
        both = torch.stack([loss, correct.to(loss.dtype)]).tolist()  # once: a GPU is waited for
        return both[0] / len(examples.y), 100 * both[1] / len(examples.y)

    def _diverged(self, task: int, epoch: int) -> str:
        broken = [name for name, p in self.model.named_parameters() if not torch.isfinite(p).all()]
        where = f", first in the weights of '{broken[0]}'" if broken else ""
        return (
            f"the loss is not finite in task {task + 1} ('{self.stream[task].name}'), epoch {epoch + 1}{where}. "
            f"Lower the learning rate (lr = {self.settings.lr}); earlier tasks are kept"
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on from here, as tensors and plain values."""
        stage = None
        if self.stage is not None and self.optimizer is not None:
            stage = {
                "schedule": asdict(self.stage.schedule),
                "epochs_done": self.stage.epochs_done,
                "best_score": self.stage.best_score,
                "best_weights": self.stage.best_weights,
                "optimizer": self.optimizer.state_dict(),
                "averages": self.average and self.average.averages,
            }
        return {
            "stages_done": self.stages_done,
            "stage": stage,
            "model": self.model.state_dict(),
            "method": self.method.state_dict(),
            "first_features": self.first_features,
            "results": self.run.results(),
            "profiles": {
                name: torch.from_numpy(values) if isinstance(values, np.ndarray) else values
                for name, values in pack_profiles(self.run.profiles).items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where ``state_dict`` was taken."""
        self.stages_done = state["stages_done"]
        # First the method, which gives the model the structure (bases) that the saved weights belong to.
        self.method.load_state_dict(self.model, state["method"])
        self.model.load_state_dict(state["model"])
        self.first_features = state.get("first_features")  # older checkpoints know of no held-out inputs
        self.run.restore_results(state["results"])
        self.run.profiles = unpack_profiles(state["profiles"])
        if state["stage"] is not None:
            saved = state["stage"]
            best = saved["best_weights"]
            best = best and {name: tensor.to(self.device) for name, tensor in best.items()}
            schedule = Schedule(**saved["schedule"])
            score = saved.get("best_score", -schedule.best_loss)  # what checkpoints of older versions go by
            self.stage = Stage(schedule, saved["epochs_done"], score, best, saved)


def _shuffled(
    data: Sequence[TaskData], batch_size: int, generator: torch.Generator
) -> Iterator[tuple[TaskData, Tensor]]:
    """All training examples once, in batches of one task each, in random order: the task and the rows of each batch."""
    batches = []
    for task_data in data:
        batches += [(task_data, rows) for rows in task_data.shuffled(batch_size, generator)]
    if len(data) == 1:
        yield from batches
        return
    for index in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[index]


def _numbers_that_learn(optimizer: torch.optim.Optimizer) -> int:
    """How many numbers the optimizer trains."""
    return sum(p.numel() for group in optimizer.param_groups for p in group["params"] if p.requires_grad)


def _changing_tensors(model: TaskModel) -> dict[str, Tensor]:
    """Copies of every tensor that training may change: trainable parameters, and buffers but for :func:`_stands`."""
    tensors: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tensors |= {name: buffer for name, buffer in model.named_buffers() if not _stands(name)}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _stands(buffer: str) -> bool:
    """Whether a buffer stays as it is while a task learns: a NESS layer's basis, and what other tasks have."""
    return buffer.endswith((".basis", ".occupied")) or buffer.startswith(("scaled.", "private."))


def keep_frozen_statistics(model: TaskModel) -> None:
    """Stop the running averages of every normalisation whose parameters the user froze: the layer stays as it is."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            own = list(module.parameters(recurse=False))
            if own and not any(parameter.requires_grad for parameter in own):
                module.training = False
