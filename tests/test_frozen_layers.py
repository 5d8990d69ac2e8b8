"""What the user froze stays frozen and bit by bit as it was, for every method; the rest learns."""

import copy

import pytest
import torch
from small_tasks import EVERY, STANDING, learn, model, stream, training
from torch import nn

from nesskit import TaskModel, TaskStream, fit
from nesskit.errors import TrainingError

PARTS = {
    "first layer": lambda m: [m.backbone[0]],
    "last layer": lambda m: [m.backbone[3]],
    "batch norm": lambda m: [m.backbone[1]],
    "biases": lambda m: [m.backbone[0].bias, m.backbone[3].bias],
    "head of task 2": lambda m: [m.heads[1]],
    "backbone": lambda m: [m.backbone],
}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", EVERY)
def test_what_is_frozen_stays_and_the_rest_learns(name, part):
    learned = model(norm=nn.BatchNorm1d)
    for frozen in PARTS[part](learned):
        frozen.requires_grad_(False)
    before = copy.deepcopy(learned)
    if (name, part) == ("frozen", "head of task 2"):
        with pytest.raises(TrainingError, match="task 2 can learn nothing"):
            learn(name, learned, settings=training(epochs=1))
        return
    run, _, _ = learn(name, learned, settings=training(weight_decay=0.01, epochs=2))
    assert run.finished
    held = {key for key, p in before.named_parameters() if not p.requires_grad}
    for key, parameter in learned.named_parameters():
        assert parameter.requires_grad == (key not in held), key
        stands = key in held or (name in STANDING and not may_learn(key, STANDING[name]))
        assert torch.equal(parameter, before.get_parameter(key)) == stands, key
    if part in ("batch norm", "backbone"):
        for key, buffer in learned.backbone[1].named_buffers():
            assert torch.equal(buffer, before.backbone[1].get_buffer(key)), key


def may_learn(key, kinds):
    """Whether a parameter is of a head, or a weight of a linear layer, where these kinds of parameters learn."""
    return key.startswith("heads.") or key in {f"backbone.{layer}.{kind}" for layer in (0, 3) for kind in kinds}


@pytest.mark.parametrize("name", EVERY)
def test_a_normalisation_without_parameters_of_its_own_still_averages(name):
    learned = model(norm=lambda width: nn.BatchNorm1d(width, affine=False))
    learn(name, learned, TaskStream("one", [stream()[0]]), settings=training(epochs=1))
    assert bool(learned.backbone[1].running_mean.any()) == (name not in STANDING)


@pytest.mark.parametrize("name", EVERY)
def test_running_state_stops_after_task_1(name):
    """Averages of BatchNorm and InstanceNorm, vectors of spectral norm: in every method that protects old tasks."""
    torch.manual_seed(0)
    spectral = torch.nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
    norm = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
    backbone = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), spectral, nn.Unflatten(1, (4, 2)), norm, nn.Flatten())
    learned = TaskModel(backbone, 8, [3] * 3)
    if name == "hat":  # it refuses such layers (test_units.py)
        learned = model(norm=nn.BatchNorm1d)
    _, _, before = learn(name, learned, settings=training(epochs=1))
    if name in ("finetune", "joint", "a-gem"):  # nothing protects these
        return
    for key, buffer in learned.backbone.named_buffers():
        assert torch.equal(buffer, before.backbone.get_buffer(key)), key


@pytest.mark.parametrize("name", EVERY)
def test_a_task_that_may_learn_nothing_is_refused(name):
    learned = model()
    learned.requires_grad_(False)
    if name == "hat":  # whatever is frozen, it learns which units a task uses
        assert fit(learned, stream(), name, training()).finished
        return
    first = len(stream()) if name == "joint" else 1
    with pytest.raises(TrainingError, match=rf"task {first} can learn nothing: all that method '{name}' would train"):
        fit(learned, stream(), name, training())
    learned.backbone[0].bias.requires_grad_(True)
    if name in ("finetune", "joint", "ewc", "a-gem"):
        assert fit(learned, stream(), name, training()).finished
    else:  # what no projection protects stands still after task 1, or from the start
        first = 1 if name in STANDING else 2
        with pytest.raises(TrainingError, match=f"task {first} can learn nothing"):
            fit(learned, stream(), name, training())
