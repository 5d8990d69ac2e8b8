"""Benchmarks: a stream, a network and settings that belong together, under one name; and the functions that run them.

This module imports no torch until something is run: the command line reads its presets to print help.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nesskit.errors import SettingsError, UnknownNameError
from nesskit.filters import Filter, FrobeniusThreshold, NuclearThreshold
from nesskit.settings import (
    METHOD_SETTINGS,
    MethodSettings,
    NESSSettings,
    NetworkSettings,
    RunSettings,
    TrainingSettings,
)

if TYPE_CHECKING:
    from nesskit.comparison import Comparison
    from nesskit.events import Listener
    from nesskit.records import Run
    from nesskit.sweeps import Sweep
    from nesskit.training import Limits

DEFAULT_PRESET = "default"


@dataclass(frozen=True)
class Preset:
    """Settings that belong together.

    Attributes:
        training: how each task is trained.
        network: the network.
        options: settings by method name; a method without an entry has its defaults.
        validation_share: share of each task's training examples that is set aside.
        summary: what the preset is, in a sentence.
    """

    training: TrainingSettings
    network: NetworkSettings
    options: Mapping[str, MethodSettings] = field(default_factory=dict)
    validation_share: float = 0.0
    summary: str = ""


@dataclass(frozen=True)
class Benchmark:
    """A stream by name with its presets; the first preset is the one used when none is named."""

    name: str
    summary: str
    presets: Mapping[str, Preset]


def _digits(name: str, summary: str, ness: NESSSettings) -> Benchmark:
    """A benchmark on scikit-learn's digits: MLP 64-128-128, SGD with momentum, 30 epochs a task, no validation data."""
    preset = Preset(
        TrainingSettings(epochs=30, batch_size=64, optimizer="sgd", lr=0.05, momentum=0.9),
        NetworkSettings("mlp", widths=(128, 128)),
        {"ness": ness},
        summary="threshold chosen on validation data of seeds 10 to 14",
    )
    return Benchmark(name, summary, {DEFAULT_PRESET: preset})


def _paper(
    name: str,
    summary: str,
    network: NetworkSettings,
    training: TrainingSettings,
    eps: float,
    sam_lr: float,
    in_text: Mapping[str, Any],
    validation_share: float = 0.05,
) -> Benchmark:
    """A benchmark of the paper with the presets ``paper-sgdm``, ``paper-sam`` and ``text``.

    The two paper presets follow the authors' code, to which the published figures belong, wherever it differs from the
    text: the nuclear threshold, and inputs of old tasks recomputed from kept data. Their SAM run has SAM around plain SGD
    on task 1 and plain SGD afterwards. ``text`` follows the text: the Frobenius threshold, moments, and the settings
    ``in_text`` where they differ from the code's.
    """
    code = NESSSettings(NuclearThreshold(eps), memory="data")
    sam = dataclasses.replace(training, optimizer="sam", lr=sam_lr, momentum=0.0, sam_tasks="first")
    text = dataclasses.replace(training, **in_text)
    return Benchmark(
        name,
        summary,
        {
            "paper-sgdm": Preset(
                training,
                network,
                {"ness": code},
                validation_share,
                "authors' code, SGD with momentum (nuclear threshold)",
            ),
            "paper-sam": Preset(sam, network, {"ness": code}, validation_share, "authors' code, SAM on task 1"),
            "text": Preset(
                text,
                network,
                {"ness": NESSSettings(FrobeniusThreshold(eps))},
                0.05,
                "the paper's text (Frobenius threshold): frees no direction at all on CIFAR-100",
            ),
        },
    )


BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        _digits(
            "permuted-digits",
            "10 tasks of 10 classes: digits, each task with its own permutation of the pixels",
            NESSSettings(FrobeniusThreshold(0.02)),
        ),
        _digits(
            "split-digits",
            "5 tasks of 2 classes: 0 and 1, 2 and 3, … 8 and 9",
            NESSSettings(FrobeniusThreshold(0.0283)),
        ),
        _digits(
            "rotated-digits",
            "10 tasks of 10 classes: digits turned by 0, 18, … 162 degrees",
            NESSSettings(FrobeniusThreshold(0.0141)),
        ),
        _paper(
            "split-cifar100",
            "10 tasks of 10 classes of CIFAR-100, 5-layer AlexNet",
            NetworkSettings("alexnet"),
            TrainingSettings(
                epochs=200,
                lr=0.005,
                weight_decay=1e-4,
                lr_factor=1 / 2,
                lr_patience=6,
                lr_minimum=1e-5,
                evaluation_batch_size=64,
            ),
            eps=0.001,
            sam_lr=0.05,
            in_text={},
        ),
        _paper(
            "five-datasets",
            "5 tasks of 10 classes: CIFAR-10, MNIST, SVHN, Fashion-MNIST, notMNIST; reduced ResNet18",
            NetworkSettings("resnet18"),
            TrainingSettings(
                epochs=200,
                lr=0.05,
                weight_decay=5e-5,
                lr_factor=1 / 3,
                lr_patience=5,
                lr_minimum=1e-3,
                evaluation_batch_size=64,
            ),
            eps=0.001,
            sam_lr=0.1,
            in_text={"epochs": 100},
        ),
        _paper(
            "split-miniimagenet",
            "20 tasks of 5 classes of MiniImageNet, reduced ResNet18 with a stem of stride 2",
            NetworkSettings("resnet18", stem_stride=2),
            TrainingSettings(
                epochs=100,
                lr=0.01,
                weight_decay=1e-5,
                lr_factor=1 / 3,
                lr_patience=5,
                lr_minimum=1e-3,
                evaluation_batch_size=64,
            ),
            eps=0.0005,
            sam_lr=0.1,
            in_text={"lr_factor": 1 / 2, "lr_patience": 6},
            validation_share=0.02,
        ),
    )
}


def configure(
    benchmark: str, method: str = "ness", preset: str | None = None, seed: int = 0, **changes: Any
) -> RunSettings:
    """The settings of a run: those of the preset, with ``changes`` to single fields by name.

    A change may name a field of the training (``epochs=3``), of the method (``filter=…``), of the network
    (``network_bias=True``), or ``validation_share``.

    Raises:
        UnknownNameError: an unknown benchmark, method, preset or field; says which is nearest.
        SettingsError: a value that makes no sense.
    """
    known = get_benchmark(benchmark)
    if method not in METHOD_SETTINGS:
        raise UnknownNameError("method", method, METHOD_SETTINGS)
    preset = preset or next(iter(known.presets))
    if preset not in known.presets:
        raise UnknownNameError(f"preset of {benchmark}", preset, known.presets)
    chosen = known.presets[preset]
    parts: dict[str, Any] = {
        "training": chosen.training,
        "options": chosen.options.get(method, METHOD_SETTINGS[method]()),
        "network": chosen.network,
    }
    share = changes.pop("validation_share", chosen.validation_share)
    for name, value in changes.items():
        part, field_name = _part_of(name, parts)
        parts[part] = dataclasses.replace(parts[part], **{field_name: value})
    return RunSettings(benchmark, method, preset, seed, share, parts["network"], parts["training"], parts["options"])


def get_benchmark(name: str) -> Benchmark:
    """The benchmark called ``name``; UnknownNameError with the nearest name if there is none."""
    if name not in BENCHMARKS:
        raise UnknownNameError("benchmark", name, BENCHMARKS)
    return BENCHMARKS[name]


def execute(
    settings: RunSettings,
    runs: Path | str = "runs",
    device: str = "auto",
    limits: Limits | None = None,
    listeners: Sequence[Listener] = (),
) -> Run:
    """Do the run that ``settings`` describe, go on with it, or show it if it is finished.

    It lies in ``runs/<benchmark>/<method>/<seed>-<settings hash>/``.

    Raises:
        RunFolderError: the folder is in use, damaged, or not a run of ours.
        TrainingError, DataError: training or data failed; earlier tasks stay on disk.
    """
    from nesskit.methods import METHODS
    from nesskit.networks import build_model
    from nesskit.records import RunFolder
    from nesskit.streams import load_stream
    from nesskit.training import Limits, finished_run, fit

    limits = limits or Limits()
    method = METHODS[settings.method](settings.options)
    if limits.tasks is not None and method.learns_together:
        # Joint training on fewer tasks is no beginning of joint training on all of them: it is another run.
        settings = dataclasses.replace(settings, tasks=limits.tasks)
    folder = RunFolder(run_folder(settings, runs))
    before = finished_run(folder, settings.to_dict(), listeners)
    if before is not None:
        return before
    stream = load_stream(settings.benchmark, settings.seed, settings.validation_share)
    if settings.tasks is not None:
        stream = stream.first(settings.tasks)
    model = build_model(stream, settings.network, settings.seed)
    return fit(
        model,
        stream,
        method,
        settings.training,
        seed=settings.seed,
        device=choose_device(device),
        folder=folder,
        config=settings.to_dict(),
        listeners=listeners,
        limits=limits,
    )


