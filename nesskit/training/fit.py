""":func:`fit` drives the trainer: it keeps the run on disk, tells who listens, and minds limits and the keyboard."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from nesskit.errors import RunFolderError, SettingsError, TrainingError
from nesskit.methods import Method, make_method
from nesskit.networks.checksums import network_checksum, weights_checksum
from nesskit.networks.task_model import TaskModel
from nesskit.runs.checking import is_config
from nesskit.runs.environment import current_commit, describe_environment
from nesskit.runs.events import EpochFinished, Event, Listener, RunStarted, RunStopped, TaskFinished
from nesskit.runs.folder import RunFolder
from nesskit.runs.identity import difference, folder_within, other_run, same_settings
from nesskit.runs.record import INTERRUPTED, Run
from nesskit.settings import TrainingSettings, to_dict
from nesskit.streams.base import TaskStream
from nesskit.streams.checksums import data_checksums
from nesskit.training.checks import check_arguments, check_run, named_device
from nesskit.training.limits import Limits
from nesskit.training.trainer import Trainer


class OtherRunWarning(UserWarning):
    """The folder of a run holds another run."""


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
    limits: Limits | None = None,
) -> Run:
    """Learn the tasks of ``stream`` one after another.

    Whatever happens, the model is left as an ordinary one: what a method adapted is merged, also after an error or an
    interrupt in the middle of a task. ``model(x, task)`` then answers as the run reports.

    Args:
        model: maps (x, task) to logits; trained in place. What is frozen stays as it is.
        stream: the tasks.
        method: a method or the name of one.
        settings: how each task is trained.
        seed: determines the order of batches and the noise of dropout.
        device: where to compute.
        folder: where the run is kept; a run that lies there already is continued. None: nothing is written. A run is
            known by its settings, data, network and the weights that it began with (or, if the model is the very one
            that was trained, was left with). If another run has been *finished* there, this one lies in a folder of its
            own within, ``run-…``; beside an *unfinished* one nothing is trained: the run returned says why it stopped.
        config: what the record says about the settings; made from the arguments if not given.
        listeners: called with every event.
        limits: when to stop early, how often to save; None: at the end of the stream, every ten epochs.

    Returns:
        The run, also if it was stopped by a limit or a keyboard interrupt (see ``run.status``).

    Raises:
        SettingsError: an argument of another kind.
        TrainingError: the network does not fit a task (nothing is trained then); or the loss is not finite. Earlier
            tasks stay on disk.
        AdaptationError: the model is still adapted.
        RunFolderError: the folder is in use, damaged, or holds a run with other settings.
    """
    method = make_method(method) if isinstance(method, str) else method
    settings, limits = settings or TrainingSettings(), limits or Limits()
    check_arguments(stream=(stream, TaskStream), method=(method, Method), seed=(seed, int), limits=(limits, Limits))
    check_arguments(settings=(settings, TrainingSettings))
    device = named_device(device)
    check_run(model, stream, method, settings)
    if config is not None and not is_config(config):
        raise SettingsError("config must have a method, a seed and a training with epochs: a record is read by them")
    named = config is not None  # by the caller, who has chosen the folder for it
    config = config or {
        "stream": stream.name,
        "method": method.name,
        "seed": seed,
        "training": to_dict(settings),
        "options": to_dict(method.settings),
    }
    names = [task.name for task in stream]
    run = Run.new(config, describe_environment(device), stream.checksums, names)
    if folder is None:
        return _run(Trainer(model, stream, method, settings, run, seed, device), None, listeners, limits)
    folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
    run.data = dict(data_checksums(stream))
    run.network = {"architecture": network_checksum(model), "first_weights": weights_checksum(model)}
    if not named:
        other = other_run(run, folder)
        if other is not None and not other[0].finished:
            return _not_begun(run, folder, other[1], listeners)
        if other is not None:
            folder = _beside(run, folder, other[1])
    folder.read()  # refuses a stranger's folder before as much as a lock is put into it
    with folder.locked():
        return _run(Trainer(model, stream, method, settings, run, seed, device), folder, listeners, limits)


def _run(trainer: Trainer, folder: RunFolder | None, listeners: Sequence[Listener], limits: Limits) -> Run:
    """Begin the run or go on with what lies in ``folder``; however it ends, the model is an ordinary one again."""
    try:
        notes = () if folder is None else _continue(trainer, folder)
        return _drive(trainer, folder, listeners, limits, notes)
    finally:
        trainer.leave()


def _continue(trainer: Trainer, folder: RunFolder) -> tuple[str, ...]:
    """Load what lies in ``folder`` into ``trainer``; what a person should know about it."""
    run, before = trainer.run, folder.read()
    run.folder = folder.path
    if before is None:
        return ()
    what = difference(before, run)
    if what:
        raise RunFolderError(
            f"{before.folder} holds a run with {what}. It was left untouched: choose another runs folder"
        )
    run.network = before.network or run.network
    state = folder.read_checkpoint()
    if state is not None:
        trainer.load_state_dict(state)
    return older_commit(before)


def _beside(run: Run, folder: RunFolder, what: str) -> RunFolder:
    """Where the run lies if another one, which ``what`` makes another, has been finished in ``folder``; says so."""
    own = folder_within(run, folder)
    text = f"{folder.path} holds a finished run with {what}, which stays as it is: this run lies in {own.path}"
    warnings.warn(text, OtherRunWarning, stacklevel=3)
    return own


def _not_begun(run: Run, folder: RunFolder, what: str, listeners: Sequence[Listener]) -> Run:
    """The run, in which nothing was trained: going on would mix two runs, and the other one is not finished."""
    run.status, run.status_reason = (
        "stopped",
        f"{folder.path} holds an unfinished run with {what}, which was left untouched: go on with it with its own data "
        "and network, made from the same seed, or choose another folder",
    )
    warnings.warn(run.status_reason, OtherRunWarning, stacklevel=3)
    for listener in listeners:
        listener(RunStopped(False, run.status_reason, run.average_accuracy, run.backward_transfer))
    return run


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
        try:
            trainer.leave()
        finally:  # also where merging refuses, since something frozen has moved
            if folder is not None:
                run.network["last_weights"] = weights_checksum(trainer.model)
                folder.write(run)
        tell(RunStopped(run.finished, run.status_reason, run.average_accuracy, run.backward_transfer))
    return run


def _events(trainer: Trainer) -> Iterator[Event]:
    """The trainer's events; a GPU that is too small is told from a mistake."""
    try:
        yield from trainer.events()
    except torch.OutOfMemoryError as error:
        reason = str(error).strip().split("\n")[0]
        raise TrainingError(
            f"the memory of {trainer.device} is too small for this run, or others use it ({reason}). What is saved is "
            "kept: the same command goes on once there is more, with fewer runs beside each other or with --device cpu"
        ) from error


def _advance(trainer: Trainer, folder: RunFolder | None, tell: Listener, limits: Limits) -> str:
    """Train until the end or a limit; why it stopped before the end, or an empty string."""
    started = time.monotonic()
    if folder is not None:
        folder.stop_requested()  # one that came too late for the run before is not meant for this one
    if limits.tasks is not None and trainer.run.tasks_done >= limits.tasks and trainer.tasks_left:
        return limits.enough_tasks()
    for event in _events(trainer):
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
