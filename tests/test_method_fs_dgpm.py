"""FS-DGPM: one step against numpy, the importances' rule, the reservoir, and bases made anew."""

import numpy as np
import pytest
import torch
from small_tasks import CLASSES, learn, model, moved_features, stream, strict, training
from torch import nn

from nesskit import Examples, Limits, Task, TaskModel, fit
from nesskit.errors import NesskitError
from nesskit.methods import FSDGPM
from nesskit.methods.fs_dgpm import halves, next_importance
from nesskit.methods.remembered import Replay, reservoir
from nesskit.runs.events import EpochFinished
from nesskit.settings import FSDGPMSettings
from nesskit.streams.base import Normalisation
from nesskit.streams.batches import Batch, TaskData

RNG = np.random.default_rng(0)

# One step, of losses in numpy, whose derivatives are taken by differences ---------------------------------------------

D, WIDTH, RATE, LR = 4, 3, 0.4, 0.1
M = np.linalg.qr(RNG.standard_normal((D, 2)))[0]
LAMBDA = np.array([0.9, 0.6])
W = RNG.standard_normal((WIDTH, D))
HEADS = [RNG.standard_normal((2, WIDTH)), RNG.standard_normal((CLASSES, WIDTH))]
X, Y = RNG.standard_normal((6, D)), np.array([0, 1, 2, 2, 1, 0])  # of task 2
OLD_X, OLD_Y, OLD_TASK = RNG.standard_normal((5, D)), np.array([0, 1, 1, 0, 2]), np.array([0, 0, 0, 0, 1])


def log_softmax(z):
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def losses(w, heads, x, y, task):
    """The cross-entropy of each example, by the head of its task."""
    return np.array([-log_softmax(x[[i]] @ w.T @ heads[k].T)[0, y[i]] for i, k in enumerate(task)])


def climbed(w, head, x, y, importance, clip):
    """w' and the head of one climb, its gradients in closed form."""
    z = x @ w.T
    residual = (np.exp(log_softmax(z @ head.T)) - np.eye(CLASSES)[y]) / len(y)
    along = (residual @ head).T @ x @ M * importance @ M.T
    return w + RATE * np.clip(along, -clip, clip), head + RATE * np.clip(residual.T @ z, -clip, clip)


def flattened(values, clip):
    """L' as a function of all weights and importances in one vector."""
    parts = np.split(values, np.cumsum([W.size, HEADS[0].size, HEADS[1].size]))
    w, first, second = (part.reshape(like.shape) for part, like in zip(parts, (W, *HEADS), strict=False))
    x, y, task = np.vstack([X, OLD_X]), np.concatenate([Y, OLD_Y]), np.concatenate([np.ones(6, int), OLD_TASK])
    found = []
    for half in (slice(3), slice(3, 6)):
        w, second = climbed(w, second, X[half], Y[half], parts[3], clip)
        found.append(losses(w, [first, second], x, y, task).mean())
    return np.mean(found)


def numerical_gradient(values, clip, step=1e-6):
    ends = [flattened(values + sign * step * unit, clip) for unit in np.eye(len(values)) for sign in (1, -1)]
    return (np.array(ends[::2]) - ends[1::2]) / (2 * step)


def begun(clip, **settings):
    """The method in its second task, the learning rate half of what it began with, and the model, in float64."""
    learned = TaskModel(nn.Sequential(nn.Linear(D, WIDTH, bias=False)), WIDTH, [2, CLASSES]).double()
    with torch.no_grad():
        learned.backbone[0].weight.copy_(torch.tensor(W))
        for head, values in zip(learned.heads, HEADS, strict=True):
            head.weight.copy_(torch.tensor(values))
    method = FSDGPM(FSDGPMSettings(ascent_rate=2 * RATE, importance_rate=8.0, clip=clip, **settings))
    method.begin_run(training(lr=2 * LR))
    method.tasks_learned = 1
    method.bases, method.importances = {"0": torch.tensor(M)}, {"0": torch.tensor(LAMBDA)}
    method.replay = Replay(torch.tensor(OLD_X), torch.tensor(OLD_Y), torch.tensor(OLD_TASK))
    return method, learned


