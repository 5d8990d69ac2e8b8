"""Cost and memory as things grow: the width d of a layer, samples, layers, and the tasks of a long stream.

    python speed/scale.py                  # under a minute of CPU time; with --quick smaller sizes and 20 tasks
    python speed/scale.py --figures docs   # the same, and draws scale-cost.png and scale-tasks.png into that folder

Seconds are CPU seconds (the sum over threads), so that other work on a machine counts little. Small pieces run several
times and the fastest counts.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from nesskit import NESS, FrobeniusThreshold, Moment, NESSSettings, TrainingSettings, build_model, collect_moments, fit
from nesskit.adaptation.patches import BUFFER_VALUES
from nesskit.networks import MLP
from nesskit.plots import BLUE, GREEN, ORANGE, VERMILLION, style
from nesskit.plots.drawing import tidy
from nesskit.runs.events import Event, TaskFinished
from nesskit.runs.folder import RunFolder
from nesskit.streams.digits import permuted_digits
from nesskit.training.trainer import Trainer

ROWS = 256  # of one moment update
WIDTHS = (64, 128, 256, 512, 1024, 2048)
SAMPLES = (500, 1000, 2000, 4000, 8000)
LAYERS = (1, 2, 4, 8, 16)


def cpu_seconds(work: Callable[[], Any], rounds: int) -> float:
    """CPU seconds of the fastest round."""
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """p of cost ∝ sizeᵖ, from the larger half of the sizes: the least-squares slope of the logarithms."""
    half = len(sizes) // 2
    x, y = ([math.log(value) for value in series[half:]] for series in (sizes, values))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def by_width(widths: Sequence[int]) -> dict[str, list[float]]:
    """For each d the seconds of one moment update (``ROWS`` inputs) and of one eigen-decomposition, and C's bytes."""
    update, eigen, size = [], [], []
    for d in widths:
        generator = torch.Generator().manual_seed(d)
        x = torch.randn(2 * d, d, generator=generator).relu()
        moment = Moment(d)
        moment.update(x)
        rounds = 20 if d <= 256 else 5 if d <= 1024 else 2
        update.append(cpu_seconds(lambda moment=moment, x=x[:ROWS]: moment.update(x), rounds))
        eigen.append(cpu_seconds(moment.spectrum, 1 if d > 1024 else 3))
        size.append(moment.nbytes)
    return {"update seconds": update, "eigen seconds": eigen, "bytes": size}


def by_samples(counts: Sequence[int], rounds: int) -> list[float]:
    """Seconds of the moments of a convolution and a linear layer over so many images."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 8 * 8, 16))
    x = torch.rand(max(counts), 3, 8, 8)
    return [cpu_seconds(lambda n=n: collect_moments(model, x[:n].split(ROWS)), rounds) for n in counts]


def by_layers(counts: Sequence[int], rounds: int) -> list[float]:
    """Seconds of the moments of so many layers 256-256 over 1024 inputs, in one pass."""
    torch.manual_seed(0)
    x: Tensor = torch.rand(1024, 256)
    models = [MLP(256, [256] * count) for count in counts]
    return [cpu_seconds(lambda model=model: collect_moments(model, x.split(ROWS)), rounds) for model in models]


def resident_bytes() -> int:
    """What this process holds in memory now, as Linux counts it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def long_stream(tasks: int) -> dict[str, list[float]]:
    """NESS on so many permuted digits tasks, one epoch each, kept in a run folder: what each task cost and left."""
    stream, method = permuted_digits(seed=0, tasks=tasks), NESS(NESSSettings(FrobeniusThreshold(0.0251)))
    spent = {"evaluate": 0.0, "write": 0.0}
    columns: dict[str, list[float]] = {
        name: [] for name in ("cpu", "evaluate", "write", "resident", "moments", "checkpoint", "record")
    }

    def timing(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any) -> Any:
            started = time.process_time()
            try:
                return function(*args)
            finally:
                spent[part] += time.process_time() - started

        return timed

    with tempfile.TemporaryDirectory() as folder:
        since = time.process_time()

        def look(event: Event) -> None:
            nonlocal since
            if not isinstance(event, TaskFinished):
                return
            now = time.process_time()
            columns["cpu"].append(now - since)
            for part in spent:
                columns[part].append(spent[part])
                spent[part] = 0.0
            columns["resident"].append(resident_bytes())
            columns["moments"].append(sum(method.memory_report().values()))
            sizes = {path.name: path.stat().st_size for path in Path(folder).iterdir()}
            columns["checkpoint"].append(sizes["checkpoint.pt"])
            columns["record"].append(sizes["record.json"] + sizes.get("profiles.npz", 0) + sizes["events.jsonl"])
            since = time.process_time()

        with (
            mock.patch.object(Trainer, "_evaluate_row", timing("evaluate", Trainer._evaluate_row)),
            mock.patch.object(RunFolder, "write", timing("write", RunFolder.write)),
            mock.patch.object(RunFolder, "write_checkpoint", timing("write", RunFolder.write_checkpoint)),
        ):
            fit(build_model(stream), stream, method, TrainingSettings(epochs=1), folder=folder, listeners=[look])
    return columns


