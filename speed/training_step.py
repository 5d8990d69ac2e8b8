"""One training step of the digits' MLP: plain, adapted by NESS, and with W + UV formed in every forward pass.

The three take turns within one process, so their ratios hold on a noisy machine. Run: python speed/training_step.py
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrize

from nesskit import adapt, build_model, load_stream
from nesskit.networks import TaskModel

ROUNDS, STEPS = 60, 40
SHARES = (0.1, 0.5, 0.9)  # rank of the null space, of d


class DenseUpdate(nn.Module):
    """W + (U V)ᵀ as a parametrisation of the weight: what NESSLinear avoids."""

    def __init__(self, basis: torch.Tensor, outputs: int) -> None:
        super().__init__()
        self.register_buffer("basis", basis)
        self.coefficients = nn.Parameter(torch.zeros(basis.shape[1], outputs))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + (self.basis @ self.coefficients).T


def models(share: float) -> dict[str, TaskModel]:
    """The same network three times."""
    stream = load_stream("permuted-digits")
    plain, factored, dense = (build_model(stream) for _ in range(3))
    bases = {}
    for name, layer in plain.backbone.named_modules():
        if isinstance(layer, nn.Linear):
            d = layer.in_features
            bases[name] = torch.linalg.qr(torch.randn(d, d)).Q[:, : round(share * d)]
    adapt(factored.backbone, bases)
    for name, basis in bases.items():
        layer = dense.backbone.get_submodule(name)
        layer.weight.requires_grad_(False)
        parametrize.register_parametrization(layer, "weight", DenseUpdate(basis, layer.out_features))
    return {"plain": plain, "factored": factored, "dense": dense}


def main() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(64, 64), torch.randint(10, (64,))
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch 64, {ROUNDS} rounds of {STEPS} steps")
    for share in SHARES:
        networks = models(share)
        optimizers = {
            name: torch.optim.SGD((p for p in m.parameters() if p.requires_grad), lr=0.01, momentum=0.9)
            for name, m in networks.items()
        }
        times: dict[str, list[float]] = {name: [] for name in networks}
        for _ in range(ROUNDS):
            for name, model in networks.items():
                started = time.perf_counter()
                for _ in range(STEPS):
                    optimizers[name].zero_grad()
                    F.cross_entropy(model(x, 0), y).backward()
                    optimizers[name].step()
                times[name].append((time.perf_counter() - started) / STEPS)
        median = {name: statistics.median(values) for name, values in times.items()}
        ratios = ", ".join(f"{name} {median[name] / median['plain']:.2f} x" for name in ("factored", "dense"))
        print(f"rank {share:.0%} of d: plain {1e6 * median['plain']:.0f} us; {ratios}")


if __name__ == "__main__":
    main()
