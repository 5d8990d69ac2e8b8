"""The training loop: a generator of events, and :func:`fit`, which drives it and keeps the run on disk."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from nesskit.errors import RunFolderError, TrainingError
from nesskit.events import EpochFinished, Event, Listener, RunStarted, RunStopped, TaskFinished, TaskStarted
from nesskit.methods import Method, make_method
from nesskit.networks.task_model import TaskModel
from nesskit.optim import make_optimizer
from nesskit.records import (
    INTERRUPTED,
    EpochRecord,
    Run,
    RunFolder,
    current_commit,
    describe_environment,
    pack_profiles,
    unpack_profiles,
)
from nesskit.seeds import derive_seed
from nesskit.settings import TrainingSettings, to_dict
from nesskit.streams.base import Examples, TaskStream
from nesskit.streams.batches import TaskData


@dataclass(frozen=True)
class Limits:
    """When to stop early, and how often to save; no part of a run's settings, so that a stopped run can go on later."""

    tasks: int | None = None
    """Stop after this many tasks."""
    minutes: float | None = None
    """Stop at the first epoch that ends after this time."""
    checkpoint_epochs: int = 10
    """Save the state after this many epochs, beside every end of a task."""

    def reached_by(self, event: Event, seconds: float) -> str:
        """Why to stop after ``event``, ``seconds`` after the start; an empty string to go on."""
        if isinstance(event, TaskFinished) and self.tasks is not None and event.task + 1 >= self.tasks:
            return self.enough_tasks()
        late = self.minutes is not None and seconds > 60 * self.minutes
        if late and isinstance(event, EpochFinished | TaskFinished):
            return f"stopped after {self.minutes:g} minutes, as asked"
        return ""

    def enough_tasks(self) -> str:
        """The reason for a stop after ``tasks`` tasks."""
        return f"stopped after {self.tasks} tasks, as asked"


@dataclass(frozen=True)
class Schedule:
    """Learning rate and patience within one task: a pure function of the validation losses so far."""

    lr: float
    best_loss: float = math.inf
    bad_epochs: int = 0
    over: bool = False

    def improves(self, valid_loss: float) -> bool:
        """Whether this is a strictly lower validation loss than any before."""
        return valid_loss < self.best_loss

    def after(self, valid_loss: float, settings: TrainingSettings) -> Schedule:
        """After an epoch: a lower rate when patience runs out, the end when the rate is under its minimum."""
        if self.improves(valid_loss):
            return Schedule(self.lr, valid_loss)
        if not settings.lr_patience or self.bad_epochs + 1 < settings.lr_patience:
            return Schedule(self.lr, self.best_loss, self.bad_epochs + 1)
        lr = self.lr * settings.lr_factor
        return Schedule(lr, self.best_loss, over=lr < settings.lr_minimum)


