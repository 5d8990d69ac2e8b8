"""DFGP: one step by hand, and GPM where nothing is perturbed or mixed."""

import copy

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from nesskit import TrainingSettings, build_model, fit, load_stream
from nesskit.errors import SettingsError
from nesskit.methods import DFGP, GPM
from nesskit.methods.dfgp import Mixing
from nesskit.networks import MLP, TaskModel
from nesskit.settings import DFGPSettings
from nesskit.streams.batches import Batch

BATCH_X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
BATCH_Y = torch.arange(12) % 3


def learner(**settings):
    torch.manual_seed(0)
    model = TaskModel(MLP(6, (5,)), 5, [3])
    method = DFGP(DFGPSettings(**settings))
    method.bases = {"layers.0": torch.linalg.qr(torch.randn(6, 2)).Q}
    method.tasks_learned = 1
    return model, method


def batch():
    return Batch(BATCH_X, BATCH_Y, 0)


def by_hand(model, shares, partners, weight):
    """L(W, s), one example at a time."""
    total = F.cross_entropy(model(BATCH_X, 0), BATCH_Y)
    for i, (share, partner) in enumerate(zip(shares, partners.tolist(), strict=True)):
        logits = model((1 - share) * BATCH_X[i : i + 1] + share * BATCH_X[partner : partner + 1], 0)
        own, other = F.cross_entropy(logits, BATCH_Y[i : i + 1]), F.cross_entropy(logits, BATCH_Y[partner][None])
        total = total + weight * ((1 - share) * own + share * other) / len(BATCH_Y)
    return total


def test_one_step_by_hand():
    model, method = learner(mixup_weight=0.5, rho=0.3, data_rho=0.2)
    mixing = Mixing(torch.rand(12), torch.randperm(12))
    method._draw = lambda _: mixing
    reference, basis = copy.deepcopy(model), method.bases["layers.0"]
    parameters = list(reference.parameters())
    start = [p.detach().clone() for p in parameters]
    shares = mixing.shares.clone().requires_grad_()
    loss = by_hand(reference, shares, mixing.partners, 0.5)
    *uphill, share_uphill = torch.autograd.grad(loss, [*parameters, shares])
    norm = torch.cat([g.flatten() for g in uphill]).norm()
    with torch.no_grad():
        for p, g in zip(parameters, uphill, strict=True):
            p += 0.3 * g / norm
    worst = (mixing.shares + 0.2 * share_uphill / share_uphill.norm()).clamp(0, 1)
    gradients = torch.autograd.grad(by_hand(reference, worst, mixing.partners, 0.5), parameters)
    taken = method.step(model, batch(), torch.optim.SGD(model.parameters(), lr=1.0))
    torch.testing.assert_close(taken, loss.detach())
    hidden, head = (s - g for s, g in zip(start, gradients, strict=True))
    torch.testing.assert_close(model.heads[0].weight.detach(), head)
    along = gradients[0] @ basis @ basis.T
    torch.testing.assert_close(model.backbone.layers[0].weight.detach(), hidden + along)


def test_without_perturbation_and_mixing_it_is_gpm():
    stream = load_stream("split-digits", seed=0).first(3)
    weights = []
    for method in (GPM(), DFGP(DFGPSettings(0.97, 0.003, mixup_weight=0.0, rho=0.0))):
        model = build_model(stream, seed=0)
        fit(model, stream, method, TrainingSettings(epochs=2), seed=0)
        weights.append(model.state_dict())
    for key, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][key], tensor)


def test_shares_stay_between_0_and_1():
    model, method = learner(data_rho=100.0)
    _, worst = method._climb(model, batch(), method._draw(batch()))
    assert 0 <= worst.shares.min() <= worst.shares.max() <= 1


def test_negative_radii_are_refused():
    with pytest.raises(SettingsError, match="rho must be at least 0"):
        DFGPSettings(rho=-0.1)
