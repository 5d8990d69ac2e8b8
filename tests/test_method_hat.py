"""HAT: masks, compensation, regulariser and a whole step by hand, annealing, and old outputs to the last bit."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from small_tasks import learn, model, moved, stream, training
from test_step_projection import OPTIMIZERS
from torch import nn
from torch.nn import functional as F  # noqa: N812

from nesskit import Limits, TaskModel, TrainingSettings, build_model, configure, fit, load_stream
from nesskit.errors import SettingsError
from nesskit.methods import HAT, make_method
from nesskit.methods.hat import annealed, compensation, embeddings_of, free_shares, gate, newly_used
from nesskit.networks.units import units_of
from nesskit.runs.events import EpochFinished
from nesskit.settings import HATSettings
from nesskit.streams.batches import Batch, TaskData


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def data_of(tasks, number):
    return TaskData(tasks[number], number, torch.device("cpu"))


# The parts by hand --------------------------------------------------------------------------------------------------


def test_the_masks_of_a_hand_worked_network():
    """1 - min(A_out, A_in) between units, 1 - A_out for the first layer, biases and BatchNorm."""
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU())
    shares = free_shares(network, units_of(network), {"0": tensor(1, 0.25), "3": tensor(0.5, 0)})
    expected = {
        "0.weight": [[0], [0.75]],
        "0.bias": [0, 0.75],
        "1.weight": [0, 0.75],
        "1.bias": [0, 0.75],
        "3.weight": [[0.5, 0.75], [1, 1]],
        "3.bias": [0.5, 1],
    }
    assert {name: share.tolist() for name, share in shares.items()} == expected


def test_a_flattening_repeats_a_channels_gate():
    network = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(4, 1))
    shares = free_shares(network, units_of(network), {"0": tensor(1, 0.25), "3": tensor(1)})
    assert shares["3.weight"].tolist() == [[0, 0, 0.75, 0.75]]
    assert shares["0.weight"].flatten().tolist() == [0, 0.75]


def test_the_regulariser_of_hand_worked_gates():
    gates = {"first": tensor(1, 0.5), "second": tensor(0, 1)}
    used = {"first": tensor(1, 0), "second": tensor(0.5, 0)}
    assert float(newly_used(gates, used)) == pytest.approx((0 + 0.5 + 0 + 1) / (0 + 1 + 0.5 + 1))
    nothing = {name: torch.zeros_like(A) for name, A in used.items()}
    assert float(newly_used(gates, nothing)) == 2.5 / 4  # task 1: the mean gate
    everything = {name: torch.ones_like(A) for name, A in used.items()}
    assert float(newly_used(gates, everything)) == 0


def test_the_compensation_of_a_hand_worked_gradient():
    """10/2 · (cosh 2 + 1)/(cosh 1 + 1) = 5 · 4.7622/2.5431."""
    assert float(compensation(tensor(1), tensor(2), 10.0)) == pytest.approx(9.363, abs=1e-3)


@pytest.mark.parametrize("s", [0.0025, 1.0, 20.0])
def test_compensated_it_is_the_gradient_at_e_times_s_max(s):
    """s_max σ'(e) = s_max e^-e/(1 + e^-e)², unless the gate is fully open."""
    e = torch.tensor([-2.4, -1.0, 0.0, 0.3, 1.0, 2.4], dtype=torch.float64, requires_grad=True)
    gate(s * e).sum().backward()
    scaled = (e.grad * compensation(e.detach(), torch.tensor(s), 400.0)).numpy()
    values = e.detach().numpy()
    slope = 400 * np.exp(-values) / (1 + np.exp(-values)) ** 2
    np.testing.assert_allclose(scaled, np.where(s * values > 17, 0, slope), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gate_comes_to_be_exactly_0_or_1(dtype):
    z = torch.tensor([-2400, -1.0, 0.0, 2.0, 18.0, 2400], dtype=dtype)
    expected = [0.0, 1 / (1 + np.e), 0.5, 1 / (1 + np.exp(-2)), 1.0, 1.0]
    opened = gate(z)
    np.testing.assert_allclose(opened, expected, rtol=1e-6)
    assert opened[0] == 0
    assert opened[-2] == 1
    assert opened.dtype == dtype


def test_far_out_the_exponent_is_clipped():
    assert torch.isfinite(compensation(torch.tensor([-6.0, 6.0]), torch.tensor(400.0), 400.0)).all()


def test_a_whole_step_in_numpy():
    """Task 2 of a network 2-2-2 under plain SGD: gates, gradients, masks, c R and compensation by hand."""
    x, y, lr, s_max, c = np.array([1.0, 2.0]), 1, 0.1, 4.0, 0.5
    W, V = np.array([[1.0, 0.5], [-0.2, 0.4]]), np.array([[0.3, 0.7], [0.6, -0.1]])
    H = np.array([[1.0, -1.0], [0.5, 2.0]])
    e, f = np.array([0.5, -0.3]), np.array([0.2, 0.1])
    A, B = np.array([0.9, 0.1]), np.array([0.2, 0.6])
    s = 1 / s_max + (s_max - 1 / s_max) * 3 / 8  # 3 of 8 examples seen

    a, b = (1 / (1 + np.exp(-s * z)) for z in (e, f))
    z = W @ x
    h = np.maximum(z, 0) * a
    u = V @ h
    k = np.maximum(u, 0) * b
    p = np.exp(H @ k) / np.exp(H @ k).sum()
    free = (1 - A).sum() + (1 - B).sum()
    loss = -np.log(p[y]) + c * ((a * (1 - A)).sum() + (b * (1 - B)).sum()) / free
    dk = H.T @ (p - np.eye(2)[y])
    du = dk * b * (u > 0)
    dh = V.T @ du
    dW = np.outer(dh * a * (z > 0), x) * (1 - A)[:, None]
    dV = np.outer(du, h) * (1 - np.minimum(B[:, None], A[None, :]))

    def de(gradient, e, used):  # the slope s a (1 - a), compensated, is s_max σ'(e)
        return (gradient + c * (1 - used) / free) * s_max / (2 * (np.cosh(e) + 1))

    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False), nn.ReLU())
    learned = TaskModel(network, 2, [2, 2]).double()
    method = HAT(HATSettings(sparsity=c, s_max=s_max))
    method.gates = {0: {"0": torch.tensor(A), "2": torch.tensor(B)}}
    method.task, method.examples = 1, 8
    method._attach(learned)
    weights = [network[0].weight, network[2].weight, learned.heads[1].weight, *embeddings_of(learned)]
    with torch.no_grad():
        for weight, value in zip(weights, (W, V, H, e, f), strict=True):
            weight.copy_(torch.tensor(value))
        embeddings_of(learned).seen += 3
    optimizer = torch.optim.SGD(method.parameter_groups(learned, [1], 0.0), lr=lr)
    assert float(method.step(learned, Batch(torch.tensor(x)[None], torch.tensor([y]), 1), optimizer)) == pytest.approx(
        loss, rel=1e-6
    )
    expected = (
        *(W - lr * dW, V - lr * dV, H - lr * np.outer(p - np.eye(2)[y], k)),
        *(e - lr * de(dh * np.maximum(z, 0), e, A), f - lr * de(dk * np.maximum(u, 0), f, B)),
    )
    for weight, value in zip(weights, expected, strict=True):
        np.testing.assert_allclose(weight.detach().numpy(), value, rtol=1e-6)
    assert float(embeddings_of(learned).seen) == 4


