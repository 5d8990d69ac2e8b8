"""NESS with a private scale: what a task learns for itself reaches no other task, and no input is seen without it."""

import copy
import warnings

import numpy as np
import pytest
import torch
from small_tasks import learn, model, stream, training

from nesskit import (
    FixedRank,
    FrobeniusThreshold,
    Limits,
    NetworkSettings,
    SoftFilter,
    TaskModel,
    build_model,
    fit,
    load_stream,
)
from nesskit.errors import AdaptationError, SettingsError
from nesskit.methods import make_method
from nesskit.methods.private import PrivateWarning
from nesskit.networks.private_parts import Part, PrivateParts
from nesskit.runs.events import TaskFinished
from nesskit.settings import METHOD_SETTINGS, FSDGPMSettings, NESSPrivateSettings, TrainingSettings, TRGPSettings
from nesskit.streams.batches import TaskData

SHORT = training(epochs=3)
DIGITS = load_stream("permuted-digits", seed=0).first(3)


def private(**options):
    """ness-private with a strict filter."""
    return make_method("ness-private", NESSPrivateSettings(**{"filter": FrobeniusThreshold(0.02), **options}))


def learned_digits(method, epochs=3, keep=None, **training_options):
    """A small network that has learned three tasks of permuted digits; copies of it as each task left it."""
    network = build_model(DIGITS, NetworkSettings(widths=(32, 24)), seed=0)
    copies = []

    def listen(event):
        if isinstance(event, TaskFinished):
            copies.append(copy.deepcopy(network))

    settings = TrainingSettings(epochs=epochs, lr=0.05, **training_options)
    run = fit(network, DIGITS, method, settings, seed=0, listeners=[listen])
    return network.eval(), [each.eval() for each in copies], run


def arrays(network):
    return {name: tensor.double().numpy() for name, tensor in network.state_dict().items() if "extra" not in name}


# What a task computes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["scale", "full", "adapter"])
def test_the_model_computes_the_formula(form):
    network, _, _ = learned_digits(private(private=form, directions=6))
    weights, parts = arrays(network), network.private.of(2)
    x = hidden = DIGITS[2].test.x[:20].double().numpy()
    for name in ("layers.0", "layers.1"):
        W = weights[f"backbone.{name}.weight"].T
        value = {part.form: tensor.detach().double().numpy() for part, tensor in parts.items() if part.name == name}
        if form == "adapter":
            change = value["down"].T @ value["up"].T
        else:
            S = value[form]
            M = network.private.basis(name).double().numpy().T[:, : len(S)]
            np.testing.assert_allclose(M.T @ M, np.eye(len(S)), atol=1e-5)
            change = M @ S @ (M.T @ W if form == "scale" else np.eye(S.shape[1]))
        assert np.abs(change).max() > 1e-4
        hidden = np.maximum(hidden @ (W + change), 0)
    expected = hidden @ weights["heads.2.weight"].T
    np.testing.assert_allclose(network(torch.tensor(x).float(), 2).detach().numpy(), expected, atol=1e-4)


def test_a_task_begins_as_if_it_had_nothing_of_its_own():
    network = build_model(DIGITS, NetworkSettings(widths=(32, 24)), seed=0)
    plain = copy.deepcopy(network)
    rows = network.private.grow("layers.0", torch.linalg.qr(torch.randn(64, 5)).Q)
    for part in (Part("scale", "layers.0"), Part("full", "layers.0")):
        size = (5, 5) if part.form == "scale" else (5, 32)
        network.private.begin(1, {part: rows.new_zeros(size)})
        x = DIGITS[1].test.x
        assert torch.equal(network(x, 1), plain(x, 1))


def test_task_1_shares_everything():
    network, _, _ = learned_digits(private())
    assert network.private.of(0) == {}
    assert network.private.numbers_of(0) == 0


@pytest.mark.parametrize("form", ["scale", "full"])
def test_the_private_numbers_are_counted(form):
    network, _, run = learned_digits(private(private=form, directions=5))
    expected = 2 * 25 if form == "scale" else 5 * 32 + 5 * 24
    assert [network.private.numbers_of(task) for task in range(3)] == [0, expected, expected]
    assert run.memory["private parts"] == 2 * expected * 4
    assert run.memory["shared directions"] == 5 * (64 + 32) * 4


