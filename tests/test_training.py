"""The loop and the methods: what is learned, kept, stopped, resumed and refused."""

import dataclasses
import itertools
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from nesskit import (
    NESS,
    Examples,
    FixedRank,
    FrobeniusThreshold,
    InterferenceBudget,
    Limits,
    Method,
    NESSSettings,
    NetworkSettings,
    NuclearThreshold,
    SoftFilter,
    Task,
    TaskModel,
    TaskStream,
    TrainingSettings,
    build_model,
    fit,
    load_run,
    load_stream,
)
from nesskit.errors import RunFolderError, SpectrumError, TrainingError
from nesskit.methods.ness import NullSpaceWarning, cap_spectral_norm_
from nesskit.runs.events import EpochFinished, RunStarted, TaskFinished
from nesskit.streams.batches import TaskData
from nesskit.training.schedule import Schedule

SHORT = TrainingSettings(epochs=2)
SMALL = NetworkSettings(widths=(32, 24))


@pytest.fixture(scope="module")
def stream():
    return load_stream("permuted-digits", seed=0, validation_share=0.1).first(3)


def learn(stream, method="ness", settings=SHORT, network=SMALL, **options):
    return fit(build_model(stream, network), stream, method, settings, **options)


def ness(**settings):
    return NESS(NESSSettings(**settings))


class TestSchedule:
    """Patience 2, factor 1/2, minimum 0.2, by hand."""

    settings = TrainingSettings(lr=1.0, lr_patience=2, lr_factor=0.5, lr_minimum=0.2)

    def test_follows_a_hand_worked_example(self):
        schedule, rates = Schedule(lr=1.0), []
        for loss in (3.0, 2.0, 2.0, 2.5, 1.0, 1.5, 1.0, 1.1, 1.2):
            schedule = schedule.after(loss, self.settings)
            rates.append(schedule.lr)
        # Equal losses do not count as better; two epochs without a better one halve the rate.
        assert rates == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.125]
        assert schedule.over

    def test_without_patience_the_rate_never_falls(self):
        schedule = Schedule(lr=1.0)
        for _ in range(50):
            schedule = schedule.after(1.0, TrainingSettings())
        assert schedule.lr == 1
        assert not schedule.over


@pytest.mark.parametrize("fresh", [False, True])
def test_momentum_is_forgotten_when_the_rate_falls_where_a_method_says_so(fresh, stream):
    class Noting(Method):
        name, fresh_momentum, seen = "noting", fresh, []

        def step(self, model, batch, optimizer):
            moving = any(bool(state["momentum_buffer"].any()) for state in optimizer.state.values())
            self.seen.append((optimizer.param_groups[0]["lr"], moving))
            return super().step(model, batch, optimizer)

    learn(stream.first(1), Noting(), TrainingSettings(epochs=12, lr=0.5, lr_patience=1))
    pairs = list(itertools.pairwise(Noting.seen))
    fallen = [moving for (before, _), (now, moving) in pairs if now < before]
    assert fallen
    assert all(moving is not fresh for moving in fallen)
    assert all(moving for (before, _), (now, moving) in pairs if now == before)


def test_ness_remembers_what_finetuning_forgets():
    stream = load_stream("permuted-digits", seed=0).first(4)
    settings = TrainingSettings(epochs=15)
    ness_run, finetune_run = (learn(stream, method, settings, NetworkSettings()) for method in ("ness", "finetune"))
    assert finetune_run.backward_transfer < -4
    assert ness_run.backward_transfer > -1.5
    assert ness_run.average_accuracy > finetune_run.average_accuracy + 3


def test_the_accuracy_matrix_is_filled_below_the_diagonal(stream):
    run = learn(stream)
    assert np.array_equal(np.isnan(run.accuracy), np.triu(np.ones((3, 3), bool), 1))
    assert np.array_equal(np.isnan(run.valid_accuracy), np.isnan(run.accuracy))
    assert [(e.task, e.epoch) for e in run.history] == list(itertools.product(range(3), range(2)))
    assert run.finished


def test_joint_training_fills_only_the_last_row(stream):
    run = learn(stream, "joint")
    assert np.isnan(run.accuracy[:-1]).all()
    assert not np.isnan(run.accuracy[-1]).any()
    assert math.isnan(run.backward_transfer)
    assert run.average_accuracy > 50


def test_the_same_settings_give_the_same_matrix_bit_by_bit(stream):
    one, two = (learn(stream).accuracy for _ in range(2))
    assert np.array_equal(one, two, equal_nan=True)


def test_training_leaves_the_global_random_state_alone(stream):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    learn(stream)
    assert torch.equal(torch.rand(3), expected)