def measure(quick: bool = False) -> dict[str, Any]:
    """See the top of this file; ``quick``: smaller sizes, 20 tasks."""
    widths, samples, layers = (WIDTHS[:-1], SAMPLES[:-1], LAYERS[:-1]) if quick else (WIDTHS, SAMPLES, LAYERS)
    rounds, tasks = (1, 20) if quick else (3, 100)
    figures: dict[str, Any] = {"threads": torch.get_num_threads(), "widths": list(widths), **by_width(widths)}
    print(f"scale, CPU seconds; {figures['threads']} threads, torch {torch.__version__}")
    print(f"{'d':>7} {'update':>9} {'eigen':>9} {'C':>11}")
    rows = zip(widths, figures["update seconds"], figures["eigen seconds"], figures["bytes"], strict=True)
    for d, update, eigen, size in rows:
        print(f"{d:7} {1000 * update:6.1f} ms {1000 * eigen:6.0f} ms {size / 2**20:7.2f} MiB")
    figures |= {
        "update exponent": exponent(widths, figures["update seconds"]),
        "eigen exponent": exponent(widths, figures["eigen seconds"]),
    }
    print(f"  for the larger d ∝ d^{figures['update exponent']:.1f} and d^{figures['eigen exponent']:.1f}")

    for name, counts, seconds in (
        ("samples", samples, by_samples(samples, rounds)),
        ("layers", layers, by_layers(layers, rounds)),
    ):
        figures |= {name: list(counts), f"{name} seconds": seconds, f"{name} exponent": exponent(counts, seconds)}
        text = ", ".join(f"{count}: {1000 * value:.0f}" for count, value in zip(counts, seconds, strict=True))
        print(f"one pass, ms by {name}: {text}; ∝ {name}^{figures[f'{name} exponent']:.2f}")
    print(f"  patches are written out {8 * BUFFER_VALUES / 2**20:.0f} MiB at a time, whatever the number of samples")

    columns = long_stream(tasks)
    figures |= {"tasks": tasks, **{f"task {name}": values for name, values in columns.items()}}
    cpu = sum(columns["cpu"])
    figures |= {f"{part} share": sum(columns[part]) / cpu for part in ("evaluate", "write")}
    early = tasks // 5
    figures["resident growth"] = columns["resident"][-1] - columns["resident"][early]
    print(f"{tasks} tasks of permuted digits: {cpu:.1f} s, evaluation {figures['evaluate share']:.0%}", end=", ")
    print(f"files {figures['write share']:.0%}")
    print(
        f"{'task':>7} {'seconds':>9} {'evaluate':>9} {'files':>9} {'resident':>11} {'moments':>10} {'checkpoint':>11}"
    )
    for task in (0, 1, early, tasks // 2, tasks - 1):
        row = {name: values[task] for name, values in columns.items()}
        print(f"{task + 1:7} {row['cpu']:7.3f} s {row['evaluate']:7.3f} s {row['write']:7.3f} s", end=" ")
        print(
            f"{row['resident'] / 2**20:7.1f} MiB {row['moments'] / 2**10:6.0f} KiB {row['checkpoint'] / 2**10:7.0f} KiB"
        )
    return figures


def draw(figures: dict[str, Any], folder: Path) -> None:
    """``scale-cost.png`` and ``scale-tasks.png`` of what :func:`measure` returned."""
    with style():
        fig, (left, middle, right) = plt.subplots(1, 3, figsize=(9.6, 2.9), layout="constrained")
        left.loglog(figures["widths"], figures["update seconds"], "o-", color=BLUE, label=f"update, {ROWS} inputs")
        left.loglog(figures["widths"], figures["eigen seconds"], "s-", color=VERMILLION, label="eigen-decomposition")
        left.set_xticks(figures["widths"], [str(d) for d in figures["widths"]])
        left.minorticks_off()
        left.set_xlabel("width d of a layer")
        left.set_ylabel("CPU seconds")
        left.legend()
        for ax, name in ((middle, "samples"), (right, "layers")):
            ax.plot(figures[name], figures[f"{name} seconds"], "o-", color=BLUE)
            ax.set_xlabel(f"{name} in one pass")
            ax.set_ylim(bottom=0)
        for ax in (left, middle, right):
            tidy(ax)
        fig.savefig(folder / "scale-cost.png", dpi=100)
        plt.close(fig)

        fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 2.9), layout="constrained")
        tasks = range(1, figures["tasks"] + 1)
        for name, colour in (("resident", BLUE), ("checkpoint", ORANGE), ("moments", GREEN)):
            left.semilogy(tasks, [value / 2**20 for value in figures[f"task {name}"]], color=colour, label=name)
        left.set_ylabel("MiB")
        for name, text, colour in (
            ("cpu", "all", BLUE),
            ("evaluate", "evaluation of all tasks so far", VERMILLION),
            ("write", "checkpoint and record", ORANGE),
        ):
            right.plot(tasks[1:], figures[f"task {name}"][1:], color=colour, label=text)  # the first one warms up
        right.set_ylabel("CPU seconds a task")
        right.set_ylim(bottom=0)
        for ax in (left, right):
            ax.set_xlabel("tasks learned")
            ax.legend()
            tidy(ax)
        fig.savefig(folder / "scale-tasks.png", dpi=100)
        plt.close(fig)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Cost and memory as d, samples, layers and tasks grow.")
    parser.add_argument("--quick", action="store_true", help="smaller sizes, 20 tasks")
    parser.add_argument("--figures", type=Path, help="draw two figures into this folder")
    arguments = parser.parse_args()
    result = measure(arguments.quick)
    if arguments.figures:
        draw(result, arguments.figures)