def test_each_layer_may_have_the_smaller_of_the_two():
    """32 and 24 outputs: all 40 directions of the first layer cost 40 × 32 in full, the 20 of the second 20² scaled."""
    network = build_model(DIGITS, NetworkSettings(widths=(32, 24)), seed=0)
    method = private(private="smaller")
    method.begin_task(network, TaskData(DIGITS[0], 0, torch.device("cpu")))
    method.learn_privately(network, {"layers.0": torch.eye(64)[:, :40], "layers.1": torch.eye(32)[:, :20]}, {})
    shapes = {part: tuple(value.shape) for part, value in network.private.of(0).items()}
    assert shapes == {Part("full", "layers.0"): (40, 32), Part("scale", "layers.1"): (20, 20)}


# What reaches other tasks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["scale", "full", "adapter"])
def test_what_a_task_learns_for_itself_leaves_old_outputs_bit_equal(form):
    """V held at zero by a filter that frees nothing."""
    network, copies, _ = learned_digits(private(private=form, directions=8, filter=FixedRank(0)))
    for task, before in enumerate(copies):
        x = DIGITS[task].test.x
        assert torch.equal(network(x, task), before(x, task))
    assert network.private.of(1).keys() == network.private.of(2).keys()
    assert not torch.equal(network(DIGITS[0].test.x, 0), copies[0].backbone(DIGITS[0].test.x)[:, :10])


def test_own_affine_pairs_of_batchnorm_leave_old_outputs_bit_equal():
    tasks = load_stream("permuted-digits", seed=0).first(2)
    backbone = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU())
    network = TaskModel(backbone, 16, [len(task.classes) for task in tasks])
    before = []

    def listen(event):
        if isinstance(event, TaskFinished) and event.task == 0:
            before.append(copy.deepcopy(network).eval())

    fit(network, tasks, private(private="none", filter=FixedRank(0)), SHORT, seed=0, listeners=[listen])
    own = network.eval().private.of(1)
    assert set(own) == {Part("own", "1.weight"), Part("own", "1.bias")}
    assert not torch.equal(own[Part("own", "1.bias")], backbone[1].bias)
    x = tasks[0].test.x
    assert torch.equal(network(x, 0), before[0](x, 0))


def test_old_outputs_move_as_little_as_under_ness():
    def moved(method):
        network, copies, _ = learned_digits(method, epochs=10)
        with torch.no_grad():
            old, new = (each(DIGITS[1].train.x, 1) for each in (copies[1], network))
        return float((new - old).norm() / old.norm())

    ness = make_method("ness", NESSPrivateSettings(filter=FrobeniusThreshold(0.02), private="none", norm="shared"))
    assert moved(private()) < 2 * moved(ness) < 0.2


def test_what_scales_stand_on_moves_as_little_as_old_outputs():
    """MᵀW of a task's own columns, as later tasks leave it: U is orthogonal to M as far as occupied sets nest.

    They nest nearly: a threshold that is a share of ‖I‖_F rises with every task, and the weakest columns become free.
    """
    network, copies, _ = learned_digits(private(), epochs=10)
    for name in ("layers.0", "layers.1"):
        k = len(network.private.of(1)[Part("scale", name)])
        M = network.private.basis(name)[:k].double().numpy().T
        before, after = (arrays(each)[f"backbone.{name}.weight"].T for each in (copies[1], network))
        moved = np.linalg.norm(M.T @ (after - before))
        assert 0 < moved < 0.25 * np.linalg.norm(after - before)
        assert moved < 0.1 * np.linalg.norm(M.T @ before)


@pytest.mark.parametrize("memory", ["moments", "data"])
def test_layers_see_each_task_through_its_own_parts(memory):
    method = private(memory=memory, norm="shared")
    network, _, _ = learned_digits(method)
    moments = method._remembered_moments(network)
    expected = np.zeros((32, 32))
    for task in range(3):
        own = network.private.weights(network.backbone, task).get("layers.0.weight", network.backbone.layers[0].weight)
        inputs = np.maximum(DIGITS[task].train.x.double().numpy() @ own.detach().double().numpy().T, 0)
        expected += inputs.T @ inputs
    tolerance = 1e-5 if memory == "data" else 0.05  # kept moments are those of the weights that each task was left with
    difference = np.linalg.norm(moments["layers.1"].matrix.numpy() - expected)
    assert difference <= tolerance * np.linalg.norm(expected)


