"""Moments of all layers in one pass: against patches that are all written out, and against one pass a layer and task.

    python speed/moments.py            # about two minutes; with --quick less than one

The subjects take turns within one process and the fastest round of each counts, in CPU seconds (the sum over threads),
so that other work on a machine counts little. Images are those of Split CIFAR-100 where the data is there, else random
ones of their shape; the first line says which. The networks are untrained: time does not depend on the weights.

The simple way that ten tasks are compared with: before each task, for each layer, one forward pass over the images of
all earlier tasks, and the moment of that layer from patches written out in float64. It is measured on one reduced task
and scaled by counting: 1 + 2 + … + 9 = 45 times a task's images; nesskit sees each image once, after its task.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nesskit import FrobeniusThreshold, Moment, NuclearThreshold, collect_moments, load_stream
from nesskit.adaptation.capture import evaluating, layer_inputs, named_layers
from nesskit.adaptation.patches import patch_moment
from nesskit.analysis.inputs import recorded
from nesskit.errors import DataError
from nesskit.networks import AlexNet, ResNet18
from nesskit.spectra.spectrum import Spectrum

TASKS = 10
BATCH = 256  # as NESS takes them
RULES = [rule(eps) for rule in (NuclearThreshold, FrobeniusThreshold) for eps in (1e-3, 5e-4)]  # of the paper's presets


def images(count: int) -> tuple[Tensor, str]:
    """(count, 3, 32, 32) normalised images, and what they are."""
    try:
        task = load_stream("split-cifar100")[0]
    except DataError:
        torch.manual_seed(0)
        return torch.randn(count, 3, 32, 32), "random images"
    return task.normalise(task.train.x[:count]), "CIFAR-100"


@torch.no_grad()
def plain_moments(model: nn.Module, batches: Iterable[Tensor], layers: Iterable[str]) -> dict[str, Tensor]:
    """The moments of these layers from one forward pass, with every patch written out and full products in float64."""
    chosen = named_layers(model, list(layers))
    matrices = {
        name: torch.zeros(2 * (layer.weight[0].numel(),), dtype=torch.float64) for name, layer in chosen.items()
    }
    with evaluating(model):
        for batch in batches:
            with recorded(chosen) as calls:
                model(batch)
            for name, layer in chosen.items():
                for rows, _ in layer_inputs(layer, calls[name][0]):
                    rows = rows.double()
                    matrices[name] += rows.T @ rows
    return matrices


def fastest(subjects: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """CPU seconds of each subject: its fastest of some rounds, in which all take turns."""
    seconds = dict.fromkeys(subjects, float("inf"))
    for _ in range(rounds):
        for name, subject in subjects.items():
            started = time.process_time()
            subject()
            seconds[name] = min(seconds[name], time.process_time() - started)
    return seconds


def one_pass(model: nn.Module, x: Tensor, rounds: int) -> dict[str, float]:
    """Seconds of a forward pass alone, of all moments in one, of the same written out, and of one pass a layer."""
    layers = list(named_layers(model))

    @torch.no_grad()
    def forward() -> None:
        with evaluating(model):
            for batch in x.split(BATCH):
                model(batch)

    return fastest(
        {
            "forward": forward,
            "nesskit": lambda: collect_moments(model, x.split(BATCH)),
            "written out": lambda: plain_moments(model, x.split(BATCH), layers),
            "a pass a layer": lambda: [plain_moments(model, x.split(BATCH), [name]) for name in layers],
        },
        rounds,
    )


def by_layer(model: nn.Module, x: Tensor, rounds: int) -> Iterator[tuple[str, int, float, float]]:
    """For every layer its name, d, and the seconds of its moment of one batch: plain and fast."""
    layers = named_layers(model)
    with torch.no_grad(), evaluating(model), recorded(layers) as calls:
        model(x[:BATCH])
    for name, layer in layers.items():
        x, d = calls[name][0], layer.weight[0].numel()
        subjects = {"plain": partial(add_plain, layer, x, d), "fast": partial(add_fast, layer, x, d)}
        seconds = fastest(subjects, rounds)
        yield name, d, seconds["plain"], seconds["fast"]


def add_plain(layer: nn.Module, x: Tensor, d: int) -> None:
    """The moment of one batch, as :func:`plain_moments` has it."""
    matrix = torch.zeros(d, d, dtype=torch.float64)
    for rows, _ in layer_inputs(layer, x):
        rows = rows.double()
        matrix += rows.T @ rows


def add_fast(layer: nn.Module, x: Tensor, d: int) -> None:
    """The moment of one batch, as :func:`nesskit.collect_moments` has it."""
    moment = Moment(d)
    if isinstance(layer, nn.Conv2d):
        moment.add(*patch_moment(layer, x))
    else:
        moment.update(x)


def differences(model: nn.Module, x: Tensor) -> tuple[float, int]:
    """The largest ‖C - C'‖_F / ‖C‖_F of fast and plain moments; how many null ranks the presets' rules differ in."""
    fast = collect_moments(model, x.split(BATCH))
    plain = plain_moments(model, x.split(BATCH), fast)
    errors, ranks = [], 0
    for name, moment in fast.items():
        errors.append(float((moment.matrix - plain[name]).norm() / plain[name].norm()))
        ours, exact = moment.spectrum(), Spectrum.of(plain[name])
        ranks += sum(rule.null_rank(ours) != rule.null_rank(exact) for rule in RULES)
    return max(errors), ranks


def _peak_bytes() -> int:
    """The most memory this process has held so far; Linux keeps count of it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def _peaks(samples: int) -> tuple[int, int]:
    torch.manual_seed(0)
    model, x = AlexNet().eval(), torch.randn(samples, 3, 32, 32)
    with torch.no_grad():
        for batch in x.split(BATCH):
            model(batch)
    before = _peak_bytes()
    collect_moments(model, x.split(BATCH))
    return before, _peak_bytes()


