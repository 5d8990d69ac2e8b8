"""One training step: the plain network, adapted by NESS, and with W + UV formed in every forward pass.

The three take turns within one process, so that their ratios hold on a noisy machine.

    python speed/training_step.py mlp        # the digits' MLP, at the ranks that its preset frees in tasks 2, 5 and 10
    python speed/training_step.py alexnet    # the AlexNet of Split CIFAR-100, at the ranks of task 2
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrize

from nesskit import adapt
from nesskit.networks import MLP, AlexNet, TaskModel

# Ranks that the presets free, by network: a list for each of the layers in their order.
MLP_RANKS = {"task 2": (20, 101), "task 5": (0, 76), "task 10": (0, 66), "half of d": (32, 64), "90 % of d": (58, 115)}
ALEXNET_RANKS = {"task 2": (3, 334, 205, 824, 1911)}


class DenseUpdate(nn.Module):
    """W + (U V)ᵀ as a parametrisation of the weight: the slow way."""

    def __init__(self, basis: torch.Tensor, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("basis", basis)
        self.coefficients = nn.Parameter(torch.zeros(basis.shape[1], len(weight)))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + (self.basis @ self.coefficients).T.reshape(weight.shape)


def networks(kind: type[nn.Module], ranks: tuple[int, ...]) -> dict[str, TaskModel]:
    """The same network three times, with random bases of the given ranks."""
    models = {}
    for name in ("plain", "factored", "dense"):
        torch.manual_seed(0)
        backbone = MLP(64, (128, 128)) if kind is MLP else AlexNet()
        models[name] = TaskModel(backbone, 128 if kind is MLP else 2048, [10])
    layers = {n: m for n, m in models["plain"].backbone.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
    bases = {
        name: torch.linalg.qr(torch.randn(layer.weight[0].numel(), rank)).Q
        for (name, layer), rank in zip(layers.items(), ranks, strict=True)
        if rank
    }
    for adapted in ("factored", "dense"):
        models[adapted].backbone.requires_grad_(False)
    adapt(models["factored"].backbone, bases)
    for name, basis in bases.items():
        layer = models["dense"].backbone.get_submodule(name)
        parametrize.register_parametrization(layer, "weight", DenseUpdate(basis, layer.weight))
    return models


def measure(models: Mapping[str, TaskModel], x: torch.Tensor, rounds: int, steps: int) -> dict[str, float]:
    """Median seconds of a step for each of ``models``, which take turns."""
    y = torch.randint(10, (len(x),))
    optimizers = {
        name: torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
        for name, model in models.items()
    }
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            started = time.perf_counter()
            for _ in range(steps):
                optimizers[name].zero_grad()
                F.cross_entropy(model(x, 0), y).backward()
                optimizers[name].step()
            times[name].append((time.perf_counter() - started) / steps)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    kind = AlexNet if sys.argv[1:] == ["alexnet"] else MLP
    cases = ALEXNET_RANKS if kind is AlexNet else MLP_RANKS
    x = torch.rand(64, 3, 32, 32) if kind is AlexNet else torch.rand(64, 64)
    rounds, steps = (12, 3) if kind is AlexNet else (60, 40)
    print(f"{kind.__name__}, batch 64, SGD with momentum; torch {torch.__version__}, {torch.get_num_threads()} threads")
    for case, ranks in cases.items():
        median = measure(networks(kind, ranks), x, rounds, steps)
        ratios = ", ".join(f"{name} {median[name] / median['plain']:.2f} x" for name in ("factored", "dense"))
        print(f"{case}, ranks {ranks}: plain {1e6 * median['plain']:.0f} us; {ratios}")


if __name__ == "__main__":
    main()