def test_the_best_validation_weights_are_restored(stream):
    """At an absurd learning rate the last epoch is not the best; the weights of the best one must be back."""
    settings = TrainingSettings(epochs=6, lr=1.5)
    run = learn(stream.first(1), "finetune", settings)
    best = min(run.history, key=lambda epoch: epoch.valid_loss)
    assert run.history[-1].valid_loss > best.valid_loss
    assert run.valid_accuracy[0, 0] == pytest.approx(best.valid_accuracy)


def test_a_task_ends_when_the_learning_rate_falls_under_its_minimum(stream):
    settings = TrainingSettings(epochs=50, lr=1.5, lr_patience=1, lr_minimum=0.5)
    run = learn(stream.first(1), "finetune", settings)
    assert len(run.history) < 50
    assert {epoch.lr for epoch in run.history} <= {1.5, 0.75}


def test_patience_without_validation_data_is_refused():
    stream = load_stream("split-digits")
    with pytest.raises(TrainingError, match="no validation examples"):
        learn(stream, settings=TrainingSettings(lr_patience=3))


class TestNESS:
    def test_the_update_of_a_task_stays_in_the_null_space_of_the_tasks_before(self, stream):
        """Against the raw data: inputs of task 1 (the first layer sees the data itself) and numpy's SVD of them."""
        rule = FrobeniusThreshold(0.05)
        model, weights = build_model(stream, SMALL), []

        def remember(event):
            if isinstance(event, TaskFinished):
                weights.append(model.backbone.layers[0].weight.detach().double().numpy().copy())

        run = fit(model, stream.first(2), ness(filter=rule), SHORT, listeners=[remember])
        update, old = weights[1] - weights[0], stream[0].train.x.double().numpy()
        left, sigma, _ = np.linalg.svd(old.T)
        rank = int((sigma <= 0.05 * np.linalg.norm(old)).sum())
        profile = run.profiles[0]
        assert 0 < profile.rank == rank < 64
        assert np.linalg.norm(update @ left[:, : 64 - rank]) < 1e-5 * np.linalg.norm(update)
        assert np.linalg.norm(update @ old.T, axis=0).max() <= sigma[64 - rank] * np.linalg.norm(update, 2) * (1 + 1e-5)
        np.testing.assert_allclose(profile.sigma_squared, sigma**2, rtol=1e-6, atol=1e-6)
        # What the profile says about interference is what the data says.
        interference = np.sqrt((profile.sigma_squared * profile.update_energy).sum())
        np.testing.assert_allclose(interference, np.linalg.norm(update @ old.T), rtol=1e-4)

    def test_moments_keep_no_data_and_do_not_grow(self, stream):
        sizes = []
        for tasks in (1, 3):
            method = ness()
            learn(stream.first(tasks), method)
            assert method.old_inputs == []
            sizes.append(method.memory_report())
        assert sizes[0] == sizes[1] == {"moments": 8 * (64**2 + 32**2), "old data": 0}

    def test_data_memory_keeps_the_data_and_agrees_on_the_second_task(self, stream):
        """Until the weights of task 1 have moved, moments kept and moments computed anew are the same numbers."""
        method = ness(memory="data")
        data = learn(stream.first(2), method)
        assert method.memory_report()["old data"] == sum(t.train.x.nbytes for t in stream.tasks[:2])
        moments = learn(stream.first(2), ness())
        np.testing.assert_allclose(data.accuracy, moments.accuracy, atol=1e-6)

    def test_the_exact_cap_bounds_every_old_output(self, stream):
        epsilon = 1e-4
        method = ness(filter=FrobeniusThreshold(0.2), stability=epsilon)
        run = learn(stream.first(2), method)
        for profile in run.profiles:
            free = profile.sigma_squared[len(profile.sigma_squared) - profile.rank]
            # Σ over directions bounds the spectral norm from above: ‖V‖₂² ≤ ε / σ_j².
            assert profile.update_energy.max() * free <= epsilon * (1 + 1e-6)
        loose = learn(stream.first(2), ness(filter=FrobeniusThreshold(0.2)))
        assert max(p.update_energy.max() for p in loose.profiles) > max(p.update_energy.max() for p in run.profiles)

    def test_the_cap_clips_singular_values_and_nothing_else(self):
        v = torch.randn(7, 5, dtype=torch.float64)
        left, values, right = np.linalg.svd(v.numpy(), full_matrices=False)
        limit = float(np.median(values))
        cap_spectral_norm_(v, limit)
        np.testing.assert_allclose(v, left @ np.diag(values.clip(max=limit)) @ right, atol=1e-12)
        within = v.clone()
        cap_spectral_norm_(within, 100.0)
        assert torch.equal(within, v)

    def test_biases_stay_frozen_or_are_protected(self, stream):
        network = NetworkSettings(widths=(32, 24), bias=True)
        biases = {}
        for bias in ("frozen", "augment"):
            model = build_model(stream, network)
            seen = []
            fit(
                model,
                stream.first(2),
                ness(bias=bias, filter=FrobeniusThreshold(0.1)),
                SHORT,
                listeners=[
                    lambda event, model=model, seen=seen: (
                        seen.append(model.backbone.layers[1].bias.detach().clone())
                        if isinstance(event, TaskFinished)
                        else None
                    )
                ],
            )
            biases[bias] = seen
        assert torch.equal(*biases["frozen"])
        assert not torch.equal(*biases["augment"])

    def test_only_the_named_layers_learn(self, stream):
        run = learn(stream.first(2), ness(layers=("layers.1",)))
        assert {p.layer for p in run.profiles} == {"layers.1"}

    @pytest.mark.parametrize("rule", [SoftFilter(0.01, "frobenius"), InterferenceBudget(0.05), FixedRank(9)])
    def test_every_kind_of_filter_trains(self, stream, rule):
        run = learn(stream.first(2), ness(filter=rule))
        assert all(p.update_energy.sum() > 0 for p in run.profiles if p.rank)
        assert any(p.rank for p in run.profiles)

    def test_a_filter_may_ask_for_the_direction_of_the_new_task(self, stream):
        """The update in the probe is the gradient of the new task's loss at the weights it starts from.

        The probe says of how many tasks the old inputs are, too.
        """
        seen = []

        @dataclasses.dataclass(frozen=True)
        class Curious(FixedRank):
            needs_probe = needs_update = True

            def null_rank(self, spectrum, probe=None):
                seen.append(probe)
                return self.rank

        model = build_model(stream, SMALL)
        fit(model, stream.first(1), method := ness(filter=Curious(5)), SHORT)
        x, y = stream[1].train
        model.zero_grad()
        torch.nn.functional.cross_entropy(model(x, 1), y, reduction="sum").backward()
        gradients = [layer.weight.grad for layer in model.backbone.layers]
        method.begin_task(model, TaskData(stream[1], 1, torch.device("cpu")))
        for probe, gradient in zip(seen, gradients, strict=True):
            torch.testing.assert_close(probe.update, gradient, rtol=1e-3, atol=1e-4)
            assert probe.tasks == 1

    def test_an_interference_budget_gets_tighter_with_every_task(self, stream):
        """No layer's update, were it as long as the weight, moves the outputs by more than the budget over √t."""
        budget = 0.3
        run = learn(stream.first(3), ness(filter=InterferenceBudget(budget)))
        for p in run.profiles:
            free = p.sigma_squared[len(p.sigma_squared) - p.rank :]
            occupied = p.sigma_squared[: len(p.sigma_squared) - p.rank]
            cut = budget**2 / p.task * (p.sigma_squared @ p.weight_energy) / p.weight_energy.sum()
            assert (free <= cut * (1 + 1e-6)).all()
            assert (occupied >= cut * (1 - 1e-6)).all()
        assert {p.task for p in run.profiles} == {1, 2}

    def test_a_rank_of_zero_everywhere_is_a_warning_that_helps(self, stream):
        # The three pixels that are always zero would be free: with noise in every pixel nothing is.
        tasks = []
        for task in stream.tasks[:2]:
            noisy = (Examples(p.x + 0.1 * torch.rand_like(p.x), p.y) for p in (task.train, task.valid, task.test))
            tasks.append(Task(task.name, task.classes, *noisy))
        method = ness(filter=NuclearThreshold(1e-12), layers=("layers.0",))
        expected = r"task 2: nuclear:1e-12 frees no direction .* only learn its head.*frees 10%"
        with pytest.warns(NullSpaceWarning, match=expected) as caught:
            run = learn(TaskStream("noisy", tasks), method)
        assert {p.rank for p in run.profiles} == {0}
        # The advice holds: the ε that it names for half of the directions frees half of them.
        eps = float(re.search(r"([\d.e-]+) frees 50%", str(caught[0].message))[1])
        run = learn(TaskStream("noisy", tasks), ness(filter=NuclearThreshold(eps), layers=("layers.0",)))
        assert run.profiles[0].rank == pytest.approx(32, abs=2)

    def test_a_layer_that_is_never_called_is_named(self, stream):
        class Careless(nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.spare = nn.Linear(64, 8), nn.Linear(3, 3)

            def forward(self, x):
                return self.used(x).relu()

        model = TaskModel(Careless(), 8, [10] * 3)
        with pytest.raises(SpectrumError, match="layer 'spare' was never called"):
            fit(model, stream, "ness", SHORT)
        assert fit(model, stream, ness(layers=("used",)), SHORT).finished

    def test_whatever_task_1_left_trainable_is_trainable_again(self, stream):
        model = build_model(stream)
        fit(model, stream, "ness", SHORT)
        assert all(p.requires_grad for p in model.parameters())


def test_a_loss_that_is_not_finite_is_named_and_earlier_tasks_stay(stream, tmp_path):
    """Task 2 holds values so large that the first step overflows."""
    huge = stream[1]
    parts = [Examples(part.x * 3e38, part.y) for part in (huge.train, huge.valid, huge.test)]
    broken = TaskStream("broken", [stream[0], Task("huge", huge.classes, *parts)])
    with pytest.raises(TrainingError, match=r"task 2 \('huge'\), epoch 1") as caught:
        learn(broken, "finetune", folder=str(tmp_path / "run"))
    assert "backbone.layers.0.weight" in str(caught.value)
    run = load_run(tmp_path / "run")
    assert run.status == "failed"
    assert run.tasks_done == 1
    assert run.accuracy[0, 0] > 0


@pytest.mark.parametrize("method", ["ness", "finetune", "joint"])
@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_run_stopped_in_the_middle_of_a_task_goes_on_to_the_same_result(stream, tmp_path, method, stop_after):
    settings = TrainingSettings(epochs=4, lr_patience=1)
    whole = learn(stream, method, settings)
    epochs = itertools.count(1)

    def interrupt(event):
        if isinstance(event, EpochFinished) and next(epochs) == stop_after + 4 * (method != "joint"):
            raise KeyboardInterrupt

    folder = str(tmp_path / "run")
    stopped = learn(stream, method, settings, folder=folder, listeners=[interrupt], limits=Limits(checkpoint_epochs=1))
    assert stopped.status == "stopped"
    events = []
    resumed = learn(stream, method, settings, folder=folder, listeners=[events.append])
    assert events[0].state == "continued"
    assert events[0].epochs_done == stop_after
    assert np.array_equal(resumed.accuracy, whole.accuracy, equal_nan=True)
    assert resumed.history == whole.history
    for one, other in zip(resumed.profiles, whole.profiles, strict=True):
        assert np.array_equal(one.update_energy, other.update_energy)


def test_old_data_survives_a_restart(stream, tmp_path):
    whole = learn(stream, ness(memory="data"))
    learn(stream, ness(memory="data"), folder=str(tmp_path / "run"), limits=Limits(tasks=2))
    resumed = learn(stream, ness(memory="data"), folder=str(tmp_path / "run"))
    assert np.array_equal(resumed.accuracy, whole.accuracy, equal_nan=True)


def test_limits_stop_and_the_run_goes_on_later(stream, tmp_path):
    folder = str(tmp_path / "run")
    first = learn(stream, folder=folder, limits=Limits(tasks=1))
    assert (first.status, first.tasks_done) == ("stopped", 1)
    second = learn(stream, folder=folder, limits=Limits(minutes=1e-9))
    assert (second.status, second.tasks_done) == ("stopped", 1)
    assert "minutes" in second.status_reason
    assert len(second.history) == 3  # the first epoch of task 2 was trained, and kept
    events = []
    third = learn(stream, folder=folder, listeners=[events.append])
    assert isinstance(events[0], RunStarted)
    assert (events[0].tasks_done, events[0].epochs_done) == (1, 1)
    assert np.array_equal(third.accuracy, learn(stream).accuracy, equal_nan=True)


def test_a_folder_with_other_settings_is_left_untouched(stream, tmp_path):
    folder = tmp_path / "run"
    learn(stream, folder=str(folder))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(RunFolderError, match="other settings"):
        learn(stream, settings=TrainingSettings(epochs=3), folder=str(folder))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_model_without_heads_is_refused(stream):
    with pytest.raises(TrainingError, match=r"needs a TaskModel.* got Linear"):
        fit(nn.Linear(64, 10), stream, "ness")
    with pytest.raises(TrainingError, match="a head for each of the 3 tasks"):
        fit(build_model(stream.first(2)), stream, "ness")


def test_sam_and_adam_train_too(stream):
    for optimizer in ("sam", "adam"):
        settings = TrainingSettings(epochs=2, optimizer=optimizer, lr=0.05 if optimizer == "sam" else 0.005)
        assert learn(stream.first(2), settings=settings).accuracy[0, 0] > 20
