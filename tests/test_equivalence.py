"""Training V is training W with the gradient projected by U Uᵀ, under SGD but not under Adam (PAPER.md, Section 2)."""

import copy
from itertools import count

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from nesskit.adaptation.layers import NESSConv2d, NESSLinear
from nesskit.training.optim import SAM

STEPS = 20
LAYERS = {  # d = 8 inputs each; the input and the output that a batch of them has
    "linear": (NESSLinear, lambda: nn.Linear(8, 5, bias=False, dtype=torch.float64), (16, 8), (16, 5)),
    "grouped convolution": (
        NESSConv2d,
        lambda: nn.Conv2d(4, 4, 2, groups=2, bias=False, dtype=torch.float64),
        (3, 4, 5, 5),
        (3, 4, 4, 4),
    ),
}


class Problem:
    """A layer of which r = 3 directions are free, and a fresh batch a step."""

    def __init__(self, wrap, make_layer, input_shape, target_shape):
        self.wrap, self.layer = wrap, make_layer()
        self.basis = torch.linalg.qr(torch.randn(8, 3, dtype=torch.float64))[0]
        self.x = torch.randn(STEPS, *input_shape, dtype=torch.float64)
        self.y = torch.randn(STEPS, *target_shape, dtype=torch.float64)

    def train(self, layer, optimizer, change_gradient=lambda evaluation: None):
        """``change_gradient`` is told which evaluation of the step it is: SAM makes two."""
        for x, y in zip(self.x, self.y, strict=True):
            evaluations = count()

            def closure(x=x, y=y, evaluations=evaluations):
                optimizer.zero_grad()
                loss = F.mse_loss(layer(x).tanh(), y)
                loss.backward()
                change_gradient(next(evaluations))
                return loss

            optimizer.step(closure)

    def ness_update(self, make_optimizer, **options):
        """ΔW (d_out, d) of training V."""
        layer = self.wrap.from_layer(copy.deepcopy(self.layer), self.basis)
        self.train(layer, make_optimizer([layer.coefficients], **options))
        return layer.delta_weight().detach().flatten(1)

    def projected_update(self, make_optimizer, decay=0.0, towards=1.0, project_ascent=True, **options):
        """ΔW (d_out, d) of training W with the projected gradient, with decay towards ``towards`` times the old W."""
        layer, old = copy.deepcopy(self.layer), self.layer.weight.detach()
        weight = layer.weight

        def project(evaluation):
            if evaluation > 0 or project_ascent:
                projected = (weight.grad.flatten(1) @ self.basis @ self.basis.T).view_as(old)
                weight.grad = projected + decay * (weight.detach() - towards * old)

        self.train(layer, make_optimizer([weight], **options), project)
        return (weight.detach() - old).flatten(1)

    def share_outside(self, update):
        return float((update - update @ self.basis @ self.basis.T).norm() / update.norm())


@pytest.fixture(params=LAYERS)
def problem(request):
    return Problem(*LAYERS[request.param])


SGD_OPTIONS = {
    "plain": {"lr": 0.5},
    "momentum": {"lr": 0.2, "momentum": 0.9},
    "Nesterov": {"lr": 0.2, "momentum": 0.9, "nesterov": True},
}


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("options", SGD_OPTIONS.values(), ids=SGD_OPTIONS)
def test_under_sgd_ness_is_projection_before_momentum(problem, options, decay):
    ness = problem.ness_update(torch.optim.SGD, weight_decay=decay, **options)
    projected = problem.projected_update(torch.optim.SGD, decay, **options)
    assert ness.norm() > 0.1
    torch.testing.assert_close(ness, projected, atol=1e-12, rtol=1e-10)


def test_decay_of_the_coefficients_is_decay_towards_the_old_weights_and_not_towards_zero(problem):
    options = {"lr": 0.2, "momentum": 0.9}
    ness = problem.ness_update(torch.optim.SGD, weight_decay=0.1, **options)
    towards_zero = problem.projected_update(torch.optim.SGD, 0.1, towards=0.0, **options)
    assert (ness - towards_zero).norm() > 0.01 * ness.norm()
    assert problem.share_outside(towards_zero) > 0.01


def test_under_sam_ness_is_projection_if_the_ascent_is_projected_too(problem):
    def sam(parameters):
        return SAM(parameters, torch.optim.SGD, rho=0.5, lr=0.2, momentum=0.9)

    ness = problem.ness_update(sam)
    torch.testing.assert_close(ness, problem.projected_update(sam), atol=1e-10, rtol=1e-10)
    full_ascent = problem.projected_update(sam, project_ascent=False)
    assert (ness - full_ascent).norm() > 0.01 * ness.norm()


def test_under_adam_ness_stays_in_the_free_directions_and_projection_does_not(problem):
    ness = problem.ness_update(torch.optim.Adam, lr=0.05)
    projected = problem.projected_update(torch.optim.Adam, lr=0.05)
    assert problem.share_outside(ness) < 1e-12
    assert problem.share_outside(projected) > 0.3