@dataclass
class Stage:
    """How far the current stage (one task, or all of them in joint training) has come."""

    schedule: Schedule
    epochs_done: int = 0
    best_weights: dict[str, Tensor] | None = None  # of the lowest validation loss; None without validation data
    optimizer_state: dict[str, Any] | None = None  # set when the stage is resumed, until the optimizer takes it


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
        method.begin_run(settings)
        every = range(len(stream))
        self.stages = [tuple(every)] if method.learns_together else [(task,) for task in every]
        self.stages_done = 0
        self.stage: Stage | None = None
        self.optimizer: torch.optim.Optimizer | None = None

    @property
    def tasks_left(self) -> bool:
        """Whether there is anything left to learn."""
        return self.stages_done < len(self.stages)

    def events(self) -> Iterator[Event]:
        """Train what is left, yielding what happens."""
        while self.tasks_left:
            yield from self._learn(self.stages[self.stages_done])

    def _learn(self, tasks: Sequence[int]) -> Iterator[Event]:
        data = [TaskData(self.stream[task], task, self.device) for task in tasks]
        last = tasks[-1]
        started = time.perf_counter()
        if self.stage is None:
            with self._noise("begin task", last):
                for task_data in data:
                    self.method.begin_task(self.model, task_data)
            self.stage = Stage(Schedule(self.settings.lr))
        yield TaskStarted(last, self.stream[last].name, self.settings.epochs)

        self.optimizer = self._optimizer(tasks, self.stage)
        while self.stage.epochs_done < self.settings.epochs and not self.stage.schedule.over:
            yield self._epoch(data, self.stage)

        if self.stage.best_weights is not None:
            self.model.load_state_dict(self.stage.best_weights, strict=False)
        self.model.zero_grad()  # or frozen weights and earlier heads would keep their last gradient, as large as they
        with self._noise("end task", last):
            for task_data in data:
                self.run.profiles.extend(self.method.end_task(self.model, task_data))
        row = self._evaluate_row(last)
        self.run.memory = self.method.memory_report()
        self.stage, self.optimizer = None, None
        self.stages_done += 1
        yield TaskFinished(last, self.stream[last].name, tuple(row), time.perf_counter() - started)

    def _optimizer(self, tasks: Sequence[int], stage: Stage) -> torch.optim.Optimizer:
        """A fresh optimizer for the stage, or the one that a resumed stage had."""
        groups = self.method.parameter_groups(self.model, tasks, self.settings.weight_decay)
        optimizer = make_optimizer(self.settings, groups, self.stages_done)
        if stage.optimizer_state is not None:
            optimizer.load_state_dict(stage.optimizer_state)
            stage.optimizer_state = None
        return optimizer

    def _epoch(self, data: Sequence[TaskData], stage: Stage) -> EpochFinished:
        started = time.perf_counter()
        lr, epoch, task = stage.schedule.lr, stage.epochs_done, data[-1].index
        train_loss = self._train_epoch(data, stage)
        self.method.end_epoch(self.model)
        stage.epochs_done += 1
        valid_loss = valid_accuracy = None
        if any(len(d.valid.y) for d in data):
            valid_loss, valid_accuracy = self._validate(data, epoch)
            if stage.schedule.improves(valid_loss):
                stage.best_weights = _changing_tensors(self.model)
            stage.schedule = stage.schedule.after(valid_loss, self.settings)
        seconds = time.perf_counter() - started
        self.run.seconds += seconds
        self.run.history.append(EpochRecord(task, epoch, train_loss, valid_loss, valid_accuracy, lr))
        return EpochFinished(
            task, epoch, self.settings.epochs, train_loss, valid_loss, valid_accuracy, lr, round(seconds, 3)
        )

    def _train_epoch(self, data: Sequence[TaskData], stage: Stage) -> float:
        """One pass over the training examples in random order; the mean loss."""
        assert self.optimizer is not None
        for group in self.optimizer.param_groups:
            group["lr"] = stage.schedule.lr
        place = (self.stages_done, stage.epochs_done)
        shuffle = torch.Generator().manual_seed(derive_seed(self.seed, "shuffle", *place))
        self.method.train_mode(self.model)
        total = torch.zeros((), device=self.device)
        # Entered anew for every step: autocast keeps its half-precision copies of the weights until it is left.
        autocast = functools.partial(torch.autocast, self.device.type, torch.bfloat16)
        precision = autocast if self.settings.precision == "bfloat16" else contextlib.nullcontext
        with self._noise("noise", *place):  # dropout and whatever else a model or method draws
            for task_data, rows in _shuffled(data, self.settings.batch_size, shuffle):
                batch = task_data.batch(task_data.train, rows.to(self.device))
                with precision():
                    loss = self.method.step(self.model, batch, self.optimizer)
                total += loss * len(rows)
        mean = float(total) / sum(len(d.train.y) for d in data)
        if not math.isfinite(mean):
            raise TrainingError(self._diverged(data[-1].index, stage.epochs_done))
        return mean

    @contextlib.contextmanager
    def _noise(self, *purpose: int | str) -> Iterator[None]:
        """Torch's generator, seeded for one purpose inside and as it was before afterwards."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(derive_seed(self.seed, *purpose))
            yield

    def _validate(self, data: Sequence[TaskData], epoch: int) -> tuple[float, float]:
        """Mean loss and accuracy (percent) over the validation examples of the stage."""
        results = [(len(d.valid.y), *self._evaluate(d, d.valid)) for d in data if len(d.valid.y)]
        count = sum(n for n, _, _ in results)
        loss = sum(n * loss for n, loss, _ in results) / count
        if not math.isfinite(loss):
            raise TrainingError(self._diverged(data[-1].index, epoch))
        return loss, sum(n * accuracy for n, _, accuracy in results) / count

    def _evaluate_row(self, last: int) -> list[float]:
        """Test (and validate) every task up to ``last`` and note it in the accuracy matrices."""
        started = time.perf_counter()
        for task in range(last + 1):
            data = TaskData(self.stream[task], task, self.device)
            self.run.accuracy[last, task] = self._evaluate(data, data.test)[1]
            if len(data.valid.y):
                self.run.valid_accuracy[last, task] = self._evaluate(data, data.valid)[1]
        self.run.seconds += time.perf_counter() - started
        return self.run.accuracy[last, : last + 1].tolist()

    @torch.no_grad()
    def _evaluate(self, data: TaskData, examples: Examples) -> tuple[float, float]:
        """Mean loss and accuracy in percent, in fixed batches: the same examples always share a batch."""
        self.model.eval()
        loss = torch.zeros((), device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for batch in data.batches(examples, self.settings.evaluation_batch_size):
            logits = self.method.predict(self.model, batch.x, batch.task)
            loss += F.cross_entropy(logits, batch.y, reduction="sum")
            correct += (logits.argmax(dim=1) == batch.y).sum()
        return float(loss) / len(examples.y), 100 * float(correct) / len(examples.y)

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
                "best_weights": self.stage.best_weights,
                "optimizer": self.optimizer.state_dict(),
            }
        return {
            "stages_done": self.stages_done,
            "stage": stage,
            "model": self.model.state_dict(),
            "method": self.method.state_dict(),
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
        self.run.restore_results(state["results"])
        self.run.profiles = unpack_profiles(state["profiles"])
        if state["stage"] is not None:
            saved = state["stage"]
            best = saved["best_weights"]
            best = best and {name: tensor.to(self.device) for name, tensor in best.items()}
            self.stage = Stage(Schedule(**saved["schedule"]), saved["epochs_done"], best, saved["optimizer"])


def fit(
    model: TaskModel,
    stream: TaskStream,
    method: Method | str,
    settings: TrainingSettings | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    folder: RunFolder | str | None = None,
    config: Mapping[str, Any] | None = None,
    listeners: Sequence[Listener] = (),
    limits: Limits = Limits(),
) -> Run:
    """Learn the tasks of ``stream`` one after another.

    Args:
        model: maps (x, task) to logits; trained in place.
        stream: the tasks.
        method: a method or the name of one.
        settings: how each task is trained.
        seed: determines the order of batches and the noise of dropout.
        device: where to compute.
        folder: where the run is kept; a run that lies there already is continued. None: nothing is written.
        config: what the record says about the settings; made from the arguments if not given.
        listeners: called with every event.
        limits: when to stop early, how often to save.

    Returns:
        The run, also if it was stopped by a limit or a keyboard interrupt (see ``run.status``).

    Raises:
        TrainingError: the loss is not finite. Earlier tasks stay on disk.
        RunFolderError: the folder is in use, damaged, or holds a run with other settings.
    """
    method = make_method(method) if isinstance(method, str) else method
    settings = settings or TrainingSettings()
    device = torch.device(device)
    if not isinstance(model, TaskModel) or len(model.heads) < len(stream):
        raise TrainingError(
            f"fit needs a TaskModel(backbone, features, class_counts) with a head for each of the {len(stream)} tasks, "
            f"got {type(model).__name__}"
        )
    if settings.lr_patience and not all(len(task.valid.y) for task in stream):
        raise TrainingError("lr_patience watches the validation loss, but a task has no validation examples")
    config = config or {
        "stream": stream.name,
        "method": method.name,
        "seed": seed,
        "training": to_dict(settings),
        "options": to_dict(method.settings),
    }
    names = [task.name for task in stream]
    run = Run.new(config, describe_environment(device), stream.checksums, names)
    trainer = Trainer(model, stream, method, settings, run, seed, device)
    if folder is None:
        return _drive(trainer, None, listeners, limits, notes=())
    folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    folder.read()  # refuses a stranger's folder before as much as a lock is put into it
    with folder.locked():
        notes = _continue(trainer, folder)
        return _drive(trainer, folder, listeners, limits, notes)


def _continue(trainer: Trainer, folder: RunFolder) -> tuple[str, ...]:
    """Load what lies in ``folder`` into ``trainer``; what a person should know about it."""
    run, before = trainer.run, folder.read()
    run.folder = folder.path
    if before is None:
        return ()
    if not same_settings(before.config, run.config) or before.data != run.data:
        what = "data" if same_settings(before.config, run.config) else "settings"
        raise RunFolderError(
            f"{folder.path} holds a run with other {what}. It was left untouched: choose another runs folder"
        )
    state = folder.read_checkpoint()
    if state is not None:
        trainer.load_state_dict(state)
    return older_commit(before)


def same_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configurations mean the same run: all but the name of the preset must agree."""
    return {**one, "preset": None} == {**other, "preset": None}