def run(
    benchmark: str,
    *,
    method: str = "ness",
    preset: str | None = None,
    seed: int = 0,
    runs: Path | str = "runs",
    device: str = "auto",
    limits: Limits | None = None,
    progress: bool = True,
    **changes: Any,
) -> Run:
    """Run a benchmark: what ``nesskit run`` does, for Python. See :func:`configure` for ``changes``.

    Example: ``nesskit.run("permuted-digits", method="ness", seed=1, filter=nesskit.NuclearThreshold(0.004))``.
    """
    settings = configure(benchmark, method, preset, seed, **changes)
    return execute(settings, runs, device, limits, _progress(settings) if progress else ())


def compare(
    benchmark: str,
    methods: Iterable[str],
    seeds: Iterable[int],
    *,
    preset: str | None = None,
    runs: Path | str = "runs",
    device: str = "auto",
    limits: Limits | None = None,
    progress: bool = True,
    **changes: Any,
) -> Comparison:
    """Run every method with every seed and compare them; runs that are there already are not done again."""
    from nesskit.comparison import Comparison

    # All settings first: a misspelt method should not be found out after an hour of the others.
    wanted = [configure(benchmark, method, preset, seed, **changes) for method in methods for seed in seeds]
    results = [execute(s, runs, device, limits, _progress(s) if progress else ()) for s in wanted]
    return Comparison.of(results)


def sweep(
    benchmark: str,
    filters: Iterable[Filter],
    seeds: Iterable[int],
    *,
    preset: str | None = None,
    validation_share: float = 0.2,
    runs: Path | str = "runs",
    device: str = "auto",
    progress: bool = True,
    **changes: Any,
) -> Sweep:
    """Run NESS with every filter and seed, judged on validation data that is taken from the training examples."""
    from nesskit.sweeps import Sweep

    if not validation_share:
        raise SettingsError("a sweep chooses on validation data: validation_share must be above 0")
    seeds = list(seeds)
    changes = {**changes, "validation_share": validation_share}
    wanted = {
        str(rule): [configure(benchmark, "ness", preset, s, filter=rule, **changes) for s in seeds] for rule in filters
    }
    return Sweep.of(
        {
            rule: [execute(s, runs, device, listeners=_progress(s, rule) if progress else ()) for s in same]
            for rule, same in wanted.items()
        }
    )


def run_folder(settings: RunSettings, runs: Path | str = "runs") -> Path:
    """Where the run of ``settings`` lies."""
    return Path(runs) / settings.benchmark / settings.method / f"{settings.seed}-{settings.hash}"


def choose_device(name: str) -> str:
    """``auto`` becomes ``cuda`` where there is a GPU for it, else ``cpu``; other names stay, if torch knows them here.

    Raises:
        SettingsError: the device does not exist here.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise SettingsError(f"device '{name}' cannot be used here ({reason}): use cpu, or auto") from error
    return name


def _progress(settings: RunSettings, label: str = "") -> list[Listener]:
    from nesskit.progress import progress_listener

    return [progress_listener(f"{label or settings.method}, seed {settings.seed}", per_task=not label)]


def _part_of(name: str, parts: Mapping[str, Any]) -> tuple[str, str]:
    """Which part of the settings the change ``name`` belongs to, and the field's name there."""
    fields: dict[str, tuple[str, str]] = {}
    for part, settings in parts.items():
        prefix = "network_" if part == "network" else ""
        fields |= {prefix + f.name: (part, f.name) for f in dataclasses.fields(settings)}
    if name not in fields:
        raise UnknownNameError("setting", name, [*fields, "validation_share"])
    return fields[name]
