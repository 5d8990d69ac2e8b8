"""Threads that sleep or spin while they wait (OMP_WAIT_POLICY), alone and beside another busy process.

Run: python speed/threads.py    (each line is a process of its own, in turns)
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
    print(f"    {name:20} {1000 * mean:8.2f} ms a training step, mean of {len(times) - 3}")
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


def report(threads: int, policy: str) -> None:
    print(f"  threads: {threads}, waiting policy: {policy or 'default (spin)'}", flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": policy}
    if not policy:
        del environment["OMP_WAIT_POLICY"]
    subprocess.run([sys.executable, "-c", STEPS], env=environment, check=True)


def main() -> None:
    for title, beside in (("alone", False), ("beside a busy process", True)):
        print(title)
        for threads, policy in ((1, "PASSIVE"), (2, "PASSIVE"), (2, "")):
            if beside:
                with busy_neighbour():
                    report(threads, policy)
            else:
                report(threads, policy)


if __name__ == "__main__":
    main()