def test_embeddings_stay_within_six():
    learned, method = model(1), HAT()
    method.begin_task(learned, data_of(stream(1), 0))
    with torch.no_grad():
        for e in embeddings_of(learned):
            e.mul_(100)
    batch = data_of(stream(1), 0).batch(stream(1)[0].train, slice(0, 16))
    method.step(learned, batch, torch.optim.SGD(learned.parameters(), lr=0.1))
    assert all(e.abs().max() == 6 for e in embeddings_of(learned))


# Through the loop ---------------------------------------------------------------------------------------------------


class Watched(HAT):
    """Notes s, and the embeddings that each step begins with."""

    name = "watched"

    def __init__(self, settings=None):
        super().__init__(settings)
        self.noted = []

    def step(self, model, batch, optimizer):
        seen = embeddings_of(model).seen
        self.noted.append((float(annealed(seen, self.examples, self.settings.s_max)), copy.deepcopy(model)))
        return super().step(model, batch, optimizer)


@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
def test_s_grows_with_the_examples_seen_in_every_epoch(optimizer):
    method = Watched(HATSettings(s_max=100.0))
    fit(model(2), stream(2), method, training(epochs=2, optimizer=optimizer))  # 48 examples in batches of 16
    expected = [0.01, 0.01 + 99.99 / 3, 0.01 + 99.99 * 2 / 3]
    assert [s for s, _ in method.noted] == pytest.approx(4 * expected, rel=1e-5)


