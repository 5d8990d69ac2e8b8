"""Threads that sleep or spin while they wait (OMP_WAIT_POLICY), alone and beside another busy process.

Run: python speed/threads.py    (each line is a process of its own, in turns)
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

STEPS = """
import time, torch
from torch import nn
torch.manual_seed(0)
layers = {"digits' MLP": (64, 128, 10), "two layers of 2048": (2048, 2048, 10)}
for name, (d, width, classes) in layers.items():
    model = nn.Sequential(nn.Linear(d, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x, y = torch.randn(64, d), torch.randint(0, classes, (64,))
    times = []
    while len(times) < 60 and sum(times) < 10:
        started = time.perf_counter()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        times.append(time.perf_counter() - started)
    mean = sum(times[3:]) / len(times[3:])
    print(f"{name}\\t{1000 * mean:.2f}")
"""


@contextmanager
def busy_neighbour() -> Iterator[None]:
    """Another process that needs a core."""
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()


def milliseconds(threads: int, policy: str) -> dict[str, float]:
    """Of a training step, by network, in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": policy}
    if not policy:
        del environment["OMP_WAIT_POLICY"]
    done = subprocess.run([sys.executable, "-c", STEPS], env=environment, check=True, capture_output=True, text=True)
    return {name: float(value) for name, value in (line.split("\t") for line in done.stdout.splitlines())}


def measure(quick: bool = False) -> dict[str, Any]:
    """Milliseconds of a training step by surroundings, threads and policy; ``quick`` leaves out spinning threads."""
    figures: dict[str, Any] = {}
    for title, surroundings in (("alone", nullcontext), ("beside a busy process", busy_neighbour)):
        for threads, policy in ((1, "PASSIVE"), (2, "PASSIVE"), *([] if quick else [(2, "")])):
            with surroundings():
                found = milliseconds(threads, policy)
            case = f"{title}, threads: {threads}, waiting: {policy or 'default (spin)'}"
            figures[case] = found
            print(case)
            for name, value in found.items():
                print(f"    {name:20} {value:8.2f} ms a training step")
    return figures


if __name__ == "__main__":
    measure()
