"""Every method takes a user's model as it is: of any precision, and whatever number of examples is left over."""

import pytest
import torch
from small_tasks import EVERY, learn, model, stream, training
from torch import nn


@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "sam"])
@pytest.mark.parametrize("name", EVERY)
def test_a_model_of_any_precision_is_trained(name, optimizer, precision):
    learned = model(norm=nn.BatchNorm1d).to(precision)
    lr = 0.005 if optimizer == "adam" else 0.05
    run, _, _ = learn(name, learned, stream(2), settings=training(epochs=1, optimizer=optimizer, lr=lr))
    assert run.finished
    assert {parameter.dtype for parameter in learned.parameters()} == {precision}


@pytest.mark.parametrize("name", EVERY)
def test_in_float64_it_learns_what_it_learns_in_float32(name):
    runs = [learn(name, model().to(dtype), settings=training(epochs=2))[0] for dtype in (torch.float32, torch.float64)]
    losses = [[epoch.train_loss for epoch in run.history] for run in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("name", EVERY)
def test_one_example_may_be_left_over_beside_statistics_of_the_batch(name):
    learned = model(2, norm=lambda width: nn.BatchNorm1d(width, track_running_stats=False))
    run, _, _ = learn(name, learned, stream(2, count=257), settings=training(epochs=1))  # 257 = 256 + 1 = 16 · 16 + 1
    assert run.finished
