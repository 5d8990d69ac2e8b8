"""TRGP: the trust region and the scaled weights by hand, GPM where every scale matrix is 1, and old tasks untouched."""

import numpy as np
import pytest
import torch

from nesskit import TrainingSettings, build_model, fit, load_stream
from nesskit.errors import SettingsError
from nesskit.methods import GPM, TRGP
from nesskit.methods.trgp import leading_columns
from nesskit.settings import GPMSettings, TRGPSettings
from nesskit.spectra.moment import Moment
from nesskit.streams.batches import TaskData

STREAM = load_stream("split-digits", seed=0).first(3)
TRAINING = TrainingSettings(epochs=2)


def data_of(task):
    return TaskData(STREAM[task], task, torch.device("cpu"))


def after_one_task(method):
    model = build_model(STREAM, seed=0)
    fit(model, STREAM.first(1), method, TRAINING, seed=0)
    return model


def begun():
    """A model and TRGP at the start of task 2, trusting task 1 in every layer."""
    method = TRGP(TRGPSettings(0.97, 0.003, trust=0.0))
    model = after_one_task(method)
    method.begin_task(model, data_of(1))
    return model, method


def test_the_trust_region_of_a_hand_worked_gradient():
    method = TRGP(TRGPSettings(trust=0.5, reuse=2))
    method.bases = {"layer": torch.eye(4)}
    method.columns = {"layer": [torch.tensor([0]), torch.tensor([1]), torch.tensor([0, 2]), torch.tensor([3])]}
    gradient = torch.tensor([[3.0, 1.0, 4.0, 3.0]])  # norm √35 = 5.92; held: 3, 1, 5, 3, of which 2.96 is enough
    assert method._trust_region("layer", gradient) == [2, 0]
    method.settings = TRGPSettings(trust=0.6)
    assert method._trust_region("layer", gradient) == [2]
    method.settings = TRGPSettings(trust=0.5, reuse=0)
    assert method._trust_region("layer", gradient) == []


def test_the_scaled_weight_is_that_of_the_paper():
    model, method = begun()
    torch.manual_seed(0)
    for scale in model.scales:
        scale.data += torch.randn_like(scale)
    for name, task in method.trusted:
        weight = model.backbone.get_submodule(name).weight.detach().double().numpy()
        basis = method.bases[name][:, method.columns[name][task]].double().numpy()
        scale = method._present(model)[name, task].detach().double().numpy()
        expected = weight + weight @ basis @ scale @ basis.T - weight @ basis @ basis.T
        scaled = method.scaled_weights(model, method._present(model))[name].detach().numpy()
        np.testing.assert_allclose(scaled, expected, atol=1e-5)


def test_with_scale_matrices_of_1_it_is_gpm():
    gpm = GPM(GPMSettings())
    other = after_one_task(gpm)
    model, method = begun()
    batch = data_of(1).batch(data_of(1).train, slice(0, 64))
    torch.testing.assert_close(method.predict(model, batch.x, 1), gpm.predict(other, batch.x, 1))
    for learner, learned in ((gpm, other), (method, model)):
        learner.step(learned, batch, torch.optim.SGD(learned.parameters(), lr=0.1))
    for name, tensor in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor)


def test_that_reuses_nothing_is_gpm_to_the_end():
    weights = []
    for method in (GPM(GPMSettings()), TRGP(TRGPSettings(0.97, 0.003, reuse=0))):
        model = build_model(STREAM, seed=0)
        fit(model, STREAM, method, TRAINING, seed=0)
        weights.append(model.state_dict())
    # TRGP draws the examples of its gradient in begin_task, which has random numbers of its own
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_scale_matrices_learn_are_kept_and_leave_the_model():
    model, method = begun()
    data = data_of(1)
    groups = method.parameter_groups(model, [1], 0.1)
    assert groups[-1]["weight_decay"] == 0
    optimizer = torch.optim.SGD(groups, lr=0.1)
    for batch in data.batches(data.train, 32):
        method.step(model, batch, optimizer)
    learned = [scale.detach().clone() for scale in model.scales]
    assert any((scale - torch.eye(len(scale))).norm() > 1e-3 for scale in learned)
    before = method.predict(model, batch.x, 1)
    method.end_task(model, data)
    assert not hasattr(model, "scales")
    assert torch.equal(method.predict(model, batch.x, 1), before)
    assert all(torch.equal(a, b) for a, b in zip(method.scales[1].values(), learned, strict=True))


def test_a_later_task_moves_nothing_along_old_inputs():
    method = TRGP(TRGPSettings(trust=0.0))
    model = build_model(STREAM, seed=0)
    fit(model, STREAM.first(2), method, TRAINING, seed=0)
    before = {name: model.backbone.get_submodule(name).weight.detach().clone() for name in method.bases}
    method.begin_task(model, data_of(2))
    optimizer = torch.optim.SGD(method.parameter_groups(model, [2], 0.0), lr=0.05)
    for batch in data_of(2).batches(data_of(2).train, 32):
        method.step(model, batch, optimizer)
    for name, weight in before.items():
        update = model.backbone.get_submodule(name).weight.detach() - weight
        assert update.norm() > 1e-3
        assert (update @ method.bases[name]).norm() < 1e-5 * weight.norm()


def test_the_strongest_columns_are_found_first():
    moment = Moment(3)
    moment.update(torch.diag(torch.tensor([1.0, 3.0, 2.0])))
    energy = torch.tensor([1.0, 9.0, 4.0], dtype=torch.float64)
    assert leading_columns(energy, moment, 0.6).tolist() == [1]
    assert leading_columns(energy, moment, 0.9).tolist() == [1, 2]
    assert leading_columns(energy, moment, 1.0).tolist() == [1, 2, 0]


def test_trust_is_a_share():
    with pytest.raises(SettingsError, match=r"trust must be in \[0, 1\]"):
        TRGPSettings(trust=1.5)