@pytest.mark.parametrize("importance", ["learned", "fixed"])
@pytest.mark.parametrize("clip", [100.0, 0.1])
def test_a_step_is_that_of_numpy(clip, importance):
    method, learned = begun(clip, importance=importance)
    optimizer = torch.optim.SGD(method.parameter_groups(learned, [1], 0.0), lr=LR)
    loss = method.step(learned, Batch(torch.tensor(X), torch.tensor(Y), 1), optimizer)

    start = np.concatenate([W.ravel(), HEADS[0].ravel(), HEADS[1].ravel(), LAMBDA])
    gradient = numerical_gradient(start, clip)
    weights, by_importance = gradient[:-2], gradient[-2:]
    weights = weights * min(1, clip / np.linalg.norm(weights))
    now = 1 / (1 + np.exp(-10 * (LAMBDA - (4.0 * by_importance if importance == "learned" else 0))))
    g, first, second = np.split(weights, np.cumsum([W.size, HEADS[0].size]))
    g = g.reshape(W.shape)

    assert float(loss) == pytest.approx(flattened(start, clip))
    np.testing.assert_allclose(method.importances["0"], now, atol=1e-7)
    np.testing.assert_allclose(learned.backbone[0].weight.detach(), W - LR * (g - g @ M * now @ M.T), atol=1e-7)
    for head, before, change in zip(learned.heads, HEADS, (first, second), strict=True):
        np.testing.assert_allclose(head.weight.detach().ravel(), before.ravel() - LR * change, atol=1e-7)
        assert np.abs(change).max() > 1e-3  # the old head learns from the memory


def test_the_example_tells_what_it_should():
    """The climbs matter, they are clipped at 0.1, and importances move by more than the sigmoid alone moves them."""
    start = np.concatenate([W.ravel(), HEADS[0].ravel(), HEADS[1].ravel(), LAMBDA])
    loss, clipped = flattened(start, 100.0), flattened(start, 0.1)
    assert abs(loss - clipped) > 1e-3
    plain = losses(W, HEADS, np.vstack([X, OLD_X]), np.concatenate([Y, OLD_Y]), [1] * 6 + list(OLD_TASK)).mean()
    assert abs(loss - plain) > 1e-2
    assert np.abs(numerical_gradient(start, 100.0)[-2:]).max() > 1e-2


def test_the_importances_rule_by_hand():
    """λ = 1 stays near 1 where nothing pulls; a gradient of 1 at a rate of 1 takes it to σ(0)."""
    value = torch.tensor([1.0, 1.0, 0.5])
    assert next_importance(value, torch.tensor([0.0, 1.0, 0.5]), 1.0).tolist() == pytest.approx([0.9999546, 0.5, 0.5])
    for _ in range(3):
        value = next_importance(value, None, 1.0)
    assert value[0].item() == pytest.approx(0.99995, abs=1e-5)


def test_a_batch_is_halved_but_no_example_is_left_alone():
    def sizes(count):
        return [len(half.y) for half in halves(Batch(torch.zeros(count, 2), torch.zeros(count), 0))]

    assert [sizes(count) for count in (1, 2, 3, 4, 5, 64)] == [[1], [2], [3], [2, 2], [3, 2], [32, 32]]


# The memory ----------------------------------------------------------------------------------------------------------


def numbered(task, count):
    """A task whose example i of all has the input i."""
    x = torch.arange(task * count, (task + 1) * count).float()[:, None]
    part = Examples(x, torch.full((count,), task % 2))
    return TaskData(Task(f"{task}", ("a", "b"), part, part, part), task, torch.device("cpu"))


def filled(seed, capacity, tasks=3, count=6):
    torch.manual_seed(seed)
    memory, seen = [], 0
    for task in range(tasks):
        memory = reservoir(memory, seen, numbered(task, count), capacity)
        seen += count
    return memory


def test_every_example_is_held_with_the_same_probability():
    """5 of 18 in each of 1000 draws: within five standard deviations of 5/18 each, and so is every pair."""
    draws, n, k = 1000, 18, 5
    held = np.zeros((draws, n))
    for seed in range(draws):
        held[seed, torch.cat([old.x for old in filled(seed, k)]).long().ravel().numpy()] = 1
    assert (held.sum(axis=1) == k).all()
    single, pair = k / n, k * (k - 1) / (n * (n - 1))
    np.testing.assert_allclose(held.mean(axis=0), single, atol=5 * (single * (1 - single) / draws) ** 0.5)
    together = (held.T @ held / draws)[~np.eye(n, dtype=bool)]
    np.testing.assert_allclose(together, pair, atol=5 * (pair * (1 - pair) / draws) ** 0.5)


