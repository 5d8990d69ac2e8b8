"""A stream of 100 tasks: what may grow from task to task (records), and that nothing else does."""

import gc
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from nesskit import (
    NESS,
    Examples,
    FixedRank,
    NESSSettings,
    NetworkSettings,
    Task,
    TaskStream,
    TrainingSettings,
    build_model,
    fit,
)
from nesskit.runs.events import TaskFinished
from nesskit.runs.profile_file import pack_profiles, unpack_profiles
from nesskit.spectra.profile import LayerProfile
from nesskit.streams.digits import permuted_digits

TASKS = 100
SMALL = NetworkSettings(widths=(32, 24))
LATE = (20, TASKS)  # tasks learned when the memory is looked at


@pytest.fixture(scope="module")
def stream():
    """A hundred tasks, each with a pixel permutation of its own and 32 of the digits."""

    def few(examples):
        return Examples(examples.x[:32].clone(), examples.y[:32].clone())

    whole = permuted_digits(seed=0, tasks=TASKS)
    tasks = [Task(task.name, task.classes, few(task.train), task.valid, few(task.test)) for task in whole]
    return TaskStream(whole.name, tasks, whole.checksums)


@pytest.fixture(scope="module")
def learned(stream):
    """The finished run, with its method's memory report and the bytes of live tensors after every task of interest."""
    # 20 directions are free in every layer: fewer than half of 64, more than half of 32, so both forms occur
    method, reports, held = NESS(NESSSettings(FixedRank(20))), [], {}

    def look(event):
        if isinstance(event, TaskFinished):
            reports.append(method.memory_report())
            if event.task + 1 in LATE:
                held[event.task + 1] = live_tensors()

    run = fit(build_model(stream, SMALL), stream, method, TrainingSettings(epochs=1), listeners=[look])
    return run, reports, held


def dense(tensor):
    return tensor.layout is torch.strided


def live_tensors():
    """Bytes of every tensor that Python can reach, and of its gradient, by the address of the storage."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        # isinstance would ask proxies for their class, which may import; fake tensors, left by export, hold nothing
        if issubclass(type(thing), torch.Tensor) and not issubclass(type(thing), FakeTensor) and dense(thing):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None:
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return storages


def test_the_memory_of_ness_is_that_after_the_first_task(learned):
    _, reports, _ = learned
    assert len(reports) == TASKS
    assert reports[0]["moments"] == 8 * (64**2 + 32**2)
    assert all(report == reports[0] for report in reports)


def test_only_records_grow(learned):
    """All heads are there from the start; a profile is 3 d numbers a layer and task, kept as arrays, not as tensors
    (those of numpy share their memory with the tensor that they came from)."""
    run, _, held = learned
    early, late = (held[tasks] for tasks in LATE)
    grown = sum(late.values()) - sum(early.values())
    of_profiles = sum(
        array.nbytes
        for profile in run.profiles
        if profile.task >= LATE[0]
        for array in (profile.sigma_squared, profile.update_energy, profile.weight_energy)
    )
    assert 0 <= grown <= of_profiles


def test_no_gradient_outlives_its_task(stream):
    model = build_model(stream, SMALL)
    fit(model, stream.first(2), "ness", TrainingSettings(epochs=1))
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("sizes", [(), (3,), (3, 5, 3)])
def test_profiles_come_back_from_few_arrays(sizes):
    profiles = [
        LayerProfile(f"layers.{k}", k, 2, 10 * k, *np.random.default_rng(k).random((3, d)), outputs=d + 1)
        for k, d in enumerate(sizes)
    ]
    for packed in (pack_profiles(profiles), [asdict(profile) for profile in profiles]):  # today and in format 1
        back = unpack_profiles(packed)
        assert len(back) == len(profiles)
        for one, other in zip(back, profiles, strict=True):
            np.testing.assert_equal(asdict(one), asdict(other))
    assert len(pack_profiles(profiles)) == 9  # however many profiles there are
