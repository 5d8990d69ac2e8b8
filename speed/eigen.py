"""Eigen-decompositions of moments in float64: by size, driver of LAPACK and threads, and layers side by side.

    python speed/eigen.py              # under a minute; with --quick d up to 1024

Moments come from random inputs of two kinds: every direction seen, or a third of the units dead (as ReLU leaves them),
which the solver finds easier. The drivers are scipy's names for LAPACK's: evd (divide and conquer, which torch calls),
evr (relatively robust representations). Wall seconds, and CPU seconds for machines with other work on them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from nesskit.spectra.spectrum import Spectrum

ALEXNET = (48, 576, 512, 1024, 2048)


def moment_matrix(d: int, dead: bool = False) -> Tensor:
    """Σ x xᵀ (d, d) of 2 d random inputs, with every third unit 0 if ``dead``."""
    x = torch.randn(2 * d, d, dtype=torch.float64, generator=torch.Generator().manual_seed(d)).relu()
    if dead:
        x[:, ::3] = 0
    return x.T @ x


def timed(solve: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Wall and CPU seconds, each of the fastest round."""
    walls, cpus = [], []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        solve()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus)


def scipy_solver(matrix: Tensor, driver: str) -> Callable[[], Any] | None:
    """LAPACK through scipy, where it is installed."""
    try:
        from scipy.linalg import eigh
    except ImportError:
        return None
    return lambda: eigh(matrix.numpy(), driver=driver, check_finite=False)


def measure(quick: bool = False) -> dict[str, Any]:
    """See the top of this file; ``quick`` stops at d = 1024."""
    largest, rounds = (1024, 2) if quick else (2048, 3)
    threads = torch.get_num_threads()
    figures: dict[str, Any] = {}
    print(f"eigen-decompositions, float64; torch {torch.__version__}; wall (CPU) seconds")
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            _by_size(largest, rounds, count, figures)
            _side_by_side(largest, rounds, count, figures)
        torch.set_num_threads(1)
        _drivers(largest, rounds, figures)
    finally:
        torch.set_num_threads(threads)
    return figures


def _by_size(largest: int, rounds: int, threads: int, figures: dict[str, Any]) -> None:
    for d in (512, 1024, 2048):
        for dead in (False, True):
            if d > largest:
                continue
            matrix = moment_matrix(d, dead)
            wall, cpu = timed(lambda matrix=matrix: Spectrum.of(matrix), rounds)
            kind = "a third dead" if dead else "all seen"
            print(f"  d = {d:4}, {kind:12}, {threads} threads: {wall:6.2f} ({cpu:.2f})")
            figures |= {f"{d} {kind}, {threads} threads, wall": wall, f"{d} {kind}, {threads} threads, cpu": cpu}


def _side_by_side(largest: int, rounds: int, threads: int, figures: dict[str, Any]) -> None:
    """AlexNet's layers one after another, and two at a time in Python threads, which torch lets run while it solves."""
    matrices = [moment_matrix(d) for d in ALEXNET if d <= largest][::-1]

    def together() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(Spectrum.of, matrices))

    after, _ = timed(lambda: [Spectrum.of(matrix) for matrix in matrices], rounds)
    beside, _ = timed(together, rounds)
    print(f"  AlexNet's layers, {threads} threads: one after another {after:.2f}, two at a time {beside:.2f}")
    figures |= {f"layers in turn, {threads} threads": after, f"layers two at a time, {threads} threads": beside}


def _drivers(largest: int, rounds: int, figures: dict[str, Any]) -> None:
    matrix = moment_matrix(largest)
    solvers = {"torch": lambda: torch.linalg.eigh(matrix)}
    solvers |= {f"scipy {driver}": scipy_solver(matrix, driver) for driver in ("evd", "evr")}
    for name, solve in solvers.items():
        if solve is not None:
            wall, cpu = timed(solve, rounds)
            print(f"  d = {largest}, {name:10}, 1 torch thread: {wall:6.2f} ({cpu:.2f})")
            figures[f"{largest} {name}, cpu"] = cpu


if __name__ == "__main__":
    measure(quick="--quick" in sys.argv[1:])