# M ------------------------------------------------------------------------------------------------------------------


def test_directions_only_grow_and_what_was_there_stays_bit_by_bit():
    parts = PrivateParts(3)
    generator = torch.Generator().manual_seed(0)
    first = torch.linalg.qr(torch.randn(12, 4, generator=generator)).Q
    other = torch.linalg.qr(torch.randn(12, 3, generator=generator)).Q
    one = parts.grow("layer", first).clone()
    np.testing.assert_allclose(one, first.T, atol=1e-6)
    again = torch.cat([first[:, :2], torch.linalg.qr(other - first @ (first.T @ other)).Q], dim=1)
    two = parts.grow("layer", again)
    assert torch.equal(two[:4], one)
    assert len(two) == 7  # two were held already
    np.testing.assert_allclose(two @ two.T, np.eye(7), atol=1e-6)
    assert len(parts.grow("layer", torch.eye(12), most=9)) == 9
    assert len(parts.grow("layer", torch.eye(12), most=5)) == 9  # and never shrink


def test_the_strongest_directions_are_taken_first():
    method = private(directions=3)
    network, _, _ = learned_digits(method)
    x = DIGITS[0].train.x.double().numpy()
    strongest = np.linalg.svd(x.T, full_matrices=False)[0][:, :3]
    M = network.private.basis("layers.0").double().numpy().T
    np.testing.assert_allclose(M @ M.T, strongest @ strongest.T, atol=1e-5)


def test_a_soft_filter_leaves_less_than_half_where_old_inputs_are():
    method = private(filter=SoftFilter(0.01, "frobenius"))
    network, _, _ = learned_digits(method)
    x = DIGITS[0].train.x.double().numpy()
    values = np.linalg.svd(x, compute_uv=False)
    k = int((values > 0.01 * np.linalg.norm(values)).sum())
    assert len(network.private.of(1)[Part("scale", "layers.0")]) == k


# Other methods ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpm", "sgp", "dfgp"])
@pytest.mark.parametrize("form", ["scale", "full"])
def test_other_subspace_methods_have_it_as_an_option(name, form):
    settings = METHOD_SETTINGS[name](1.0, 0.0, 10_000, private=form, directions=8)
    network, _, run = learned_digits(make_method(name, settings))
    numbers = 2 * 8 * 8 if form == "scale" else 8 * (32 + 24)
    assert [network.private.numbers_of(task) for task in range(3)] == [0, numbers, numbers]
    assert run.memory["private parts"] == 2 * numbers * 4
    _, _, without = learned_digits(make_method(name, METHOD_SETTINGS[name](1.0, 0.0, 10_000)))
    assert "private parts" not in without.memory
    assert all(value.any() for value in network.private.of(2).values())


def test_gpm_protects_old_outputs_with_private_scales_as_without():
    network, copies, _ = learned_digits(make_method("gpm", METHOD_SETTINGS["gpm"](1.0, 0.0, 10_000, private="scale")))
    for task, before in enumerate(copies):
        x = DIGITS[task].train.x
        torch.testing.assert_close(network(x, task), before(x, task), atol=1e-3, rtol=1e-3)


# The model alone ----------------------------------------------------------------------------------------------------


def test_whoever_gets_the_model_gets_the_same_answers():
    network, _, _ = learned_digits(private())
    fresh = build_model(DIGITS, NetworkSettings(widths=(32, 24)), seed=9).eval()
    assert fresh.state_dict().keys() == network.state_dict().keys()
    fresh.load_state_dict(network.state_dict())
    for task in range(3):
        x = DIGITS[task].test.x
        assert torch.equal(fresh(x, task), network(x, task))
        assert torch.equal(copy.deepcopy(network)(x, task), network(x, task))
    exact = copy.deepcopy(network).double()
    torch.testing.assert_close(exact(DIGITS[2].test.x, 2).float(), network(DIGITS[2].test.x, 2), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"filter": SoftFilter(0.01, "frobenius")},
        {"private": "full"},
        {"private": "none"},
        {"memory": "data"},
        {"stability": 1.0},
        {"bias": "augment"},
    ],
    ids=lambda options: "-".join(options),
)
def test_it_composes_with_every_choice_of_ness(options):
    run, _, _ = learn(private(**options), settings=SHORT)
    assert run.finished


