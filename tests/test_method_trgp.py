"""TRGP: the trust region and the scaled weights by hand, GPM where every scale matrix is 1, and old tasks untouched."""

import numpy as np
import pytest
import torch

from nesskit import TrainingSettings, build_model, fit, load_stream
from nesskit.errors import SettingsError
from nesskit.methods import GPM, TRGP
from nesskit.methods.subspace import moments_of
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


def as_the_authors(activation, share, space):
    """Their ``get_space_and_grad`` in plain numpy: (their ``space_list_all``, the task's own ``space_list``)."""
    if space is None:
        left, sizes, _ = np.linalg.svd(activation, full_matrices=False)
        r = int((np.cumsum(sizes**2) / (sizes**2).sum() < share).sum())
        return left[:, :r], left[:, :r]
    total = (activation**2).sum()
    old = ((space.T @ activation) ** 2).sum(axis=1)
    left, sizes, _ = np.linalg.svd(activation - space @ space.T @ activation, full_matrices=False)
    together = np.hstack([old, sizes**2])
    order, held, r = np.argsort(together)[::-1], 0.0, 0
    while held < share * total:
        held += together[order[r]]
        r += 1
    chosen, both = order[:r], np.hstack([space, left])
    return np.hstack([space, both[:, chosen[chosen > len(old)]]]), both[:, chosen]


def span(basis):
    basis = np.asarray(basis)
    return basis @ basis.T


def test_bases_as_the_authors_code_makes_them():
    rng = np.random.default_rng(0)
    method, weight = TRGP(TRGPSettings(bases="authors")), torch.zeros(5, 16, dtype=torch.float64)
    space, protected = None, []
    for task, share in enumerate((0.9, 0.9, 0.93)):
        inputs = rng.standard_normal((60, 16)) * np.geomspace(5, 0.05, 16)[rng.permutation(16)]
        moment = Moment(16)
        moment.update(inputs)
        method.remember("layer", moment, share, weight)
        space, own = as_the_authors(inputs.T, share, space)
        np.testing.assert_allclose(span(method.bases["layer"]), span(space), atol=1e-9)
        np.testing.assert_allclose(span(method._occupied("layer", task)), span(own), atol=1e-9)
        protected.append(((space.T @ inputs.T) ** 2).sum() / (inputs**2).sum())
        if task:
            assert ((own.T @ inputs.T) ** 2).sum() >= share * (inputs**2).sum()  # the task's own are enough,
    assert max(protected[1:]) < 0.85  # what is protected is not: the strongest new direction is left out


def test_a_task_in_which_nothing_is_new_leaves_nothing_out():
    method, weight = TRGP(TRGPSettings(bases="authors")), torch.zeros(2, 3)
    moment = Moment(3)
    moment.update(torch.diag(torch.tensor([4.0, 2.0, 0.1])))
    method.remember("layer", moment, 0.999, weight)  # two of three hold 0.9995, and one of them is kept
    moment = Moment(3)
    moment.update(torch.diag(torch.tensor([3.0, 0.0, 0.0])))
    method.remember("layer", moment, 0.99, weight)
    assert method.bases["layer"].shape == (3, 1)
    assert [method._occupied("layer", task).shape for task in (0, 1)] == [(3, 1), (3, 1)]


@pytest.mark.parametrize("bases", ["paper", "authors"])
def test_the_authors_look_at_a_task_without_its_scale_matrices(bases):
    method = TRGP(TRGPSettings(samples=2000, trust=0.0, bases=bases))  # all examples
    model = after_one_task(method)
    method.begin_task(model, data_of(1))
    for scale in model.scales:
        scale.data *= 3.0
    plain, seen = moments_of(model, data_of(1))["layers.1"].matrix, {}
    method.remember = lambda name, moment, share, weight: seen.update({name: moment.matrix})
    method.end_task(model, data_of(1))
    equal = torch.allclose(seen["layers.1"], plain)
    assert equal == (bases == "authors")


def test_a_run_with_the_bases_of_the_authors_goes_on_from_its_state():
    model, method = build_model(STREAM, seed=0), TRGP(TRGPSettings(0.97, 0.003, bases="authors", trust=0.0))
    fit(model, STREAM, method, TRAINING, seed=0)
    assert any(beside.shape[1] for beside in method.left_out.values())
    for basis in method.bases.values():
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-5)
    again = TRGP(TRGPSettings(0.97, 0.003, bases="authors", trust=0.0))
    other = build_model(STREAM, seed=0)
    again.load_state_dict(other, method.state_dict())
    other.load_state_dict(model.state_dict())
    x = STREAM[2].test.x.float()
    assert torch.equal(other(x, 2), model(x, 2))
    assert again.memory_report() == method.memory_report()


def test_trust_is_a_share():
    with pytest.raises(SettingsError, match=r"trust must be in \[0, 1\]"):
        TRGPSettings(trust=1.5)
