"""One training step: the plain network, and adapted by NESS in several ways.

`ness` is the method as it is, which chooses each layer's form; `factored` is it without the choice; `dense` forms
W + UV in every forward pass; `anchored` trains W itself and takes out of every gradient, and out of W - W₀ after every
step, what lies along the occupied directions.

They take turns within one process, each as the library trains it (method, optimizer, decay), so that their ratios hold
on a noisy machine.

    python speed/training_step.py            # some minutes
    python speed/training_step.py --quick    # the small networks, fewer rounds
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nesskit import NESS, Examples, NESSSettings, Task, TaskModel, TrainingSettings
from nesskit.methods import Method
from nesskit.networks import MLP, AlexNet, ResNet18
from nesskit.spectra.filters import HardFilter, Probe
from nesskit.spectra.moment import Moment
from nesskit.spectra.projections import project_out
from nesskit.spectra.spectrum import Spectrum
from nesskit.streams.batches import Batch, TaskData
from nesskit.training.optim import make_optimizer

BATCH, CLASSES = 64, 10
OPTIMIZERS = {
    "SGD": TrainingSettings(optimizer="sgd", momentum=0.0, lr=0.01, weight_decay=1e-4),
    "SGD, momentum": TrainingSettings(optimizer="sgd", lr=0.01, weight_decay=1e-4),
    "Adam": TrainingSettings(optimizer="adam", lr=0.001, weight_decay=1e-4),
}


@dataclass(frozen=True)
class Share(HardFilter):
    """Frees the same share of the directions of every layer."""

    name = "share"
    share: float

    def null_rank(self, spectrum: Spectrum, probe: Probe | None = None) -> int:
        return round(self.share * len(spectrum))


class RandomMoment(Moment):
    """A moment whose spectrum is known without a decomposition: random directions."""

    def __init__(self, dimension: int) -> None:
        super().__init__(dimension)
        self.count = 1
        values = torch.linspace(1.0, 0.0, dimension, dtype=torch.float64)
        self.known = Spectrum(values, torch.linalg.qr(torch.randn(dimension, dimension, dtype=torch.float64)).Q)

    def spectrum(self) -> Spectrum:
        return self.known


class DenseUpdate(nn.Module):
    """W + (U V)ᵀ as a parametrisation of the weight: the simple way."""

    def __init__(self, basis: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("basis", basis.to(weight))
        self.coefficients = nn.Parameter(weight.new_zeros(basis.shape[1], len(weight)))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.basis @ self.coefficients).T.reshape(weight.shape)


class Dense(NESS):
    """NESS that forms W + UV in every forward pass."""

    def _adapt(self, model: TaskModel) -> None:
        model.backbone.requires_grad_(False)
        for name, space in self.spaces.items():
            layer = model.backbone.get_submodule(name)
            parametrize.register_parametrization(layer, "weight", DenseUpdate(space.basis, layer.weight))

    def parameter_groups(self, model: TaskModel, tasks: Any, weight_decay: float) -> list[dict[str, Any]]:
        return [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": weight_decay}]


class Anchored(NESS):
    """The constraint held where the weight lives, whatever the optimizer does."""

    def _adapt(self, model: TaskModel) -> None:
        model.backbone.requires_grad_(False)
        self.held = []
        for name, space in self.spaces.items():
            weight = model.backbone.get_submodule(name).weight.requires_grad_()
            self.held.append((weight, weight.detach().clone(), space.occupied.to(weight)))

    def parameter_groups(self, model: TaskModel, tasks: Any, weight_decay: float) -> list[dict[str, Any]]:
        return [{"params": [p for p in model.parameters() if p.requires_grad], "weight_decay": weight_decay}]

    def adjust_gradients(self, model: TaskModel) -> None:
        for weight, _, occupied in self.held:
            weight.grad = project_out(weight.grad, occupied)

    @torch.no_grad()
    def step(self, model: TaskModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        with torch.enable_grad():
            loss = super().step(model, batch, optimizer)
        for weight, anchor, occupied in self.held:
            weight.copy_(anchor + project_out(weight - anchor, occupied))
        return loss


class Factored(NESS):
    """NESS with V for every layer."""

    def begin_run(self, training: TrainingSettings) -> None:
        self.may_project = False


@dataclass(frozen=True)
class Case:
    """A network, what goes in, and which shares of the directions are freed."""

    backbone: Callable[[], nn.Module]
    features: int
    shape: tuple[int, ...]
    shares: tuple[float, ...] = (0.1, 0.5, 0.9)
    optimizers: tuple[str, ...] = ("SGD, momentum", "Adam")
    rounds: int = 9
    steps: int = 1


def one_layer() -> nn.Module:
    return nn.Sequential(nn.Linear(2048, 2048, bias=False))


# The layer's inputs want a gradient, as they do within a network.
CASES = {
    "MLP": Case(lambda: MLP(64, (128, 128)), 128, (64,), rounds=25, steps=40),
    "2048-2048": Case(one_layer, 2048, (2048,), (1900 / 2048,), tuple(OPTIMIZERS), rounds=15, steps=2),
    "AlexNet": Case(AlexNet, 2048, (3, 32, 32)),
    "ResNet18": Case(ResNet18, 640, (3, 32, 32), rounds=7),
}
METHODS: dict[str, Callable[[NESSSettings], Method]] = {
    "plain": lambda _: Method(),
    "ness": NESS,
    "factored": Factored,
    "dense": Dense,
    "anchored": Anchored,
}


def stepper(
    method: Method, case: Case, moments: Mapping[str, Moment], training: TrainingSettings, device: torch.device
) -> Callable[[], object]:
    """A function that takes one training step of a second task."""
    torch.manual_seed(0)
    model = TaskModel(case.backbone(), case.features, [CLASSES]).to(device)
    x = torch.rand(BATCH, *case.shape, device=device).requires_grad_(case.shape == (2048,))
    y = torch.randint(CLASSES, (BATCH,), device=device)
    some = Examples(x.detach(), y)
    method.begin_run(training)
    if isinstance(method, NESS):
        method.moments = dict(moments)
        method.begin_task(model, TaskData(Task("second", tuple(map(str, range(CLASSES))), some, some, some), 1, device))
    optimizer = make_optimizer(training, method.parameter_groups(model, [0], training.weight_decay), 1)
    method.train_mode(model)
    batch = Batch(x, y, 0)
    return lambda: method.step(model, batch, optimizer)


def quickest(steppers: Mapping[str, Callable[[], object]], case: Case, rounds: int, cuda: bool) -> dict[str, float]:
    """Seconds of a plain step (`plain`), and for the others the ratio to it; the quickest of all rounds counts.

    Whatever else runs on the machine can only slow a round down. One thread is measured in seconds of the processor,
    which do not count while another process has it.
    """
    clock = time.process_time if torch.get_num_threads() == 1 and not cuda else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in steppers}
    for number in range(rounds + 1):
        for name, step in steppers.items():
            started = clock()
            for _ in range(case.steps):
                step()
            if cuda:
                torch.cuda.synchronize()
            if number:  # the first round warms up
                times[name].append((clock() - started) / case.steps)
    plain = min(times.pop("plain"))
    return {"plain": plain, **{name: min(values) / plain for name, values in times.items()}}


def measure(quick: bool = False) -> dict[str, Any]:
    """Ratios to the plain network's step, by device, network, optimizer, share of free directions and way."""
    figures: dict[str, Any] = {}
    for device in [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available():
        print(f"{device}, batch {BATCH}, torch {torch.__version__}, {torch.get_num_threads()} threads")
        print(f"{'network':10} {'optimizer':14} {'free':>5} {'plain':>9}   ness  factored  dense  anchored")
        for network, case in CASES.items():
            if quick and network in ("AlexNet", "ResNet18"):
                continue
            weights = [p for p in case.backbone().named_modules() if isinstance(p[1], nn.Linear | nn.Conv2d)]
            moments = {name: RandomMoment(layer.weight[0].numel()) for name, layer in weights}
            for optimizer in case.optimizers:
                for share in case.shares:
                    settings = NESSSettings(filter=Share(share))
                    training = OPTIMIZERS[optimizer]
                    ways = {n: stepper(m(settings), case, moments, training, device) for n, m in METHODS.items()}
                    rounds = math.ceil(case.rounds / 3) if quick else case.rounds
                    found = quickest(ways, case, rounds, device.type == "cuda")
                    key = f"{device}/{network}/{optimizer}/{share:.0%}"
                    figures |= {f"{key}/{way}": round(value, 6) for way, value in found.items()}
                    ratios = "  ".join(f"{found[way]:6.2f}" for way in ("ness", "factored", "dense", "anchored"))
                    plain = f"{1e3 * found['plain']:6.2f} ms"
                    print(f"{network:10} {optimizer:14} {share:5.0%} {plain} {ratios}", flush=True)
    return figures


if __name__ == "__main__":
    measure("--quick" in sys.argv[1:])