@pytest.mark.parametrize("optimizer", ["sam", "adam"])
def test_it_composes_with_every_optimizer(optimizer):
    network, copies, run = learned_digits(private(filter=FixedRank(0)), optimizer=optimizer, weight_decay=1e-3)
    assert run.finished
    assert torch.equal(network(DIGITS[1].test.x, 1), copies[1](DIGITS[1].test.x, 1))


def test_the_best_weights_are_kept_with_what_belongs_to_them():
    """S and V are of one epoch: with both in place the model has the validation loss of the best."""
    tasks = load_stream("permuted-digits", seed=0, validation_share=0.2).first(2)
    network = build_model(tasks, NetworkSettings(widths=(32, 24)), seed=0)
    run = fit(network, tasks, private(), TrainingSettings(epochs=8, lr=0.1), seed=0)
    epochs = [epoch for epoch in run.history if epoch.task == 1]
    best = min(epochs, key=lambda epoch: epoch.valid_loss)
    assert best is not epochs[-1]
    x, y = tasks[1].valid.x, tasks[1].valid.y
    loss = torch.nn.functional.cross_entropy(network.eval()(x, 1), y)
    assert float(loss) == pytest.approx(best.valid_loss, rel=1e-3)


# Bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["scale", "adapter"])
def test_a_run_that_was_stopped_after_task_1_goes_on(form, tmp_path):
    def own():
        return private(private=form, directions=4)

    whole, resumed = model(), model()
    fit(whole, stream(), own(), SHORT)
    fit(model(), stream(), own(), SHORT, folder=tmp_path, limits=Limits(tasks=1))
    assert fit(resumed, stream(), own(), SHORT, folder=tmp_path).finished
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key
    assert resumed.private.learned == [0, 1, 2]


def test_a_task_that_was_never_learned_has_no_answer():
    network = build_model(DIGITS, NetworkSettings(widths=(32, 24)), seed=0)
    fit(network, DIGITS.first(2), private(), SHORT)
    with pytest.raises(AdaptationError, match=r"task 3 was never learned.*learned are the tasks 1, 2$"):
        network(DIGITS[2].test.x, 2)


def test_a_layer_without_occupied_directions_is_named():
    tasks = stream()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run, network, _ = learn(private(filter=FrobeniusThreshold(10.0)), tasks=tasks, settings=SHORT)
    said = [str(warning.message) for warning in caught if warning.category is PrivateWarning]
    assert run.finished
    assert "layer '0': old inputs occupy none of its directions" in said[0]
    assert network.private.numbers_of(1) == 0


def test_parts_of_a_model_with_more_tasks_are_refused():
    network, _, _ = learned_digits(private())
    smaller = build_model(DIGITS.first(2), NetworkSettings(widths=(32, 24)))
    with pytest.raises(AdaptationError, match="has learned task 3, and this one has heads for 2 tasks"):
        smaller.private.set_extra_state(network.private.get_extra_state())


def test_parts_of_another_network_are_refused():
    network, _, _ = learned_digits(private())
    other = model(3)
    other.private.set_extra_state(network.private.get_extra_state())
    with pytest.raises(AdaptationError, match=r"no layer 'layers\.0', of which a task has a private part"):
        other(stream()[1].test.x, 1)


@pytest.mark.parametrize("settings", [TRGPSettings, FSDGPMSettings])
@pytest.mark.parametrize("options", [{"private": "scale"}, {"norm": "private"}])
def test_methods_that_know_of_no_private_parts_refuse_them(settings, options):
    with pytest.raises(SettingsError, match="private must be none, and norm shared"):
        settings(**options)


def test_fs_dgpm_looks_at_the_same_examples_in_every_layer():
    with pytest.raises(SettingsError, match="samples_of_layers must be empty"):
        FSDGPMSettings(samples_of_layers=(10, 10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"directions": 0}, "directions must be at least 1"),
        ({"private": "adapter"}, "an adapter has a rank"),
        ({"moment_batches": "across-tasks"}, "moment_batches must be of-one-task"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        NESSPrivateSettings(**options)
