"""Adam-NSCL: Adam's own update, projected into the null space of the old inputs."""

import copy

import numpy as np
import pytest
import torch

from nesskit import build_model, load_stream
from nesskit.errors import SettingsError
from nesskit.methods import AdamNSCL, Method
from nesskit.networks import MLP, TaskModel
from nesskit.settings import AdamNSCLSettings
from nesskit.spectra.filters import FrobeniusThreshold
from nesskit.spectra.moment import Moment
from nesskit.streams.batches import Batch, TaskData

rng = torch.Generator().manual_seed(0)
OLD = torch.randn(40, 4, generator=rng) @ torch.randn(4, 6, generator=rng)  # two of six directions are never used
BATCH = Batch(torch.randn(12, 6, generator=rng), torch.arange(12) % 3, 1)


def learner():
    """A model with one protected layer, and the method in the middle of its second task."""
    torch.manual_seed(0)
    model = TaskModel(MLP(6, (5,)), 5, [3, 3])
    method = AdamNSCL(AdamNSCLSettings(filter=FrobeniusThreshold(1e-6)))
    moment = Moment(6)
    moment.update(OLD)
    method.tasks_learned, method.moments = 1, {"layers.0": moment}
    method.begin_task(model, None)
    return model, method


def adam(model, method):
    return torch.optim.Adam(method.parameter_groups(model, [1], 0.0), lr=0.01)


def weight(model):
    return model.backbone.layers[0].weight.detach()


def test_the_first_step_is_that_of_adam_times_the_null_projector_of_a_plain_svd():
    model, method = learner()
    free, before = copy.deepcopy(model), weight(model).clone()
    method.step(model, BATCH, adam(model, method))
    plain = Method()
    plain.step(free, BATCH, torch.optim.Adam(free.parameters(), lr=0.01))
    left, sizes, _ = np.linalg.svd(OLD.double().numpy().T)
    null = left[:, sizes < 1e-4]
    assert null.shape[1] == 2
    expected = (weight(free) - before).double().numpy() @ null @ null.T
    np.testing.assert_allclose((weight(model) - before).numpy(), expected, atol=1e-7)
    assert torch.equal(model.heads[1].weight, free.heads[1].weight)  # heads are free


def test_old_outputs_stay_although_adam_moves_every_weight():
    model, method = learner()
    before, optimizer = weight(model).clone(), adam(model, method)
    for _ in range(20):
        method.step(model, BATCH, optimizer)
    update = weight(model) - before
    assert update.norm() > 0.05
    assert (OLD @ update.T).abs().max() < 1e-5


def test_projecting_the_gradient_instead_would_not_hold_adam():
    model, method = learner()
    before, basis = weight(model).clone(), method.free["layers.0"]
    optimizer = adam(model, method)
    for _ in range(20):
        optimizer.zero_grad()
        method.loss(model, BATCH).backward()
        gradient = model.backbone.layers[0].weight.grad
        gradient.copy_(gradient @ basis @ basis.T)
        optimizer.step()
    assert (OLD @ (weight(model) - before).T).abs().max() > 0.1


def test_the_covariance_of_batch_means_is_that_of_one_row_a_batch():
    """As the authors' present code has it; a batch of everything leaves the outer product of the mean."""
    stream = load_stream("split-digits", seed=0)
    data, model = TaskData(stream[0], 0, torch.device("cpu")), build_model(stream, seed=0)
    x = stream[0].normalise(stream[0].train.x).double()
    method = AdamNSCL(AdamNSCLSettings(batch=len(x)))
    method.end_task(model, data)
    mean = x.mean(dim=0)
    torch.testing.assert_close(method.moments["layers.0"].matrix, torch.outer(mean, mean), rtol=1e-4, atol=1e-6)
    assert method.moments["layers.0"].count == 1
    method = AdamNSCL(AdamNSCLSettings(batch=32))
    torch.manual_seed(0)
    method.end_task(model, data)
    torch.manual_seed(0)
    means = torch.stack([part.mean(dim=0) for part in x[torch.randperm(len(x))].split(32)])
    torch.testing.assert_close(method.moments["layers.0"].matrix, means.T @ means, rtol=1e-4, atol=1e-6)


def test_a_batch_is_of_one_example_at_least():
    with pytest.raises(SettingsError, match="batch must be at least 1, got 0"):
        AdamNSCLSettings(batch=0)


def test_a_filter_must_be_one():
    with pytest.raises(SettingsError, match="filter must be a Filter"):
        AdamNSCLSettings(filter="smallest:10")
