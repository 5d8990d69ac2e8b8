import copy

import pytest
import torch

from nesskit.settings import TrainingSettings
from nesskit.training.optim import SAM, forget_momentum, make_optimizer

CURVATURE = torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64))
START = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)


def problem(*, base=torch.optim.SGD, rho=0.1, **options):
    """f(w) = ½ wᵀ H w, whose gradient is H w, and SAM to minimise it."""
    w = torch.nn.Parameter(START.clone())
    optimizer = SAM([w], base, rho, **options)

    def closure():
        optimizer.zero_grad()
        loss = w @ CURVATURE @ w / 2
        loss.backward()
        return loss

    return w, optimizer, closure


def sam_gradient(w, rho=0.1):
    gradient = CURVATURE @ w
    return CURVATURE @ (w + rho * gradient / gradient.norm())


def test_one_step_is_the_hand_formula_and_returns_the_loss_at_the_start():
    w, optimizer, closure = problem(lr=0.02)
    loss = optimizer.step(closure)
    torch.testing.assert_close(w.detach(), START - 0.02 * sam_gradient(START), rtol=1e-10, atol=0)
    assert float(loss.detach()) == float(START @ CURVATURE @ START / 2)


def test_the_neighbourhood_is_measured_over_all_groups_together():
    parts = [torch.nn.Parameter(START[:1].clone()), torch.nn.Parameter(START[1:].clone())]
    optimizer = SAM([{"params": parts[:1]}, {"params": parts[1:], "lr": 0.01}], torch.optim.SGD, 0.1, lr=0.02)

    def closure():
        optimizer.zero_grad()
        w = torch.cat(parts)
        loss = w @ CURVATURE @ w / 2
        loss.backward()
        return loss

    optimizer.step(closure)
    expected = START - torch.tensor([0.02, 0.01, 0.01], dtype=torch.float64) * sam_gradient(START)
    torch.testing.assert_close(torch.cat(parts).detach(), expected, rtol=1e-10, atol=0)


def test_momentum_and_decay_are_those_of_the_base_at_the_original_weights():
    w, optimizer, closure = problem(lr=0.02, momentum=0.9, weight_decay=0.3)
    expected, velocity = START, torch.zeros(3, dtype=torch.float64)
    for _ in range(3):
        velocity = 0.9 * velocity + sam_gradient(expected) + 0.3 * expected
        expected = expected - 0.02 * velocity
        optimizer.step(closure)
    torch.testing.assert_close(w.detach(), expected, rtol=1e-10, atol=0)


def test_weights_are_restored_exactly_before_the_base_takes_its_step():
    w, optimizer, closure = problem(lr=0.0)
    w.data *= 1e-5 / 3  # much smaller than the ascent: adding and subtracting that would lose digits
    before = w.detach().clone()
    optimizer.step(closure)
    assert torch.equal(w.detach(), before)


def test_weights_are_restored_when_the_second_evaluation_is_interrupted():
    w, optimizer, closure = problem(lr=0.02)
    calls = []

    def interrupted():
        calls.append(closure())
        if len(calls) == 2:
            raise KeyboardInterrupt
        return calls[0]

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(interrupted)
    assert torch.equal(w.detach(), START)


def test_a_parameter_without_gradient_stays():
    w, optimizer, closure = problem(lr=0.02)
    idle = torch.nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [idle]})
    optimizer.step(closure)
    assert torch.equal(idle.detach(), torch.ones(2))
    assert not torch.equal(w.detach(), START)


def test_a_restored_state_continues_identically():
    w, optimizer, closure = problem(lr=0.02, momentum=0.9)
    for _ in range(3):
        optimizer.step(closure)
    other_w, other, other_closure = problem(lr=0.5, momentum=0.0)
    other_w.data.copy_(w.data)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        optimizer.step(closure)
        other.step(other_closure)
    assert torch.equal(w.detach(), other_w.detach())


@pytest.mark.parametrize("restored", [False, True])
def test_a_changed_learning_rate_is_honoured(restored):
    w, optimizer, closure = problem(lr=5.0)
    if restored:
        optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 0.02
    optimizer.step(closure)
    torch.testing.assert_close(w.detach(), START - 0.02 * sam_gradient(START), rtol=1e-10, atol=0)


def test_torch_schedulers_drive_it():
    _, optimizer, closure = problem(lr=0.4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    optimizer.step(closure)
    scheduler.step()
    assert optimizer.base.param_groups[0]["lr"] == 0.2


@pytest.mark.parametrize(
    "make",
    [
        lambda w: torch.optim.SGD([w], lr=0.1, momentum=0.9),
        lambda w: torch.optim.Adam([w], lr=0.1, fused=True),
        lambda w: SAM([w], torch.optim.SGD, lr=0.1, momentum=0.9),
    ],
    ids=["sgd", "adam", "sam"],
)
def test_an_optimizer_that_forgets_goes_on_as_a_fresh_one(make):
    w, _, closure = problem(lr=0.1)
    optimizer = make(w)
    for _ in range(3):
        optimizer.step(closure)
    here = w.detach().clone()
    forget_momentum(optimizer)
    optimizer.step(closure)
    forgetful = w.detach().clone()
    with torch.no_grad():
        w.copy_(here)
    make(w).step(closure)
    assert torch.equal(forgetful, w)
    assert not torch.equal(here, w)


@pytest.mark.parametrize("rho", [0, -1, float("nan")])
def test_a_neighbourhood_without_size_is_refused(rho):
    with pytest.raises(ValueError, match="rho must be above 0"):
        problem(rho=rho, lr=0.1)


@pytest.mark.parametrize(
    ("options", "task", "kind"),
    [
        ({"optimizer": "sgd"}, 0, torch.optim.SGD),
        ({"optimizer": "adam"}, 1, torch.optim.Adam),
        ({"optimizer": "sam"}, 0, SAM),
        ({"optimizer": "sam"}, 3, SAM),
        ({"optimizer": "sam", "sam_tasks": "first"}, 0, SAM),
        ({"optimizer": "sam", "sam_tasks": "first"}, 1, torch.optim.SGD),
    ],
)
def test_settings_make_the_optimizer_they_ask_for(options, task, kind):
    settings = TrainingSettings(lr=0.3, momentum=0.7, sam_rho=0.2, **options)
    optimizer = make_optimizer(settings, [{"params": [torch.nn.Parameter(START)], "weight_decay": 0.1}], task)
    assert type(optimizer) is kind
    group = optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.1)
    assert group.get("momentum", 0.7) == 0.7
    assert getattr(optimizer, "rho", 0.2) == 0.2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_fused_kernel_of_adam_takes_the_steps_of_the_loop(dtype):
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 30, dtype=dtype).view(5, 6)) for _ in range(2))
    optimizers = [
        make_optimizer(TrainingSettings(optimizer="adam"), [{"params": [ours], "weight_decay": 0.1}], 1),
        torch.optim.Adam([{"params": [theirs], "weight_decay": 0.1}], lr=0.05),
    ]
    for _ in range(100):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            (parameter.sin() * torch.arange(6, dtype=dtype)).sum().backward()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=100 * torch.finfo(dtype).eps, atol=100 * torch.finfo(dtype).eps)
