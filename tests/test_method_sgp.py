"""SGP: importances by hand, the scaled projection, and GPM as the limit of full importance."""

import numpy as np
import pytest
import torch

from nesskit import TrainingSettings, build_model, fit, load_stream
from nesskit.errors import SettingsError
from nesskit.methods import GPM, SGP
from nesskit.methods.sgp import importance
from nesskit.networks import MLP, TaskModel
from nesskit.settings import GPMSettings, SGPSettings
from nesskit.spectra.moment import Moment
from nesskit.streams.batches import Batch


def moment_of(rows):
    moment = Moment(rows.shape[1])
    moment.update(rows)
    return moment


def test_importances_of_a_hand_worked_spectrum():
    sizes = torch.tensor([4.0, 2.0, 1.0, 0.0])
    assert importance(sizes, 1.0).tolist() == pytest.approx([1, 2 * 2 / 6, 2 * 1 / 5, 0])
    assert importance(sizes, 0.0).tolist() == [1, 0.5, 0.25, 0]
    assert importance(torch.zeros(2), 3.0).tolist() == [0, 0]


def test_importances_of_two_tasks_add_up():
    method, weight = SGP(SGPSettings(threshold=1.0, alpha=1.0)), torch.zeros(3, 3)
    method.remember("layer", moment_of(torch.diag(torch.tensor([4.0, 2.0, 0.0]))), 0.99, weight)
    np.testing.assert_allclose(method.bases["layer"].abs(), np.eye(3)[:, :2], atol=1e-6)
    assert method.importances["layer"].tolist() == pytest.approx([1, 4 / 6])
    # σ along the three directions: 0, 1, 3, the last being new. λ = 2σ/(σ + 3)
    method.remember("layer", moment_of(torch.diag(torch.tensor([0.0, 1.0, 3.0]))), 0.99, weight)
    np.testing.assert_allclose(method.bases["layer"].abs(), np.eye(3), atol=1e-6)
    assert method.importances["layer"].tolist() == pytest.approx([1, 1, 1])  # 4/6 + 2/4 is cut at 1
    method.remember("layer", moment_of(torch.diag(torch.tensor([1.0, 0.0, 0.0]))), 0.99, weight)
    assert method.importances["layer"].tolist() == pytest.approx([1, 1, 1])


def test_surrogate_sizes_are_those_of_the_projected_inputs_singular_vectors():
    """σ_i of an old direction, from a plain SVD of M Mᵀ R as the paper has it."""
    rng = np.random.default_rng(0)
    old, new = rng.standard_normal((30, 8)) * np.geomspace(3, 0.1, 8), rng.standard_normal((30, 8))
    method, weight = SGP(SGPSettings(alpha=2.0)), torch.zeros(4, 8, dtype=torch.float64)
    method.remember("layer", moment_of(old), 0.9, weight)
    first, basis = method.importances["layer"].clone(), method.bases["layer"].numpy()
    k = basis.shape[1]
    method.remember("layer", moment_of(new), 0.9, weight)
    left, sizes, _ = np.linalg.svd(basis @ basis.T @ new.T)
    surrogate = np.sqrt((basis.T @ left[:, :k]) ** 2 @ sizes[:k] ** 2)
    outside = np.linalg.svd(new.T - basis @ basis.T @ new.T, compute_uv=False)
    together = np.concatenate([surrogate, outside[: method.bases["layer"].shape[1] - k]])
    expected = 3 * together / (2 * together + together.max())
    expected[:k] = np.minimum(expected[:k] + first.numpy(), 1)
    np.testing.assert_allclose(method.importances["layer"].numpy(), expected)


def test_a_step_takes_away_the_part_along_each_direction_that_its_importance_says():
    torch.manual_seed(0)
    model = TaskModel(MLP(6, (5,)), 5, [3])
    method = SGP()
    basis = torch.linalg.qr(torch.randn(6, 3)).Q
    method.bases, method.importances = {"layers.0": basis}, {"layers.0": torch.tensor([1.0, 0.5, 0.0])}
    method.tasks_learned = 1
    batch = Batch(torch.randn(12, 6), torch.arange(12) % 3, 0)
    weight = model.backbone.layers[0].weight
    (gradient,) = torch.autograd.grad(method.loss(model, batch), weight)
    before = weight.detach().clone()
    method.step(model, batch, torch.optim.SGD(model.parameters(), lr=1.0))
    taken = before - weight.detach()
    torch.testing.assert_close(taken @ basis, gradient @ basis * torch.tensor([0.0, 0.5, 1.0]))
    complement = torch.eye(6) - basis @ basis.T
    torch.testing.assert_close(taken @ complement, gradient @ complement)


def test_without_scaling_it_is_gpm():
    """α → ∞: every importance is 1."""
    stream = load_stream("split-digits", seed=0).first(3)
    weights = []
    for method in (GPM(GPMSettings()), SGP(SGPSettings(0.97, 0.003, alpha=1e15))):
        model = build_model(stream, seed=0)
        fit(model, stream, method, TrainingSettings(epochs=2), seed=0)
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_alpha_cannot_be_negative():
    with pytest.raises(SettingsError, match="alpha must be at least 0"):
        SGPSettings(alpha=-1)
