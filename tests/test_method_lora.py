"""Frozen backbones, LoRA and O-LoRA, against numpy and autograd, on any kind of layer."""

import copy
import itertools

import numpy as np
import pytest
import torch
from small_tasks import CLASSES, WIDTH, learn, model, stream, training
from torch import nn

from nesskit import Encoder, Examples, Limits, Task, TaskModel, TaskStream, fit
from nesskit.adaptation.low_rank import attach, fold, initial_factors, low_rank_updates
from nesskit.errors import SettingsError
from nesskit.methods import make_method
from nesskit.methods.o_lora import overlap
from nesskit.runs.events import EpochFinished, TaskFinished
from nesskit.settings import METHOD_SETTINGS, LoRASettings, OLoRASettings

RANK, ALPHA = 3, 12.0
THREE = ["frozen", "lora", "o-lora"]


class TransformersLike(nn.Module):
    """Weights (d, d_out), by the names that kinds of layers go by."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


TransformersLike.__name__ = "Conv1D"

# A layer, an input, and the weight (d_out, d) in the shape that the layer holds it.
LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (4, 7), lambda m: m),
    "convolution": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5), lambda m: m.reshape(6, 2, 3, 3)),
    "Conv1D": (lambda: TransformersLike(5, 7), (4, 7), lambda m: m.T),
}


def make(name, **options):
    return make_method(name, METHOD_SETTINGS[name](**options))


def backbone_of(learned):
    return {name: tensor.clone() for name, tensor in learned.backbone.state_dict().items()}


def during(method, watch):
    """A listener that calls ``watch(method, event)`` at the end of every epoch and task."""

    def listen(event):
        if isinstance(event, EpochFinished | TaskFinished):
            watch(method, event)

    return listen


# ---------------------------------------------------------------------------------------------- the update itself


@pytest.mark.parametrize("kind", LAYERS)
def test_the_update_is_the_product_of_its_factors_scaled(kind):
    build, shape, shaped = LAYERS[kind]
    layer, x = build().double(), torch.randn(shape, dtype=torch.float64)
    plain = copy.deepcopy(layer)
    before, keys = layer.weight.detach().numpy().copy(), list(layer.state_dict())
    A, B = initial_factors(layer, RANK)
    B = torch.randn_like(B)
    attach(layer, (A, B), ALPHA / RANK)
    expected = before + shaped(ALPHA / RANK * B.numpy() @ A.numpy())
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected, rtol=1e-12)
    with torch.no_grad():
        plain.weight.copy_(torch.from_numpy(expected))
    torch.testing.assert_close(layer(x), plain(x))
    (update,) = low_rank_updates(layer).values()
    layer(x).square().sum().backward()
    assert update.A.grad.abs().sum() > 0
    assert update.B.grad.abs().sum() > 0
    fold(layer)
    assert type(layer) is type(plain)
    assert list(layer.state_dict()) == keys
    assert isinstance(layer.weight, nn.Parameter)
    np.testing.assert_allclose(layer.weight.detach().numpy(), expected, rtol=1e-12)


def test_the_update_begins_with_nothing_and_random_directions():
    layer, x = nn.Linear(300, 20), torch.randn(5, 300)
    expected = layer(x)
    A, B = initial_factors(layer, 8)
    assert (A.shape, B.shape) == ((8, 300), (20, 8))
    attach(layer, (A, B), 2.0)
    assert torch.equal(layer(x), expected)
    bound = 1 / np.sqrt(300)  # of Kaiming's uniform distribution with a = √5
    assert float(A.abs().max()) == pytest.approx(bound, rel=0.01)
    assert float(A.std()) == pytest.approx(bound / np.sqrt(3), rel=0.1)
    assert [factor.shape for factor in initial_factors(nn.Linear(2, 20), 8)] == [(2, 2), (20, 2)]
    assert initial_factors(nn.Linear(4, 4).bfloat16(), 2)[0].dtype == torch.float32


def test_a_copy_computes_with_its_own_update():
    network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    attach(network[0], (torch.ones(1, 4), torch.ones(3, 1)), 1.0)
    other, x = copy.deepcopy(network), torch.randn(2, 4)
    expected = network(x)
    with torch.no_grad():
        low_rank_updates(network)["0"].B.fill_(9.0)
    assert torch.equal(other(x), expected)
    fold(other)
    torch.testing.assert_close(other(x), expected)
    assert list(low_rank_updates(network)) == ["0"]


def test_attention_reads_the_updated_weight():
    attention, x = nn.MultiheadAttention(8, 2, batch_first=True).double(), torch.randn(3, 5, 8, dtype=torch.float64)
    A, B = torch.randn(2, 8, dtype=torch.float64), torch.randn(24, 2, dtype=torch.float64)
    plain = copy.deepcopy(attention)
    with torch.no_grad():
        plain.in_proj_weight += 0.5 * B @ A
    attach(attention, (A, B), 0.5)
    for mode in (True, False):
        torch.testing.assert_close(attention.train(mode)(x, x, x)[0], plain.train(mode)(x, x, x)[0])


# ------------------------------------------------------------------------------------------------- what stands still


@pytest.mark.parametrize("name", THREE)
def test_old_heads_and_what_the_method_does_not_train_stand_still(name):
    learned = model(norm=nn.BatchNorm1d)
    at_first = backbone_of(learned)
    _, learned, after_first = learn(make(name), learned)
    now = backbone_of(learned)
    moved = {key for key, tensor in at_first.items() if not torch.equal(tensor, now[key])}
    assert moved == (set() if name == "frozen" else {"0.weight", "3.weight"})
    assert torch.equal(learned.heads[0].weight, after_first.heads[0].weight)


def test_frozen_forgets_nothing():
    run = learn(make("frozen"), settings=training(epochs=8))[0]
    tested = run.accuracy[np.tril_indices(3)]
    assert np.isfinite(tested).all()
    assert [run.accuracy[t, 0] for t in range(3)] == [run.accuracy[0, 0]] * 3
    assert run.memory == {}
    # A head is fitted to features of the network as it was: logistic regression, whose loss falls.
    losses = [epoch.train_loss for epoch in run.history if epoch.task == 0]
    assert losses[-1] < losses[0]


def test_lora_trains_one_update_beside_weights_that_stand():
    method, learned = make("lora", rank=RANK, alpha=ALPHA), model()
    before, seen = backbone_of(learned), []

    def watch(method, event):
        updates = low_rank_updates(learned.backbone)
        for name, layer in {"0": learned.backbone[0], "2": learned.backbone[2]}.items():
            assert torch.equal(layer.parametrizations.weight.original, before[f"{name}.weight"])
            assert not layer.bias.requires_grad
        if isinstance(event, EpochFinished):
            seen.append([factor.clone() for update in updates.values() for factor in update.factors])

    run = fit(learned, stream(), method, training(), listeners=[during(method, watch)])
    assert len(seen) == 12
    for earlier, later in itertools.pairwise(seen):
        assert all(not torch.equal(a, b) for a, b in zip(earlier, later, strict=True))  # A and B learn, in every task
    for name, (A, B) in method.factors.items():
        expected = before[f"{name}.weight"].double().numpy() + ALPHA / RANK * (B.double().numpy() @ A.double().numpy())
        np.testing.assert_allclose(learned.backbone.get_submodule(name).weight.detach(), expected, atol=1e-5)
    assert not low_rank_updates(learned)
    numbers = RANK * (WIDTH + 64) + RANK * (64 + 40)
    assert run.memory == {"low-rank updates": 4 * numbers}


def test_after_the_run_the_model_answers_as_the_method_did():
    method, learned, tasks = make("lora"), model(), stream()
    answers = []

    def watch(method, event):
        if isinstance(event, TaskFinished):
            with torch.no_grad():
                answers.append(method.predict(learned.eval(), tasks[0].test.x, 0))

    fit(learned, tasks, method, training(), listeners=[during(method, watch)])
    torch.testing.assert_close(learned.eval()(tasks[0].test.x, 0), answers[-1], atol=1e-5, rtol=1e-4)


# ----------------------------------------------------------------------------------------------------------- O-LoRA


def test_the_penalty_is_the_sum_over_earlier_tasks_of_squared_products():
    rng = np.random.default_rng(0)
    earlier, new = [rng.normal(size=(r, 9)) for r in (2, 3)], rng.normal(size=(4, 9))
    value = overlap(torch.from_numpy(np.concatenate(earlier)), torch.from_numpy(new))
    by_hand = sum(float(row @ other) ** 2 for A in earlier for row in A for other in new)
    assert float(value) == pytest.approx(by_hand)
    assert float(overlap(torch.eye(4)[:2], torch.eye(4)[2:])) == 0


def test_the_loss_has_the_penalty_and_its_gradient():
    strength = 0.7
    method, learned, tasks = make("o-lora", rank=RANK, strength=strength), model(), stream()
    checked = []

    def watch(method, event):
        if not isinstance(event, EpochFinished) or event.task == 0:
            return
        learned.eval()
        x, y = tasks[event.task].train
        batch = type("Batch", (), {"x": x, "y": y, "task": event.task})
        plain = nn.functional.cross_entropy(learned(x, event.task), y)
        update = low_rank_updates(learned.backbone)["0"]
        ours, theirs = (torch.autograd.grad(loss, update.A)[0] for loss in (method.loss(learned, batch), plain))
        old, A = method.old["0"], update.A.detach()
        np.testing.assert_allclose(ours - theirs, strength * 2 * (A.numpy() @ old.T.numpy()) @ old.numpy(), atol=1e-5)
        by_layer = [method.old[name] @ u.A.detach().T for name, u in low_rank_updates(learned.backbone).items()]
        expected = float(plain.detach()) + strength * sum(float((product.numpy() ** 2).sum()) for product in by_layer)
        assert float(method.loss(learned, batch).detach()) == pytest.approx(expected, rel=1e-5)
        checked.append(len(old))

    fit(learned, tasks, method, training(), listeners=[during(method, watch)])
    assert checked == [RANK] * 4 + [2 * RANK] * 4


def test_every_task_adds_a_pair_and_leaves_the_earlier_ones():
    method, learned = make("o-lora", rank=RANK, alpha=ALPHA), model()
    start, pairs, bases = backbone_of(learned), [], []

    def watch(method, event):
        if isinstance(event, EpochFinished) and event.epoch == 3:
            pairs.append({name: update.factors for name, update in low_rank_updates(learned.backbone).items()})
            bases.append(learned.backbone[0].parametrizations.weight.original.clone())
        if isinstance(event, TaskFinished):
            assert not low_rank_updates(learned.backbone)
            for name, old in method.old.items():
                assert torch.equal(old, torch.cat([pair[name][0] for pair in pairs]))

    fit(learned, stream(), method, training(), listeners=[during(method, watch)])
    assert len(pairs) == 3
    for name in ("0", "2"):
        products = [B.double().numpy() @ A.double().numpy() for A, B in (pair[name] for pair in pairs)]
        expected = start[f"{name}.weight"].double().numpy() + ALPHA / RANK * sum(products)
        np.testing.assert_allclose(learned.backbone.get_submodule(name).weight.detach(), expected, atol=1e-5)
    assert torch.equal(bases[0], start["0.weight"])
    assert not torch.equal(bases[1], bases[0])


def test_a_strong_penalty_keeps_the_directions_of_tasks_apart():
    def overlaps(strength):
        method = make("o-lora", rank=RANK, strength=strength)
        learn(method, settings=training(epochs=10, lr=0.02))
        return sum(float(overlap(A[:RANK], A[RANK : 2 * RANK])) for A in method.old.values())

    assert overlaps(2.0) < 0.1 * overlaps(0.0)


# ---------------------------------------------------------------------------------------------- stopped, and wrong


@pytest.mark.parametrize("name", THREE)
@pytest.mark.parametrize("stop", [(1, 1), (1, None)], ids=["in a task", "between tasks"])
def test_a_run_that_was_stopped_ends_bit_by_bit_the_same(name, stop, tmp_path):
    whole, expected, _ = learn(make(name))

    def interrupt(event):
        if isinstance(event, EpochFinished) and (event.task, event.epoch) == stop:
            raise KeyboardInterrupt

    options = {"folder": tmp_path / "run", "limits": Limits(checkpoint_epochs=1)}
    first = {"limits": Limits(tasks=2, checkpoint_epochs=1)} if stop[1] is None else {"listeners": [interrupt]}
    method, stopped = make(name), model()
    run = fit(stopped, stream(), method, training(), **{**options, **first})
    assert run.status == "stopped"
    assert not low_rank_updates(stopped)
    assert all(p.requires_grad for p in stopped.parameters())
    again = model()
    run = fit(again, stream(), method, training(), **options)
    assert run.finished
    assert run.accuracy.tobytes() == whole.accuracy.tobytes()
    for key, tensor in expected.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key


@pytest.mark.parametrize("name", ["lora", "o-lora"])
def test_layers_that_the_user_froze_get_no_update(name):
    learned = model()
    learned.backbone[0].weight.requires_grad_(False)
    before = learned.backbone[0].weight.clone()
    method = make(name)
    learn(method, learned)
    assert torch.equal(learned.backbone[0].weight, before)
    assert not learned.backbone[0].weight.requires_grad
    assert list(method.factors or method.old) == ["2"]


def test_layers_of_transformers_learn_updates():
    transformers = pytest.importorskip("transformers", reason="pip install 'nesskit[text]'")
    size = {"vocab_size": 60, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    encoder = Encoder(transformers.GPT2Model(transformers.GPT2Config(**size)), "last", "attention")
    ids = torch.randint(0, 60, (24, 6), generator=torch.Generator().manual_seed(0))
    examples = Examples({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, ids[:, -1] % CLASSES)
    tasks = TaskStream("ids", [Task(str(t), ("a", "b", "c"), examples, examples, examples) for t in range(2)])
    before = {name: p.clone() for name, p in encoder.named_parameters()}
    learn(make("lora"), TaskModel(encoder, 16, [CLASSES] * 2), tasks)
    moved = {name for name, p in encoder.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {f"{name}.weight" for name in encoder.layers}
    assert len(moved) == 2


@pytest.mark.parametrize(
    ("make_settings", "message"),
    [
        (lambda: LoRASettings(rank=0), "rank must be at least 1"),
        (lambda: LoRASettings(alpha=0.0), "alpha must be above 0"),
        (lambda: OLoRASettings(strength=-1.0), "strength must be at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_named(make_settings, message):
    with pytest.raises(SettingsError, match=message):
        make_settings()