def older_commit(run: Run) -> tuple[str, ...]:
    """A note if ``run`` was recorded at another commit than the present one."""
    then, now = run.environment.get("commit"), current_commit()
    return () if then == now else (f"recorded at commit {then}, this is {now}",)


def finished_run(folder: RunFolder, config: Mapping[str, Any], listeners: Sequence[Listener]) -> Run | None:
    """The finished run with these settings in ``folder``, announced to ``listeners``; None if there is none."""
    run = folder.read()
    if run is None or not run.finished or not same_settings(run.config, config):
        return None
    for listener in listeners:
        listener(RunStarted("finished", len(run.tasks), run.tasks_done, 0, str(folder.path), older_commit(run)))
    return run


def _drive(
    trainer: Trainer, folder: RunFolder | None, listeners: Sequence[Listener], limits: Limits, notes: tuple[str, ...]
) -> Run:
    """Consume the trainer's events: save, tell the listeners, mind the limits and the keyboard."""
    run = trainer.run

    def tell(event: Event) -> None:
        if folder is not None:
            folder.append_event(event)
        for listener in listeners:
            listener(event)

    epochs_done = trainer.stage.epochs_done if trainer.stage else 0
    begun = bool(trainer.stages_done or epochs_done)
    path = None if folder is None else str(folder.path)
    tell(RunStarted("continued" if begun else "new", len(run.tasks), run.tasks_done, epochs_done, path, notes))
    run.status, run.status_reason = "running", ""
    if folder is not None:
        folder.write(run)
    try:
        run.status_reason = _advance(trainer, folder, tell, limits)
        run.status = "stopped" if run.status_reason else "finished"
    except KeyboardInterrupt:
        run.status, run.status_reason = "stopped", INTERRUPTED
    except Exception as error:
        run.status, run.status_reason = "failed", f"{type(error).__name__}: {error}"
        raise
    finally:
        if folder is not None:
            folder.write(run)
        tell(RunStopped(run.finished, run.status_reason, run.average_accuracy, run.backward_transfer))
    return run