def added_memory(samples: int) -> int:
    """By how many bytes AlexNet's moments raise the peak of a fresh process above that of a forward pass."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        before, after = pool.apply(_peaks, (samples,))
    return after - before


def measure(quick: bool = False) -> dict[str, Any]:
    """See the top of this file; ``quick`` takes fewer images and rounds."""
    count, rounds = (256, 2) if quick else (1024, 3)
    x, what = images(count)
    figures: dict[str, Any] = {"images": what, "samples": count, "threads": torch.get_num_threads()}
    print(f"moments, {count} x {what}, batches of {BATCH}; torch {torch.__version__}, {figures['threads']} threads")

    torch.manual_seed(0)
    alexnet = AlexNet()
    alexnet(x[:64])  # BatchNorm's statistics
    print(f"{'AlexNet, moment of one batch':32} {'d':>5} {'plain':>9} {'fast':>9}")
    for name, d, plain, fast in by_layer(alexnet, x, rounds):
        print(f"  {name:30} {d:5} {1000 * plain:6.0f} ms {1000 * fast:6.0f} ms   {plain / fast:4.1f} x faster")
        figures[f"alexnet {name} speedup"] = plain / fast

    for title, model, share in (("alexnet", alexnet, 1), ("resnet18", ResNet18(), 4)):
        seconds = one_pass(model, x[: count // share], rounds)
        figures |= {f"{title} {name} seconds": value for name, value in seconds.items()}
        print(f"{title}, {count // share} images, all layers:")
        for name, value in seconds.items():
            print(f"  {name:30} {value:8.2f} s {value / seconds['nesskit']:6.1f} x nesskit")
        if title == "alexnet":
            simple = TASKS * (TASKS - 1) / 2 * seconds["a pass a layer"]
            figures["ten tasks speedup"] = simple / (TASKS * seconds["nesskit"])
    print(f"ten tasks, by counting: {figures['ten tasks speedup']:.1f} x faster than a pass a layer over all old data")

    figures["relative error"], figures["null ranks that differ"] = differences(alexnet, x)
    print(f"difference from plain: {figures['relative error']:.0e} relative", end="; ")
    print(f"null ranks of the presets' rules that differ: {figures['null ranks that differ']}")

    moments = sum(8 * layer.weight[0].numel() ** 2 for layer in named_layers(alexnet).values())
    print(f"memory: the moments themselves {moments / 2**20:.0f} MiB", end="")
    figures["moments bytes"] = moments
    if sys.platform == "linux":
        for batches in (1, 4) if quick else (1, 16):
            added = figures[f"added bytes, {batches} batches"] = added_memory(batches * BATCH)
            print(f"; peak above a forward pass over {batches} batches: {added / 2**20:.0f} MiB", end="")
    print()
    return figures


if __name__ == "__main__":
    measure(quick="--quick" in sys.argv[1:])
