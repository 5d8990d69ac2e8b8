"""What every method owes: the loop, resuming, honest memory, any network, and old outputs as it promises."""

import copy
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from nesskit import Limits, NetworkSettings, TrainingSettings, build_model, collect_inputs, fit, load_stream
from nesskit.errors import NesskitError
from nesskit.methods import METHODS, make_method
from nesskit.runs.events import EpochFinished, TaskFinished
from nesskit.settings import METHOD_SETTINGS
from nesskit.streams.base import Examples, Task, TaskStream

EXAMPLE = f"{Path(__file__).parent.parent}/examples/own_method.py:Anchor"
EVERY = pytest.mark.parametrize("name", [*METHODS, pytest.param(EXAMPLE, id="own-method")])
# Methods that hold every old output of the first layer, whose inputs never change, within a bound: the share of those
# inputs' energy that may lie outside of what is protected.
PROJECTIONS = dict.fromkeys(
    ("gpm", "trgp", "dfgp", "fs-dgpm", "adam-nscl", "ness", "ness-soft", "ness-budget", "ness-private", "owm"), 0.03
)

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here"))]
NETWORKS = {
    "mlp": (1, 8),
    "alexnet": (3, 32),
    "resnet18": (3, 32),
    "convnet": (3, 16),
}  # channels and size of its images


def two_tasks(channels=1, size=8, count=96):
    """Two tasks of real digits, drawn larger where a network asks for it."""
    tasks = []
    for task in load_stream("split-digits", seed=0).first(2):
        parts = []
        for part in (task.train, task.valid, task.test):
            x = part.x[:count].float().view(-1, 1, 8, 8)
            x = F.interpolate(x, size=(size, size)) if len(x) else x.new_empty(0, 1, size, size)
            x = x.expand(-1, channels, -1, -1)
            parts.append(Examples((x if channels > 1 else x.flatten(1)).contiguous(), part.y[:count]))
        tasks.append(Task(task.name, task.classes, *parts))
    return TaskStream("two small tasks", tuple(tasks))


def learn(name, stream, network="mlp", device="cpu", epochs=3, **options):
    model = build_model(stream, NetworkSettings(network, widths=(24, 16)), seed=0)
    method = make_method(name)
    run = fit(model, stream, method, TrainingSettings(epochs=epochs, lr=0.02), seed=0, device=device, **options)
    return model, method, run


def tensors(state):
    """Every tensor in nested plain containers."""
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from tensors(value)


# On the large networks NESS every day, the others in make test-all: their own code is the same on the small one.
ON_NETWORKS = [
    pytest.param(
        name,
        network,
        id=f"{Path(name.partition(':')[0]).stem}-{network}",
        marks=() if network == "mlp" or name == "ness" else pytest.mark.every,
    )
    for name in (*METHODS, EXAMPLE)
    for network in NETWORKS
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("name", "network"), ON_NETWORKS)
def test_two_tasks_are_learned_on_every_network(name, network, device):
    stream = two_tasks(*NETWORKS[network], count=96 if network == "mlp" else 8)
    model, method, run = learn(name, stream, network, device, epochs=3 if network == "mlp" else 1)
    assert run.finished
    assert all(math.isfinite(epoch.train_loss) for epoch in run.history)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert all(p.requires_grad for p in model.parameters())  # nothing stays frozen
    fresh = build_model(stream, NetworkSettings(network, widths=(24, 16)), seed=0)
    assert model.state_dict().keys() == fresh.state_dict().keys()  # nor anything added
    x = stream[0].test.x.to(device)
    assert method.predict(model, x, 0).shape == (len(x), 2)


@EVERY
def test_a_run_that_was_stopped_in_the_middle_of_a_task_ends_the_same(name, tmp_path):
    stream = two_tasks()
    whole_model, _, whole = learn(name, stream, epochs=4)
    last = (1, 1)  # the second epoch of the second task; joint training has but one stage

    def interrupt(event):
        if isinstance(event, EpochFinished) and (event.task, event.epoch) == last:
            raise KeyboardInterrupt

    first = learn(name, stream, epochs=4, folder=tmp_path, listeners=[interrupt], limits=Limits(checkpoint_epochs=1))[2]
    assert first.status == "stopped"
    model, _, run = learn(name, stream, epochs=4, folder=tmp_path)
    assert run.finished
    assert run.accuracy.tobytes() == whole.accuracy.tobytes()
    assert [epoch.train_loss for epoch in run.history] == [epoch.train_loss for epoch in whole.history]
    for key, tensor in whole_model.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[key]), key


@EVERY
def test_the_memory_it_keeps_is_what_it_says(name):
    model, method, run = learn(name, two_tasks())
    report = method.memory_report()
    assert run.memory == report
    kept = [*tensors(method.state_dict()), *tensors(model.private.content())]
    assert sum(report.values()) == sum(tensor.nbytes for tensor in kept)


@EVERY
def test_its_state_survives_a_checkpoint(name, tmp_path):
    model, method, _ = learn(name, two_tasks())
    torch.save(method.state_dict(), tmp_path / "state.pt")
    restored = make_method(name)
    restored.load_state_dict(model, torch.load(tmp_path / "state.pt", weights_only=True))
    before, after = list(tensors(method.state_dict())), list(tensors(restored.state_dict()))
    assert len(before) == len(after)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def first_layer_moved(name, **settings):
    """(‖ΔW I‖_F, ‖ΔW‖₂ ‖I‖_F) of the first layer's old inputs I during task 2."""
    stream = two_tasks(count=10_000)
    model = build_model(stream, NetworkSettings("mlp", widths=(24, 16)), seed=0)
    method = make_method(name, METHOD_SETTINGS[name](**settings))
    before = []

    def keep(event):
        if isinstance(event, TaskFinished) and event.task == 0:
            before.append(copy.deepcopy(model.backbone))

    fit(model, stream, method, TrainingSettings(epochs=5, lr=0.05), seed=0, listeners=[keep])
    old = collect_inputs(before[0], [stream[0].train.x], "layers.0").double()
    update = (model.backbone.layers[0].weight - before[0].layers[0].weight).detach().double()
    return float((old @ update.T).norm()), float(torch.linalg.matrix_norm(update, 2) * old.norm())


@pytest.mark.parametrize("name", PROJECTIONS)
def test_old_outputs_of_the_first_layer_stay_within_the_bound(name):
    samples = {"samples": 10_000} if "samples" in METHOD_SETTINGS[name].__dataclass_fields__ else {}
    moved, size = first_layer_moved(name, **samples)
    assert 0 < moved <= math.sqrt(PROJECTIONS[name]) * size


def test_fine_tuning_breaks_that_bound():
    moved, size = first_layer_moved("finetune")
    assert moved > math.sqrt(max(PROJECTIONS.values())) * size


def test_an_unknown_method_is_refused_with_the_nearest_name():
    with pytest.raises(NesskitError, match="gpm"):
        make_method("gmp")
