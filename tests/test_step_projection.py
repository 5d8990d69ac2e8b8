"""Old outputs hold whatever the optimizer adds to the gradient: decay, momentum, Adam's own scale of every weight."""

import numpy as np
import pytest
import torch
from small_tasks import WIDTH, learn, model, moved, stream, strict, task, training
from torch import nn

from nesskit import Limits, TaskStream, fit
from nesskit.methods import GPM, OWM, SGP, AdamNSCL
from nesskit.methods.held import sums_gradients
from nesskit.methods.subspace import protected_weights
from nesskit.runs.events import EpochFinished
from nesskit.streams.batches import Batch
from nesskit.training.optim import SAM

HARD = ("ness", "gpm", "trgp", "dfgp", "adam-nscl", "owm")  # with settings of small_tasks.strict
OPTIMIZERS = {
    "SGD": {"momentum": 0.0},
    "momentum": {},
    "weight decay": {"weight_decay": 0.01},
    "strong decay without momentum": {"weight_decay": 0.1, "momentum": 0.0},
    "Adam": {"optimizer": "adam", "lr": 0.005},
    "Adam with decay": {"optimizer": "adam", "lr": 0.005, "weight_decay": 0.1},
    "SAM": {"optimizer": "sam"},
    "SAM with decay": {"optimizer": "sam", "weight_decay": 0.01},
    "best weights": {"weight_decay": 0.01, "lr_patience": 1, "epochs": 6},
    "autocast": {"precision": "bfloat16"},
    "autocast, Adam": {"precision": "bfloat16", "optimizer": "adam", "lr": 0.005, "weight_decay": 0.1},
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", HARD)
def test_old_outputs_hold_under_every_optimizer(name, optimizer):
    tasks = stream(valid=10 if optimizer == "best weights" else 0)
    _, learned, before = learn(strict(name), tasks=tasks, settings=training(**OPTIMIZERS[optimizer]))
    assert moved(learned, before, tasks) < 1e-5
    for layer in (0, 2):  # although both layers have learned
        assert (learned.backbone[layer].weight - before.backbone[layer].weight).norm() > 1e-2


@pytest.mark.parametrize("change", [{"weight_decay": 0.01}, {"optimizer": "adam", "lr": 0.005}])
def test_fine_tuning_does_not(change):
    tasks = stream()
    _, learned, before = learn("finetune", tasks=tasks, settings=training(**change))
    assert moved(learned, before, tasks) > 0.1


@pytest.mark.parametrize("name", HARD)
@pytest.mark.parametrize("optimizer", ["weight decay", "Adam with decay", "SAM with decay"])
def test_a_model_of_half_precision_is_held_up_to_its_rounding(name, optimizer):
    """Every input value stands twice, so that half of the directions are free in bfloat16, too."""
    tasks = stream(inputs=lambda x: x[:, : WIDTH // 2].repeat_interleave(2, dim=1))
    wide = model().to(torch.bfloat16)
    _, learned, before = learn(strict(name), wide, tasks, settings=training(**OPTIMIZERS[optimizer]))
    assert learned.backbone[0].weight.dtype == torch.bfloat16
    with torch.no_grad():
        x = tasks[0].train.x.double()
        new, old = (x @ m.backbone[0].weight.double().T for m in (learned, before))
    assert float((new - old).abs().max() / old.abs().max()) < 2e-2


@pytest.mark.every
def test_round_off_of_thousands_of_steps_stays_small():
    tasks = stream(2)
    settings = training(epochs=700, lr=0.01, weight_decay=1e-3)  # 2100 steps a task
    _, learned, before = learn(strict("gpm"), model(2), tasks, settings=settings)
    assert moved(learned, before, tasks) < 2e-5


# One step by hand: P as a matrix, from what the method remembers -----------------------------------------------------

rng = torch.Generator().manual_seed(0)
BATCH = Batch(torch.randn(12, WIDTH, generator=rng), torch.arange(12) % 3, 1)
OLD = TaskStream("old", [task(0)])


def begun(kind):
    """A method in its second task, its model, and the matrix P of the first layer in numpy's float64."""
    settings = {SGP: {"threshold": 0.999, "alpha": 3.0}, GPM: {"threshold": 0.999}, OWM: {"alpha": 0.3}}.get(kind, {})
    method = kind(kind.settings_type(**settings))
    _, learned, _ = learn(method, model(2), OLD)
    if kind is AdamNSCL:
        method.begin_task(learned, None)
        basis = method.free["0"].double().numpy()
        return method, learned, basis @ basis.T
    if kind is OWM:
        return method, learned, method.projectors["0"].double().numpy()
    basis = method.bases["0"].double().numpy()
    importances = method.importances["0"].double().numpy() if kind is SGP else np.ones(basis.shape[1])
    return method, learned, np.eye(WIDTH) - basis * importances @ basis.T


def gradient_of(learned, method):
    """∂loss/∂W of the first layer."""
    weight = protected_weights(learned)["0"]
    return torch.autograd.grad(method.loss(learned, BATCH), weight)[0].double().numpy()


def first_weight(learned):
    return learned.backbone[0].weight.detach().double().numpy().copy()


@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("kind", [GPM, SGP, OWM, AdamNSCL])
def test_a_step_of_sgd_is_the_projected_sum_of_gradient_and_decay(kind, decay):
    """W ← W - lr (G + λ W) P, also where P is soft: it is applied once."""
    method, learned, P = begun(kind)
    optimizer = torch.optim.SGD(method.parameter_groups(learned, [1], decay), lr=0.1, momentum=0.9)
    momentum = 0
    for _ in range(3):
        before, gradient = first_weight(learned), gradient_of(learned, method)
        momentum = 0.9 * momentum + gradient + decay * before
        method.step(learned, BATCH, optimizer)
        np.testing.assert_allclose(first_weight(learned), before - 0.1 * momentum @ P, atol=1e-6)


@pytest.mark.parametrize("kind", [GPM, SGP, OWM, AdamNSCL])
def test_a_step_of_adam_is_projected_as_a_whole(kind):
    """What torch's Adam makes of the raw gradients, times P; with a decay that is added to the gradient."""
    method, learned, P = begun(kind)
    optimizer = torch.optim.Adam(method.parameter_groups(learned, [1], 0.1), lr=0.01)
    free = nn.Parameter(torch.from_numpy(first_weight(learned)))
    plain = torch.optim.Adam([free], lr=0.01, weight_decay=0.1)
    for _ in range(3):
        before = first_weight(learned)
        free.data = torch.from_numpy(before.copy())
        free.grad = torch.from_numpy(gradient_of(learned, method))
        plain.step()
        method.step(learned, BATCH, optimizer)
        step = free.detach().numpy() - before
        np.testing.assert_allclose(first_weight(learned), before + step @ P, atol=1e-5)
        assert np.abs(step @ P - step).max() > 1e-3


def test_decay_acts_along_free_directions_only():
    method, learned, P = begun(GPM)
    before = first_weight(learned)
    optimizer = torch.optim.SGD(method.parameter_groups(learned, [1], 0.5), lr=0.1)
    method.loss = lambda model, batch: 0.0 * model(batch.x, batch.task).sum()  # nothing but decay
    for _ in range(200):
        method.step(learned, BATCH, optimizer)
    np.testing.assert_allclose(first_weight(learned), before - before @ P, atol=1e-4)


def test_projecting_gradients_and_projecting_steps_are_the_same_where_both_hold():
    learners = [begun(SGP)[:2] for _ in range(2)]
    kinds = (torch.optim.SGD, type("Unknown", (torch.optim.SGD,), {}))  # whose steps are not known to be sums
    for (method, learned), kind in zip(learners, kinds, strict=True):
        optimizer = kind(method.parameter_groups(learned, [1], 0.0), lr=0.1, momentum=0.9)
        for _ in range(5):
            method.step(learned, BATCH, optimizer)
        assert method.projects_gradients == (kind is torch.optim.SGD)
    np.testing.assert_allclose(first_weight(learners[0][1]), first_weight(learners[1][1]), atol=1e-6)


def test_which_optimizers_only_sum_up_gradients():
    weight = [nn.Parameter(torch.ones(2))]
    assert sums_gradients(torch.optim.SGD(weight, lr=0.1, momentum=0.9, nesterov=True))
    assert sums_gradients(SAM(weight, torch.optim.SGD, lr=0.1))
    assert not sums_gradients(torch.optim.SGD(weight, lr=0.1, weight_decay=1e-4))
    assert not sums_gradients(SAM(weight, torch.optim.SGD, lr=0.1, weight_decay=1e-4))
    assert not sums_gradients(torch.optim.Adam(weight))
    assert not sums_gradients(SAM(weight, torch.optim.AdamW))


def test_an_interrupt_in_the_middle_of_a_step_leaves_no_step_unprojected():
    class Interrupted(torch.optim.Adam):
        def step(self, closure=None):
            super().step(closure)
            raise KeyboardInterrupt

    method, learned, P = begun(GPM)
    before = first_weight(learned)
    with pytest.raises(KeyboardInterrupt):
        method.step(learned, BATCH, Interrupted(method.parameter_groups(learned, [1], 0.1), lr=0.01))
    step = first_weight(learned) - before
    assert np.abs(step).max() > 1e-3
    np.testing.assert_allclose(step @ P, step, atol=1e-6)


@pytest.mark.parametrize("name", HARD)
def test_a_stopped_run_with_projected_steps_ends_the_same(name, tmp_path):
    settings = training(optimizer="adam", lr=0.005, weight_decay=0.1)
    whole, whole_model, _ = learn(strict(name), settings=settings)

    def interrupt(event):
        if isinstance(event, EpochFinished) and (event.task, event.epoch) == (1, 1):
            raise KeyboardInterrupt

    each = Limits(checkpoint_epochs=1)
    fit(model(), stream(), strict(name), settings, folder=tmp_path, listeners=[interrupt], limits=each)
    resumed, resumed_model, _ = learn(strict(name), settings=settings, folder=tmp_path)
    assert resumed.history == whole.history
    for key, tensor in whole_model.state_dict().items():
        assert torch.equal(tensor, resumed_model.state_dict()[key]), key
