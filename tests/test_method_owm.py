"""OWM: the recursion against its matrix inverse, and the projector in training."""

import pytest
import torch
from torch import nn

from nesskit import TrainingSettings, build_model, collect_inputs, load_stream
from nesskit.methods.owm import OWM, batch_means, update_projector
from nesskit.settings import NetworkSettings, OWMSettings
from nesskit.streams.batches import TaskData
from nesskit.training.optim import make_optimizer


def real_inputs(count=40):
    return load_stream("split-digits", seed=0)[0].train.x[:count].double()


def test_one_row_is_sherman_morrison_by_hand():
    """P = I, x = (2, 0), α = 1: P x xᵀ P/(1 + 4) takes 4/5 from the first entry."""
    updated = update_projector(torch.eye(2, dtype=torch.float64), torch.tensor([[2.0, 0.0]]), 1.0)
    torch.testing.assert_close(updated, torch.tensor([[0.2, 0.0], [0.0, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 10.0])
def test_the_recursion_equals_the_matrix_inverse(alpha):
    """Both forms of the paper's Eq. 1: I - A (AᵀA + α I)⁻¹ Aᵀ = (I + A Aᵀ/α)⁻¹, with the inputs as columns of A."""
    X = real_inputs()
    P = torch.eye(64, dtype=torch.float64)
    for row in X:
        P = update_projector(P, row.unsqueeze(0), alpha)
    A = X.T
    left = torch.eye(64, dtype=torch.float64) - A @ torch.linalg.inv(A.T @ A + alpha * torch.eye(40)) @ A.T
    torch.testing.assert_close(P, left, atol=1e-7, rtol=0)
    inverse = torch.linalg.inv(torch.eye(64, dtype=torch.float64) + X.T @ X / alpha)
    torch.testing.assert_close(P, inverse, atol=1e-7, rtol=0)


@pytest.mark.parametrize("rows", [1, 5, 64, 90])
def test_many_rows_at_once_equal_one_after_another(rows):
    X = real_inputs(rows)
    together = update_projector(torch.eye(64, dtype=torch.float64), X, 0.1)
    P = torch.eye(64, dtype=torch.float64)
    for row in X:
        P = update_projector(P, row.unsqueeze(0), 0.1)
    torch.testing.assert_close(together, P, atol=1e-9, rtol=0)


def test_a_convolution_has_the_mean_patch_of_each_position():
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 2, stride=2, bias=False)
    x = torch.rand(5, 2, 4, 4)
    (means,) = batch_means(nn.Sequential(layer), [x])
    patches = nn.functional.unfold(x, 2, stride=2).mean(dim=0).T
    torch.testing.assert_close(means["0"], patches)


def test_a_layer_that_is_called_twice_has_both_means():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(input=self.layer(x))

    model, x = Twice(), torch.rand(4, 3)
    (means,) = batch_means(model, [x])
    torch.testing.assert_close(means["layer"], torch.stack([x.mean(0), model.layer(x).mean(0)]).detach())


def learned(**settings):
    """The method and model after task 1, and the data of two tasks."""
    stream = load_stream("split-digits", seed=0)
    model = build_model(stream, NetworkSettings(widths=(24, 16)), seed=0)
    first, second = (TaskData(stream[task], task, torch.device("cpu")) for task in (0, 1))
    method = OWM(OWMSettings(**settings))
    torch.manual_seed(0)
    method.end_task(model, first)
    return method, model, first, second


def test_single_inputs_give_the_inverse_of_the_layers_moment():
    """With batches of one the projector knows every input: P = (I + C/α)⁻¹ in every layer, up to float32."""
    method, model, first, _ = learned(batch=1, alpha=2.0)
    for name, P in method.projectors.items():
        inputs = collect_inputs(model.backbone, [first.train.x.float()], name).double()
        expected = torch.linalg.inv(torch.eye(len(P), dtype=torch.float64) + inputs.T @ inputs / 2.0)
        torch.testing.assert_close(P.double(), expected, atol=1e-5, rtol=0)


def test_a_step_follows_the_projected_gradient():
    method, model, _, second = learned()
    weight = model.backbone.layers[0].weight
    before, batch = weight.detach().clone(), second.batch(second.train, slice(64))
    gradient = torch.autograd.grad(method.loss(model, batch), weight)[0]
    groups = method.parameter_groups(model, [1], weight_decay=0.0)
    method.step(model, batch, make_optimizer(TrainingSettings(lr=0.1), groups, 1))
    torch.testing.assert_close(weight.detach() - before, -0.1 * gradient @ method.projectors["layers.0"])


def test_a_smaller_alpha_moves_old_outputs_less():
    moved = []
    for alpha in (1e-4, 1e-1, 1e2):
        method, _, first, _ = learned(alpha=alpha, batch=1)
        moved.append(float((first.train.x.float() @ method.projectors["layers.0"]).norm()))
    assert moved == sorted(moved)
    assert moved[0] < 0.01 * moved[-1]
