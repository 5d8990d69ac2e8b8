"""What must hold on a GPU before any number from it is believed: the same mathematics as on the CPU, and the same run
however it is taken. The tests of CUDA and the study on a GPU share these; on a CPU they hold as well.

Each essential returns what it measured and what that may be at most; it is called by its function's name.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nesskit.adaptation.adapt import adapt, adapted_layers, merge
from nesskit.adaptation.capture import collect_moments
from nesskit.methods import METHODS, make_method
from nesskit.networks import TaskModel
from nesskit.runs.events import EpochFinished, Event
from nesskit.runs.record import Run
from nesskit.settings import NESSSettings, TrainingSettings
from nesskit.spectra.filters import FixedRank, FrobeniusThreshold
from nesskit.spectra.moment import Moment
from nesskit.streams import load_stream
from nesskit.streams.base import TaskStream
from nesskit.training.fit import fit
from nesskit.training.graphs import SWITCH, GraphWarning
from nesskit.training.limits import Limits

ROUND_OFF = 1e-9  # of float64, relative, after some matrix products
CHANCE = 1e-3  # of float32 over a short run, relative; other noise in a step would come to much more


class Measured(NamedTuple):
    """What was measured, what it may be at most, and what it is."""

    value: float
    limit: float
    what: str

    @property
    def holds(self) -> bool:
        """Whether it is small enough; NaN is not."""
        return self.value <= self.limit


def moments_are_those_of_the_cpu(device: torch.device) -> Measured:
    """Second moments of every layer's inputs, convolutions included."""
    x = torch.rand(16, 3, 32, 32, generator=_generator(), dtype=torch.float64)
    here, there = (collect_moments(_convolutions().to(place), [x.to(place)]) for place in ("cpu", device))
    off = max(_distance(here[name].matrix, there[name].matrix) for name in here)
    return Measured(off, ROUND_OFF, "largest relative difference of a layer's moment")


def null_spaces_are_those_of_the_cpu(device: torch.device) -> Measured:
    """The projector onto the free directions of inputs that leave 100 of 300 free."""
    draw = _generator()
    within, directions = (torch.randn(*shape, generator=draw).double() for shape in ((500, 200), (200, 300)))
    x = within @ directions
    projectors = []
    for place in ("cpu", device):
        moment = Moment(300, place)
        moment.update(x.to(place))
        spectrum = moment.spectrum()
        basis = spectrum.null_basis(FrobeniusThreshold(1e-6).null_rank(spectrum))
        projectors.append(basis @ basis.T)
    ranks = [int(projector.trace().round()) for projector in projectors]
    off = _distance(*projectors) if ranks == [100, 100] else float("nan")
    return Measured(off, 1e-6, f"relative difference of the projectors, of rank {ranks[0]} and {ranks[1]}")