def test_the_first_loss_is_the_smoothed_cross_entropy_of_the_gated_model_and_c_times_the_mean_gate():
    method, tasks = Watched(HATSettings(sparsity=0.4)), stream(1)
    run = fit(model(1), tasks, method, training(epochs=1, batch_size=64, label_smoothing=0.3))
    _, begun = method.noted[0]
    first, second = (torch.sigmoid(e.detach() / 400) for e in embeddings_of(begun))
    x, y = tasks[0].train
    hidden = begun.backbone[:2](x) * first
    logits = begun.heads[0](begun.backbone[2:](hidden) * second)
    expected = F.cross_entropy(logits, y, label_smoothing=0.3) + 0.4 * torch.cat([first, second]).mean()
    assert run.history[0].train_loss == pytest.approx(float(expected.detach()), rel=1e-5)


def test_embeddings_are_drawn_from_a_standard_normal_by_the_seed():
    drawn = []
    for seed in (1, 1, 2):
        method = Watched()
        fit(model(1), stream(1), method, training(epochs=1), seed=seed)
        drawn.append(torch.cat([e.detach() for e in embeddings_of(method.noted[0][1])]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert abs(drawn[0].mean()) < 0.4  # 104 of them: four standard errors
    assert abs(drawn[0].std() - 1) < 0.3


def test_what_is_validated_is_the_cross_entropy_and_the_price_of_units():
    tasks = stream(2, count=48, valid=12)
    method, learned = HAT(HATSettings(sparsity=0.4)), model(2)
    run = fit(learned, tasks, method, training(epochs=3, kept_weights="last"), limits=Limits(tasks=1))
    x, y = tasks[0].valid
    mean = torch.cat(list(method.gates[0].values())).mean()
    expected = F.cross_entropy(learned.eval()(x, 0), y) + 0.4 * mean
    assert run.history[-1].valid_loss == pytest.approx(float(expected.detach()), rel=1e-5)


class Binary(HAT):
    """Every gate is exactly 0 or 1 when its task is learned: σ(± 2400)."""

    name = "binary"

    def end_task(self, model, data):
        with torch.no_grad():
            for e in embeddings_of(model):
                e.copy_(e.sign() * 6)
        return super().end_task(model, data)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_old_outputs_stay_to_the_last_bit_where_gates_are_0_or_1(optimizer):
    tasks = stream(valid=10 if optimizer == "best weights" else 0)
    _, learned, before = learn(
        Binary(HATSettings(sparsity=0.1)), tasks=tasks, settings=training(**OPTIMIZERS[optimizer])
    )
    x = tasks[0].train.x
    assert torch.equal(learned(x, 0), before(x, 0))
    for layer in (0, 2):  # although both layers have learned
        assert (learned.backbone[layer].weight - before.backbone[layer].weight).norm() > 1e-2


@pytest.mark.parametrize("norm", [None, nn.BatchNorm1d, lambda width: nn.BatchNorm1d(width, track_running_stats=False)])
def test_beside_batch_norm_too(norm):
    tasks = stream()
    _, learned, before = learn(Binary(), model(norm=norm), tasks)
    x = tasks[0].train.x
    assert torch.equal(learned.eval()(x, 0), before.eval()(x, 0))
    with torch.no_grad():
        assert not torch.allclose(learned.backbone(x), before.backbone(x), atol=1e-2)


@pytest.mark.parametrize("optimizer", ["momentum", "Adam with decay"])
def test_as_it_is_old_outputs_move_by_what_unfinished_gates_leave(optimizer):
    tasks = stream()
    method = HAT()
    _, learned, before = learn(method, tasks=tasks, settings=training(**OPTIMIZERS[optimizer]))
    gates = method.gates[0]
    assert all(torch.logical_or(gate < 1e-3, gate > 1 - 1e-3).float().mean() > 0.8 for gate in gates.values())
    assert moved(learned, before, tasks) < 0.01
    shares = free_shares(learned.backbone, units_of(learned.backbone), gates)
    for name, parameter in learned.backbone.named_parameters():
        held = (shares[name] == 0).expand_as(parameter)
        assert held.any()
        assert torch.equal(parameter[held], before.backbone.get_parameter(name)[held])


# What is returned ---------------------------------------------------------------------------------------------------


def test_copies_of_the_model_and_its_state_answer_as_the_run_did():
    method = HAT()
    _, learned, _ = learn(method)
    kept = io.BytesIO()
    torch.save(learned.state_dict(), kept)
    kept.seek(0)
    loaded = model(seed=99)
    loaded.load_state_dict(torch.load(kept, weights_only=True))
    for number, task in enumerate(stream()):
        answer = method.predict(learned, task.test.x, number)
        for other in (learned, copy.deepcopy(learned), pickle.loads(pickle.dumps(learned)), loaded):
            assert torch.equal(other(task.test.x, number), answer)
    assert not torch.equal(learned(task.test.x, 0), learned.heads[0](learned.backbone(task.test.x)))


def test_a_stopped_run_with_projected_steps_ends_the_same(tmp_path):
    settings = training(optimizer="adam", lr=0.005, weight_decay=0.1)
    whole, whole_model, _ = learn("hat", settings=settings)

    def interrupt(event):
        if isinstance(event, EpochFinished) and (event.task, event.epoch) == (1, 1):
            raise KeyboardInterrupt

    each = Limits(checkpoint_epochs=1)
    fit(model(), stream(), "hat", settings, folder=tmp_path, listeners=[interrupt], limits=each)
    resumed, resumed_model, _ = learn("hat", settings=settings, folder=tmp_path)
    assert resumed.history == whole.history
    for key, value in whole_model.state_dict().items():
        assert torch.equal(value, resumed_model.state_dict()[key]), key


def test_remembered_is_a_number_a_unit_and_task():
    run, learned, _ = learn("hat")
    assert run.memory == {"gates": 4 * (64 + 40) * 3}
    assert not hasattr(learned, "embeddings")


def test_the_next_run_starts_without_gates():
    _, learned, _ = learn("hat")
    assert learned.gates.places
    learn("finetune", learned, settings=training(epochs=1))
    assert not learned.gates.places


def test_permuted_digits_are_learned_and_not_forgotten():
    tasks = load_stream("permuted-digits", seed=0).first(2)
    run = fit(build_model(tasks, seed=0), tasks, "hat", TrainingSettings(epochs=15), seed=0)
    assert run.accuracy[1].min() > 80
    assert abs(run.backward_transfer) < 0.5


def test_the_published_settings():
    settings = configure("split-cifar100", "hat", "published")
    training = settings.training
    assert (training.lr, training.momentum, training.lr_factor, training.lr_patience) == (0.05, 0.0, 1 / 3, 5)
    assert (training.lr_minimum, training.epochs, training.batch_size) == (1e-4, 200, 64)
    assert make_method("hat", settings.options).settings == HATSettings(sparsity=0.75, s_max=400.0)


@pytest.mark.parametrize(
    ("settings", "message"), [({"sparsity": -0.1}, "sparsity must be at least 0"), ({"s_max": 0.5}, "s_max must be")]
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(SettingsError, match=message):
        HATSettings(**settings)
