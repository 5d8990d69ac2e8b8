"""GPM: M from a plain SVD of the inputs (Saha et al. 2021, Eq. 5 to 9), the projected step by hand, the threshold."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from nesskit import TaskModel, TrainingSettings, build_model, fit, load_stream
from nesskit.errors import SettingsError, SpectrumError
from nesskit.methods import GPM
from nesskit.methods.subspace import moments_of, protected_layers, protected_weights
from nesskit.networks import AlexNet
from nesskit.settings import GPMSettings
from nesskit.spectra.moment import Moment
from nesskit.spectra.projections import grow_basis, outside, project_onto, project_out
from nesskit.streams.base import Examples, Task
from nesskit.streams.batches import TaskData

RNG = np.random.default_rng(0)


def moment_of(rows):
    moment = Moment(rows.shape[1])
    moment.update(rows)
    return moment


def plain_basis(inputs, share, before=None):
    """M as the publication has it, from SVDs of R (d, n) itself."""
    before = np.zeros((len(inputs), 0)) if before is None else before
    rest = inputs - before @ before.T @ inputs
    left, sizes, _ = np.linalg.svd(rest, full_matrices=False)
    total, held = (inputs**2).sum(), ((before @ before.T @ inputs) ** 2).sum()
    k = 0
    while held + (sizes[:k] ** 2).sum() < share * total:
        k += 1
    return np.hstack([before, left[:, :k]])


def projector(basis):
    basis = np.asarray(basis)
    return np.eye(len(basis)) - basis @ basis.T


def test_the_projector_is_that_of_a_plain_svd_over_two_tasks():
    scales = np.geomspace(3, 0.05, 12)
    first, second = (RNG.standard_normal((40, 12)) * scales[RNG.permutation(12)] for _ in range(2))
    mine = grow_basis(torch.zeros(12, 0), moment_of(first), 0.9)
    plain = plain_basis(first.T, 0.9)
    np.testing.assert_allclose(projector(mine), projector(plain), atol=1e-10)
    grown, plain = grow_basis(mine, moment_of(second), 0.95), plain_basis(second.T, 0.95, plain)
    assert grown.shape[1] > mine.shape[1]
    assert torch.equal(grown[:, : mine.shape[1]], mine)
    np.testing.assert_allclose(projector(grown), projector(plain), atol=1e-10)


def test_a_hand_worked_step():
    """Inputs (3, 0) and (0, 1) hold 9/10 and 1/10 of the energy: at 0.9 only the first direction is protected."""
    basis = grow_basis(torch.zeros(2, 0), moment_of(np.diag([3.0, 1.0])), 0.9)
    gradient = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(project_out(gradient, basis), torch.tensor([[0.0, 2], [0, 4]], dtype=torch.float64))
    torch.testing.assert_close(project_onto(gradient, basis), torch.tensor([[1.0, 0], [3, 0]], dtype=torch.float64))


def test_nothing_is_added_where_enough_is_held():
    basis = grow_basis(torch.zeros(2, 0), moment_of(np.diag([3.0, 1.0])), 0.9)
    assert grow_basis(basis, moment_of(np.diag([5.0, 1.0])), 0.9).shape == (2, 1)


def test_a_basis_stays_orthonormal_when_all_energy_is_to_be_held():
    """What lies outside of M is then round-off, which may point anywhere: with dead units also into the span of M."""
    basis, alive = torch.zeros(128, 0), RNG.permutation(128)[:70]
    for share in (0.995, 0.998, 1.0, 1.0):
        inputs = np.zeros((125, 128))
        inputs[:, alive] = np.maximum(RNG.standard_normal((125, 70)), 0)
        basis = grow_basis(basis, moment_of(inputs), share).float()  # as the method keeps it
        np.testing.assert_allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-6)
    np.testing.assert_allclose(inputs @ projector(basis.double()), 0, atol=1e-5)


def test_what_lies_outside_of_a_basis():
    inputs, basis = RNG.standard_normal((20, 6)), np.linalg.qr(RNG.standard_normal((6, 2)))[0]
    rest = inputs.T - basis @ basis.T @ inputs.T
    np.testing.assert_allclose(outside(moment_of(inputs), torch.tensor(basis)).matrix, rest @ rest.T, atol=1e-12)


def test_a_basis_of_another_layer_is_refused():
    with pytest.raises(SpectrumError, match="3 entries and a moment of dimension 4"):
        grow_basis(torch.zeros(3, 0), Moment(4), 0.9)


def test_updates_of_a_run_avoid_the_basis_and_every_protected_input():
    stream = load_stream("permuted-digits", seed=0).first(2)
    model, method = build_model(stream, seed=0), GPM(GPMSettings(threshold=0.95, samples=2000))
    training = TrainingSettings(epochs=2)
    fit(model, stream.first(1), method, training, seed=0, device="cpu")
    bases = {name: basis.clone() for name, basis in method.bases.items()}
    x = stream[0].normalise(stream[0].train.x)
    share = 1 - (x @ bases["layers.0"]).square().sum() / x.square().sum()
    assert share <= 0.05 + 1e-5  # at most 5 % of the energy of task 1's inputs is not protected

    before = {name: weight.detach().clone() for name, weight in protected_weights(model).items()}
    model, method = build_model(stream, seed=0), GPM(GPMSettings(threshold=0.95, samples=2000))
    fit(model, stream, method, training, seed=0, device="cpu")
    for name, weight in protected_weights(model).items():
        update = (weight.detach() - before[name]).flatten(1)
        assert update.norm() > 0.05 * before[name].norm()  # task 2 was learned
        assert (update @ bases[name]).norm() < 1e-4 * update.norm()  # and none of it along M


@pytest.mark.parametrize(("bases", "less"), [("paper", 0), ("authors", 1)])
def test_the_authors_code_has_one_direction_less_in_task_1(bases, less):
    """Their r = Σ (cumulated share < ε) of task 1, without the +1; later tasks go on from there by Eq. 9."""
    scales = np.geomspace(3, 0.05, 12)
    first, second = (RNG.standard_normal((40, 12)) * scales[RNG.permutation(12)] for _ in range(2))
    method, weight = GPM(GPMSettings(bases=bases)), torch.zeros(5, 12, dtype=torch.float64)
    method.remember("layer", moment_of(first), 0.9, weight)
    plain = plain_basis(first.T, 0.9)
    plain = plain[:, : plain.shape[1] - less]
    np.testing.assert_allclose(projector(method.bases["layer"]), projector(plain), atol=1e-10)
    method.remember("layer", moment_of(second), 0.95, weight)
    plain = plain_basis(second.T, 0.95, plain)
    np.testing.assert_allclose(projector(method.bases["layer"]), projector(plain), atol=1e-10)


def test_of_the_images_that_pass_the_network_together_each_layer_sees_its_number():
    """From hooks on AlexNet, whose BatchNorm has the statistics of all of them."""
    torch.manual_seed(0)
    model = TaskModel(AlexNet(), 2048, [2]).double()
    x = torch.randn(12, 3, 32, 32, dtype=torch.float64)
    layers, inputs = protected_layers(model.backbone), {}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args[0]))
    with torch.no_grad():
        model.eval()(x, 0)
    counts = dict(zip(layers, (2, 5, 6, 12, 12), strict=True))
    examples = Examples(x, torch.zeros(12, dtype=torch.long))
    data = TaskData(Task("task", ("a", "b"), examples, examples, examples), 0, torch.device("cpu"))
    moments = moments_of(model, data, x, counts)
    for name, layer in layers.items():
        rows = inputs[name][: counts[name]]
        if rows.ndim == 4:
            rows = F.unfold(rows, layer.kernel_size).transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(moments[name].matrix, rows.T @ rows)
        assert moments[name].count == len(rows)


def test_each_layer_has_its_number_of_samples_or_none_has():
    stream = load_stream("split-digits", seed=0).first(1)
    model, method = build_model(stream, seed=0), GPM(GPMSettings(samples_of_layers=(20, 100, 100)))
    message = r"samples_of_layers has 3 numbers, but this network has 2 layers to protect \(layers.0, layers.1\)"
    with pytest.raises(SettingsError, match=message):
        fit(model, stream, method, TrainingSettings(epochs=1), seed=0)
    method = GPM(GPMSettings(samples_of_layers=(2, 100)))
    fit(model, stream, method, TrainingSettings(epochs=1), seed=0)
    assert method.bases["layers.0"].shape[1] <= 2 < method.bases["layers.1"].shape[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 0.0}, "threshold"),
        ({"increment": -0.1}, "increment"),
        ({"samples": 0}, "samples"),
        ({"samples_of_layers": (10, 0)}, "samples_of_layers must be numbers from 1 to 125, which is samples"),
        ({"samples_of_layers": (10, 126)}, "samples_of_layers must be numbers from 1 to 125, which is samples"),
        ({"samples_of_layers": (1.5,)}, "every samples_of_layers must be a whole number"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(SettingsError, match=message):
        GPMSettings(**settings)
