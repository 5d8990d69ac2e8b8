"""A-GEM: its constraint holds, nothing changes where it held before, and the reference is the memory's gradient."""

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from nesskit import build_model, load_stream
from nesskit.methods.agem import AGEM, project
from nesskit.settings import AGEMSettings, NetworkSettings
from nesskit.streams.batches import TaskData


def two_learned(**settings):
    """A method that remembers two tasks, its model and the third task's data."""
    stream = load_stream("split-digits", seed=0)
    model = build_model(stream, NetworkSettings(widths=(24, 16)), seed=0)
    data = [TaskData(stream[task], task, torch.device("cpu")) for task in range(3)]
    method = AGEM(AGEMSettings(**settings))
    torch.manual_seed(0)
    for old in data[:2]:
        method.end_task(model, old)
    return method, model, data


def flat(tensors):
    return torch.cat([t.flatten() for t in tensors])


def test_a_step_against_the_memory_is_projected_by_hand():
    """g = (1, -2), g_ref = (0, 1): gᵀg_ref = -2 < 0, so g̃ = g + 2 g_ref = (1, 0)."""
    assert project([torch.tensor([1.0, -2.0])], [torch.tensor([0.0, 1.0])])[0].tolist() == [1.0, 0.0]


def test_a_step_that_does_no_harm_is_left_as_it_is():
    g = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])]
    assert flat(project(g, [torch.tensor([0.0, 1.0]), torch.tensor([[-0.5]])])).tolist() == [1.0, 2.0, 3.0]
    assert flat(project(g, [torch.zeros(2), torch.zeros(1, 1)])).tolist() == [1.0, 2.0, 3.0]


def gradients(flipped):
    """(g, g_ref, g̃) on a real network at its start; with flipped labels g points about the other way."""
    method, model, data = two_learned(samples=40, reference_batch=1000)  # all of the memory: one g_ref
    parameters = list(model.backbone.parameters())
    reference = flat(torch.autograd.grad(method.reference_loss(model), parameters))
    batch = data[2].batch(data[2].train, slice(64))
    method.loss(model, batch._replace(y=1 - batch.y) if flipped else batch).backward()
    head = model.heads[2].weight.grad.clone()
    before = flat(p.grad for p in parameters)
    method.adjust_gradients(model)
    assert torch.equal(model.heads[2].weight.grad, head)  # heads are none of its business
    assert model.heads[0].weight.grad is None
    return before, reference, flat(p.grad for p in parameters)


def test_the_projected_gradient_satisfies_its_constraint():
    g, reference, projected = next(case for case in map(gradients, (False, True)) if case[0] @ case[1] < 0)
    assert abs(float(projected @ reference)) < 1e-5 * float(g.norm() * reference.norm())
    torch.testing.assert_close(projected, g - (g @ reference) / (reference @ reference) * reference)
    assert float(projected @ g) > 0  # still downhill for the new task


def test_a_gradient_that_satisfies_it_already_is_not_touched():
    g, _, projected = next(case for case in map(gradients, (False, True)) if case[0] @ case[1] >= 0)
    assert torch.equal(projected, g)


def test_the_reference_is_the_mean_loss_of_the_whole_memory():
    method, model, _ = two_learned(samples=40, reference_batch=1000)
    total = sum(
        float(F.cross_entropy(model(x.float(), task), y, reduction="sum").detach())
        for task, (x, y, _) in enumerate(method.memory)
    )
    assert float(method.reference_loss(model).detach()) == pytest.approx(total / 80, rel=1e-5)


def test_a_reference_batch_is_drawn_from_all_old_tasks():
    method, model, _ = two_learned(samples=40, reference_batch=30)
    torch.manual_seed(0)
    losses = [float(method.reference_loss(model).detach()) for _ in range(200)]
    method.settings = AGEMSettings(samples=40, reference_batch=80)
    assert sum(losses) / 200 == pytest.approx(float(method.reference_loss(model).detach()), rel=0.02)
    assert len(set(losses)) > 100


def test_it_keeps_as_many_examples_as_asked():
    method, _, data = two_learned(samples=7)
    assert [len(y) for _, y, _ in method.memory] == [7, 7]
    for (x, y, _), task in zip(method.memory, data, strict=False):
        for row, label in zip(x, y, strict=True):
            assert (((task.train.x == row).all(dim=1)) & (task.train.y == label)).any()