def test_it_depends_on_the_seed_alone():
    one, same, other = (torch.cat([old.x for old in filled(seed, 7)]) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_what_fits_is_kept_whole_and_labels_stay_with_their_inputs():
    memory = filled(0, 100)
    assert sorted(torch.cat([old.x for old in memory]).ravel().tolist()) == list(range(18))
    for task, old in enumerate(filled(1, 8)):
        assert (old.x.ravel() // 6 == task).all()
        assert (old.y == task % 2).all()


def test_remembered_examples_are_normalised_as_their_tasks_are():
    plain, scaled = numbered(0, 3), numbered(1, 3)
    scaled.normalisation = Normalisation((1.0,), (2.0,))
    replay = Replay.of(reservoir(reservoir([], 0, plain, 6), 3, scaled, 6))
    assert sorted(replay.x[:3].ravel().tolist()) == [0, 1, 2]
    assert sorted(replay.x[3:].ravel().tolist()) == [1, 1.5, 2]
    assert replay.task.tolist() == [0, 0, 0, 1, 1, 1]
    drawn = replay.draw(4)
    assert len(drawn.y) == len(set(zip(drawn.x.ravel().tolist(), drawn.task.tolist(), strict=True))) == 4


# Tasks ---------------------------------------------------------------------------------------------------------------


def test_bases_are_made_anew_from_the_whole_memory():
    """Those of a plain SVD of what is remembered of both tasks, at the network's weights of today."""
    method = FSDGPM(FSDGPMSettings(memory=30, samples=30, threshold=0.9, increment=0.05))
    _, learned, _ = learn(method, model(2), stream(2))
    x = torch.cat([old.x for old in method.memory])
    assert len(x) == 30
    hidden = learned.backbone[1](learned.backbone[0](x))
    for name, inputs in (("0", x), ("2", hidden)):
        left, sizes, _ = np.linalg.svd(inputs.detach().double().numpy().T)
        k = int((np.cumsum(sizes**2) < 0.95 * (sizes**2).sum()).sum()) + 1
        basis = method.bases[name].double().numpy()
        np.testing.assert_allclose(basis @ basis.T, left[:, :k] @ left[:, :k].T, atol=1e-4)
        assert method.importances[name].tolist() == [1] * k


@pytest.mark.parametrize("importance", ["learned", "fixed"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"weight_decay": 0.1}, {"optimizer": "adam", "lr": 0.005}, {"optimizer": "sam"}, {"precision": "bfloat16"}],
    ids=str,
)
def test_old_features_stay_where_every_direction_is_protected(changes, importance):
    """Up to what λ = 0.99995 lets pass; old heads learn on, so that it is features that stay."""
    method = strict("fs-dgpm")
    method.settings = FSDGPMSettings(threshold=1 - 1e-9, increment=0.0, samples=1000, importance=importance)
    tasks = stream()
    _, learned, before = learn(method, tasks=tasks, settings=training(**changes))
    assert moved_features(learned, before, tasks) < 2e-3
    assert (learned.backbone[0].weight - before.backbone[0].weight).norm() > 1e-2
    for name, value in method.importances.items():
        assert value.tolist() == [1] * method.bases[name].shape[1]  # after the last task


def test_fine_tuning_moves_them():
    tasks = stream()
    _, learned, before = learn("finetune", tasks=tasks, settings=training())
    assert moved_features(learned, before, tasks) > 0.1


TOKEN = 8


class Attention(nn.Module):
    """Two tokens, whose features are averaged; torch's fast kernel for it has no second derivatives."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(TOKEN, TOKEN) for _ in range(3))

    def forward(self, x):
        x = x.view(len(x), 1, -1, TOKEN)
        return nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x)).mean((1, 2))


def test_attention_is_trained():
    run, _, _ = learn("fs-dgpm", TaskModel(Attention(), TOKEN, [CLASSES] * 2), stream(2))
    losses = [epoch.train_loss for epoch in run.history if epoch.task == 1]
    assert losses[-1] < losses[0]


def test_stopped_after_every_epoch_a_run_with_a_falling_rate_ends_the_same(tmp_path):
    tasks, settings = stream(2, valid=12), training(epochs=6, lr_patience=1, lr=0.2)
    method = FSDGPMSettings(memory=40)
    whole_model = model(2)
    whole = fit(whole_model, tasks, FSDGPM(method), settings)
    assert len({epoch.lr for epoch in whole.history}) > 1

    def interrupt(event):
        if isinstance(event, EpochFinished):
            raise KeyboardInterrupt

    each = Limits(checkpoint_epochs=1)
    for _ in range(len(whole.history)):
        resumed_model = model(2)
        run = fit(resumed_model, tasks, FSDGPM(method), settings, folder=tmp_path, listeners=[interrupt], limits=each)
    run = fit(resumed_model, tasks, FSDGPM(method), settings, folder=tmp_path)
    assert run.finished
    assert run.history == whole.history
    for key, tensor in whole_model.state_dict().items():
        assert torch.equal(tensor, resumed_model.state_dict()[key]), key


@pytest.mark.parametrize(
    "settings",
    [{"memory": 0}, {"ascent_rate": -0.1}, {"importance_rate": -1.0}, {"clip": 0.0}, {"importance": "free"}],
)
def test_settings_that_make_no_sense(settings):
    with pytest.raises(NesskitError, match=next(iter(settings))):
        FSDGPMSettings(**settings)