def an_adapted_step_and_its_merge_are_those_of_the_cpu(device: torch.device) -> Measured:
    """A step of SGD in the free directions of every layer, folded into the weights."""
    x = torch.rand(16, 3, 32, 32, generator=_generator(), dtype=torch.float64)
    bases = {
        name: moment.spectrum().null_basis(moment.dimension // 2)
        for name, moment in collect_moments(_convolutions(), [x]).items()
    }
    merged = []
    for place in (torch.device("cpu"), device):
        model = _convolutions().to(place)
        adapt(model, {name: basis.to(place) for name, basis in bases.items()})
        trained = [layer.trained for layer in adapted_layers(model).values()]
        optimizer = torch.optim.SGD(trained, lr=0.1)
        model(x.to(place)).square().mean().backward()
        optimizer.step()
        merged.append({name: tensor.cpu() for name, tensor in merge(model).state_dict().items()})
    off = max(_distance(tensor, merged[1][name]) for name, tensor in merged[0].items() if tensor.is_floating_point())
    return Measured(off, ROUND_OFF, "largest relative difference of a weight after it")


def every_method_learns_two_tasks(device: torch.device) -> Measured:
    """Every method ends, with finite losses and an ordinary model."""
    stream, failed = _stream(), list[str]()
    for name in METHODS:
        model = _network(stream)
        keys = model.state_dict().keys()
        try:
            run = fit(model, stream, name, _training(2), device=device)
        except Exception as error:  # whatever it was, the others are tried
            failed.append(f"{name} ({type(error).__name__}: {error})")
            continue
        _refuse_interrupted(run)
        ordinary = model.state_dict().keys() == keys and all(p.requires_grad for p in model.parameters())
        if not (run.finished and ordinary):
            failed.append(name)
    return Measured(len(failed), 0, f"of {len(METHODS)} methods fail: {'; '.join(failed) or 'none'}")


def a_run_that_was_stopped_ends_as_one_that_was_not(device: torch.device) -> Measured:
    """Stopped in the middle of the second task, under NESS with dropout, and gone on with from its checkpoint."""

    def stop(event: Event) -> None:
        if isinstance(event, EpochFinished) and (event.task, event.epoch) == (1, 2):
            raise KeyboardInterrupt

    whole = _learned(device)
    with tempfile.TemporaryDirectory() as folder:
        _learned(device, folder=folder, listeners=[stop], limits=Limits(checkpoint_epochs=1))
        resumed = _learned(device, folder=folder)
    return Measured(_apart(whole, resumed), CHANCE, "largest relative difference of a loss or weight")


def the_seed_decides_about_dropout(device: torch.device) -> Measured:
    """Two runs of one seed agree, whatever was drawn before; one of another seed does not."""
    one = _learned(device)
    torch.rand(7, device=device)
    off, other = _apart(one, _learned(device)), _apart(one, _learned(device, seed=2))
    return Measured(off if other > 10 * CHANCE else float("nan"), CHANCE, f"difference; of another seed {other:.2g}")


def replayed_steps_are_those_taken_one_by_one(device: torch.device) -> Measured:
    """A run with CUDA graphs and one without; on a CPU there is nothing to replay."""
    with graphs("off"):
        eager = _learned(device)
    with graphs("on"), warnings.catch_warnings():
        warnings.simplefilter("error", GraphWarning)  # steps of NESS can be recorded
        replayed = _learned(device)
    return Measured(_apart(eager, replayed), CHANCE, "largest relative difference of a loss or weight")


ESSENTIALS: tuple[Callable[[torch.device], Measured], ...] = (
    moments_are_those_of_the_cpu,
    null_spaces_are_those_of_the_cpu,
    an_adapted_step_and_its_merge_are_those_of_the_cpu,
    every_method_learns_two_tasks,
    a_run_that_was_stopped_ends_as_one_that_was_not,
    the_seed_decides_about_dropout,
    replayed_steps_are_those_taken_one_by_one,
)


def checked(essential: Callable[[torch.device], Measured], device: torch.device) -> dict[str, Any]:
    """Whether ``essential`` holds and what was measured; an error is a failure, too."""
    try:
        found = essential(device)
    except Exception as error:  # of any kind: it is what is to be found out
        return {"holds": False, "value": None, "limit": None, "what": f"{type(error).__name__}: {error}"}
    finite = found.value if found.value == found.value else None  # NaN has no place in JSON
    return {"holds": found.holds, "value": finite, "limit": found.limit, "what": found.what}


@contextlib.contextmanager
def graphs(switch: str) -> Iterator[None]:
    """CUDA graphs ``on`` or ``off`` inside, and afterwards as before."""
    before = os.environ.get(SWITCH)
    os.environ[SWITCH] = switch
    try:
        yield
    finally:
        if before is None:
            del os.environ[SWITCH]
        else:
            os.environ[SWITCH] = before


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _convolutions() -> nn.Module:
    """A small network with layers as in AlexNet, in float64, so that a difference is one of the mathematics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        first = [nn.Conv2d(3, 8, 4, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
        second = [nn.Conv2d(8, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)]
        return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(576, 64, bias=False)).double()


def _stream() -> TaskStream:
    return load_stream("split-digits", seed=0, validation_share=0.1).first(2)


def _network(stream: TaskStream) -> TaskModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = nn.Sequential(
            nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 16), nn.ReLU()
        )
        return TaskModel(backbone, 16, [len(task.classes) for task in stream])


def _training(epochs: int) -> TrainingSettings:
    return TrainingSettings(epochs=epochs, lr=0.05, lr_patience=1)


def _learned(device: torch.device, seed: int = 1, **options: Any) -> tuple[Run, dict[str, Tensor]]:
    """A run of NESS with dropout, and the weights that it ends with."""
    stream = _stream()
    model = _network(stream)
    method = make_method("ness", NESSSettings(FixedRank(12)))
    run = fit(model, stream, method, _training(5), seed=seed, device=device, **options)
    if "listeners" not in options:
        _refuse_interrupted(run)
    return run, model.state_dict()


def _refuse_interrupted(run: Run) -> None:
    """fit() ends in order when it is interrupted; whoever called it is to stop as well."""
    if run.interrupted:
        raise KeyboardInterrupt


def _apart(one: tuple[Run, dict[str, Tensor]], two: tuple[Run, dict[str, Tensor]]) -> float:
    """The largest relative difference of losses and weights; NaN if one of them did not finish."""
    if not (one[0].finished and two[0].finished):
        return float("nan")
    losses = [torch.tensor([epoch.train_loss for epoch in run.history]) for run, _ in (one, two)]
    weights = [(w, two[1][name]) for name, w in one[1].items() if w.is_floating_point()]
    return max(_distance(a, b) for a, b in [(losses[0], losses[1]), *weights])


def _distance(one: Tensor, two: Tensor) -> float:
    """‖a - b‖ / ‖a‖, in float64 on the CPU."""
    a, b = one.cpu().double(), two.cpu().double()
    return float((a - b).norm() / a.norm().clamp_min(1e-30))
