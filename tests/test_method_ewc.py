"""EWC against closed forms: the Fisher information of logistic regression, and the sum of its penalties."""

import pytest
import torch
from torch import nn

from nesskit import TaskModel, build_model, load_stream
from nesskit.methods.ewc import EWC, fisher_diagonal
from nesskit.settings import EWCSettings, NetworkSettings
from nesskit.streams.batches import Batch, TaskData

CPU = torch.device("cpu")


def logistic_regression(x, classes=3):
    """softmax(B x) as a TaskModel: B is the backbone, the head leaves its three outputs as they are."""
    torch.manual_seed(0)
    model = TaskModel(nn.Linear(x.shape[1], classes, bias=False), classes, [classes])
    with torch.no_grad():
        model.heads[0].weight.copy_(torch.eye(classes))
    return model


def closed_form(model, x):
    """F of the weight B_kj: the mean over x of p_k (1 - p_k) x_j²."""
    p = model(x, 0).softmax(dim=1).detach()
    return (p * (1 - p)).T @ x.square() / len(x)


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.every), 8])
def test_the_fisher_information_is_that_of_logistic_regression(size):
    x = load_stream("split-digits", seed=0)[0].train.x[:200].float()
    model = logistic_regression(x)
    torch.manual_seed(1)
    passes = 400 * size  # larger batches scatter more
    expected, found = closed_form(model, x), torch.zeros(3, x.shape[1])
    for _ in range(passes // 8):
        found += fisher_diagonal(model, 0, iter(x.split(size)))["weight"] / (passes // 8)
    error = (found - expected).norm() / expected.norm()
    assert float(error) < 0.03
    assert float(found.sum() / expected.sum()) == pytest.approx(1, abs=0.02)  # no bias


def test_the_fisher_information_of_a_batch_is_the_square_of_its_score():
    """By hand for one batch: Σ_n (e_{y_n} - p_n) x_nᵀ, squared, over n."""
    x = load_stream("split-digits", seed=0)[0].train.x[:6].float()
    model = logistic_regression(x)
    p = model(x, 0).softmax(dim=1).detach()
    torch.manual_seed(2)
    y = torch.distributions.Categorical(p).sample()
    torch.manual_seed(2)
    found = fisher_diagonal(model, 0, iter([x]))["weight"]
    score = (nn.functional.one_hot(y, 3) - p).T @ x
    torch.testing.assert_close(found, score.square() / 6)


def test_the_empirical_fisher_is_the_square_of_the_score_of_the_true_labels():
    """By hand: Σ_n (e_{y_n} - p_n) x_nᵀ of each batch of 20, squared, over n; the last batch has 5."""
    stream = load_stream("split-digits", seed=0)
    x, y = stream[0].train.x[:45].float(), stream[0].train.y[:45]
    model = logistic_regression(x, classes=2)
    p = model(x, 0).softmax(dim=1).detach()
    scores = [(nn.functional.one_hot(y[i : i + 20], 2) - p[i : i + 20]).T @ x[i : i + 20] for i in (0, 20, 40)]
    found = fisher_diagonal(model, 0, x.split(20), y.split(20))["weight"]
    torch.testing.assert_close(found, sum(score.square() for score in scores) / 45)


def test_the_empirical_fisher_has_dropout_at_work_and_moves_no_running_average():
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
    model = TaskModel(backbone, 6, [2]).eval()
    x, y = torch.randn(8, 4), torch.arange(8) % 2
    before = {name: value.clone() for name, value in backbone[1].named_buffers()}
    one, other = (fisher_diagonal(model, 0, [x], [y])["0.weight"] for _ in range(2))
    assert not torch.equal(one, other)
    assert all(torch.equal(value, before[name]) for name, value in backbone[1].named_buffers())
    assert not any(module.training for module in model.modules())


def test_the_settings_say_which_fisher():
    stream = load_stream("split-digits", seed=0)
    data, importances = TaskData(stream[0], 0, CPU), {}
    for fisher in ("expected", "empirical"):
        model = build_model(stream, NetworkSettings(widths=(8,)), seed=0)
        method = EWC(EWCSettings(fisher=fisher, fisher_batch=20))
        torch.manual_seed(0)
        method.end_task(model, data)
        importances[fisher] = method.importance["layers.0.weight"]
    x = stream[0].normalise(data.train.x)
    expected = fisher_diagonal(model, 0, x.split(20), data.train.y.split(20))["layers.0.weight"]
    torch.testing.assert_close(importances["empirical"], expected)
    assert not torch.allclose(importances["expected"], expected, rtol=0.1)


def learned(form, tasks=3, **settings):
    """EWC after ``tasks`` tasks whose weights and importances are drawn at random: (method, model, [(F_t, θ_t)])."""
    stream = load_stream("split-digits", seed=0)
    model = build_model(stream, NetworkSettings(widths=(8,)), seed=0).double()
    method, history = EWC(EWCSettings(form=form, strength=10.0, **settings)), []
    torch.manual_seed(3)
    for _ in range(tasks):
        for name, parameter in model.backbone.named_parameters():
            importance = torch.rand_like(parameter) * (torch.rand_like(parameter) > 0.3)
            weights = torch.randn_like(parameter)
            method._remember(name, importance, weights)
            history.append((name, importance, weights))
    return method, model, history


def test_one_parabola_stands_for_all_old_tasks():
    """The gradient of the penalty is that of Σ_t λ/2 F_t (θ - θ_t)², one term per old task."""
    method, model, history = learned("separate")
    parameters = dict(model.backbone.named_parameters())
    several = sum(5.0 * (F * (parameters[name] - anchor).square()).sum() for name, F, anchor in history)
    expected = torch.autograd.grad(several, list(parameters.values()))
    found = torch.autograd.grad(method.penalty(model), list(parameters.values()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_the_online_form_fades_and_moves_its_anchor():
    method, _, history = learned("online", gamma=0.5)
    name = history[0][0]
    first, second, third = (F for n, F, _ in history if n == name)
    torch.testing.assert_close(method.importance[name], first / 4 + second / 2 + third)
    assert torch.equal(method.anchors[name], [w for n, _, w in history if n == name][-1])


def test_the_loss_adds_the_penalty_of_what_has_moved():
    stream = load_stream("split-digits", seed=0)
    model = build_model(stream, NetworkSettings(widths=(8,)), seed=0)
    data = TaskData(stream[0], 0, CPU)
    method = EWC(EWCSettings(strength=4.0))
    batch = data.batch(data.train, slice(32))
    plain = float(method.loss(model, batch).detach())
    method.end_task(model, data)
    assert float(method.loss(model, batch).detach()) == pytest.approx(plain)  # nothing has moved yet
    with torch.no_grad():
        model.backbone.layers[0].weight.add_(0.5)
    F = method.importance["layers.0.weight"]
    cross_entropy = super(EWC, method).loss(model, Batch(batch.x, batch.y, 0))
    expected = float(cross_entropy.detach()) + 4.0 / 2 * float(F.sum()) * 0.25
    assert float(method.loss(model, batch).detach()) == pytest.approx(expected, rel=1e-5)
