"""NESS with a soft filter and with a budget: what their first step does, worked out by hand from the old inputs."""

import copy

import pytest
import torch

from nesskit import InterferenceBudget, Probe, SoftFilter, TrainingSettings, build_model, collect_moments, load_stream
from nesskit.methods import make_method
from nesskit.methods.ness import weight_matrix
from nesskit.settings import NESSBudgetSettings, NESSSoftSettings, NetworkSettings
from nesskit.streams.batches import TaskData
from nesskit.training.optim import make_optimizer

LR = 0.1


def first_step(name):
    """(old inputs' moments, W, G, ΔW) of one SGD step on task 2, each by layer name."""
    stream = load_stream("split-digits", seed=0)
    model = build_model(stream, NetworkSettings(widths=(24, 16)), seed=0)
    first, second = (TaskData(stream[task], task, torch.device("cpu")) for task in (0, 1))
    method = make_method(name)
    method.begin_task(model, first)
    method.end_task(model, first)
    before = copy.deepcopy(model)
    moments = collect_moments(before.backbone, [first.train.x.float()])
    batch = second.batch(second.train, slice(64))
    method.loss(before, batch).backward()
    method.begin_task(model, second)
    groups = method.parameter_groups(model, [1], weight_decay=0.0)
    method.step(model, batch, make_optimizer(TrainingSettings(lr=LR), groups, 1))
    method.end_task(model, second)
    layers = {layer: before.backbone.get_submodule(layer) for layer in moments}
    return {
        layer: (
            moments[layer],
            weight_matrix(module, augmented=False),
            module.weight.grad,
            model.backbone.get_submodule(layer).weight.detach() - module.weight.detach(),
        )
        for layer, module in layers.items()
    }


def test_the_soft_filter_takes_the_step_that_minimises_the_penalised_problem():
    """X = D τ²(τ² + C)⁻¹ is where the gradient of ‖D - X‖² + ‖X I‖²/τ² vanishes: no eigenvector is needed to say so."""
    for moment, _, gradient, update in first_step("ness-soft").values():
        C = moment.matrix
        tau_squared = NESSSoftSettings().filter.tau ** 2 * C.trace()
        wanted, update = -LR * gradient.double(), update.double()
        expected = torch.linalg.solve(tau_squared * torch.eye(len(C)) + C, tau_squared * wanted.T).T
        torch.testing.assert_close(update, expected, atol=1e-6, rtol=0)


def test_the_budget_projects_the_step_onto_the_directions_that_its_rule_frees():
    for moment, weight, gradient, update in first_step("ness-budget").values():
        spectrum = moment.spectrum()
        rank = InterferenceBudget().null_rank(spectrum, Probe(weight))
        U = spectrum.null_basis(rank)
        assert 0 < rank < len(spectrum)
        torch.testing.assert_close(update.double(), -LR * gradient.double() @ U @ U.T, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "rule"),
    [(NESSSoftSettings, SoftFilter(0.01, "frobenius")), (NESSBudgetSettings, InterferenceBudget())],
)
def test_each_has_its_own_default_filter(settings, rule):
    assert settings().filter == rule