def _advance(trainer: Trainer, folder: RunFolder | None, tell: Listener, limits: Limits) -> str:
    """Train until the end or a limit; why it stopped before the end, or an empty string."""
    started = time.monotonic()
    if folder is not None:
        folder.stop_requested()  # one that came too late for the run before is not meant for this one
    if limits.tasks is not None and trainer.run.tasks_done >= limits.tasks and trainer.tasks_left:
        return limits.enough_tasks()
    for event in trainer.events():
        reason = limits.reached_by(event, time.monotonic() - started)
        if folder is not None and isinstance(event, EpochFinished) and folder.stop_requested():
            reason = "stopped on request"
        due = isinstance(event, EpochFinished) and (event.epoch + 1) % limits.checkpoint_epochs == 0
        if folder is not None and (due or reason or isinstance(event, TaskFinished)):
            folder.write_checkpoint(trainer.state_dict())
            folder.write(trainer.run)
        tell(event)
        if reason and trainer.tasks_left:
            return reason
    return ""


def _shuffled(
    data: Sequence[TaskData], batch_size: int, generator: torch.Generator
) -> Iterator[tuple[TaskData, Tensor]]:
    """All training examples once, in batches of one task each, in random order."""
    batches = [
        (task_data, rows)
        for task_data in data
        for rows in torch.randperm(len(task_data.train.y), generator=generator).split(batch_size)
    ]
    if len(data) == 1:
        yield from batches
        return
    for index in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[index]


def _changing_tensors(model: TaskModel) -> dict[str, Tensor]:
    """Copies of every tensor that training may change: trainable parameters, and buffers but for NESS layers' bases."""
    tensors: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
    tensors |= {name: b for name, b in model.named_buffers() if not name.endswith((".basis", ".occupied"))}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
