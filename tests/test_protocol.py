"""What surrounds a training step, setting by setting: against closed forms, hand-worked examples, other libraries."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from small_tasks import keeping_first, model, moved, stream, strict, training
from torch import nn
from torch.nn import functional as F  # noqa: N812

from nesskit import Limits, NESSSettings, configure, fit
from nesskit.errors import SettingsError, TrainingError, UnknownNameError
from nesskit.experiments.remarks import preset_of, remarks
from nesskit.methods import METHODS, make_method
from nesskit.methods.ness import end_to_end
from nesskit.runs.events import EpochFinished, TaskFinished
from nesskit.runs.record import Run
from nesskit.streams.base import Normalisation
from nesskit.training.averaging import WeightAverage
from nesskit.training.schedule import Schedule, cosine_rate

PROTOCOLS = [
    {"evaluation_order": "reshuffled", "evaluation_batch_size": 5},
    {"lr_plan": "cosine", "lr_minimum": 0.001},
    {"label_smoothing": 0.1},
    {"ema_decay": 0.8},
    {"kept_weights": "highest-accuracy"},
    {"kept_weights": "last"},
]


def learn(changes, method="ness", learned=None, **options):
    learned = model(norm=nn.BatchNorm1d) if learned is None else learned
    run = fit(learned, stream(count=44, valid=12), make_method(method), training(**changes), seed=1, **options)
    return run, learned


@pytest.mark.parametrize("changes", PROTOCOLS, ids=str)
@pytest.mark.parametrize("method", ["ness", "joint"])
def test_a_run_that_was_stopped_ends_bit_by_bit_as_one_that_was_not(tmp_path, changes, method):
    """With all other settings at work, too; stopped in the middle of a task, and gone on with in another model."""
    changes = {**PROTOCOLS[0], **PROTOCOLS[2], **PROTOCOLS[3], **changes, "epochs": 6}
    whole, learned = learn(changes, method)

    def stop(event):
        if isinstance(event, EpochFinished) and event.task == len(whole.tasks) - 1 and event.epoch == 2:
            raise KeyboardInterrupt

    every = Limits(checkpoint_epochs=1)
    stopped, _ = learn(changes, method, folder=str(tmp_path / "run"), limits=every, listeners=[stop])
    assert not stopped.finished
    resumed, again = learn(changes, method, folder=str(tmp_path / "run"))
    assert resumed.history == whole.history
    assert np.array_equal(resumed.accuracy, whole.accuracy, equal_nan=True)
    for name, value in learned.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


class TestOrderOfEvaluations:
    """Fixed, or drawn anew."""

    def batches(self, order, seed=1):
        """For every evaluation the batches of inputs that the method was asked about."""
        asked = []

        class Listening(METHODS["finetune"]):
            def predict(self, model, x, task):
                asked[-1].append(x.clone())
                return super().predict(model, x, task)

        tasks = stream(1, valid=12)
        settings = training(epochs=3, evaluation_order=order, evaluation_batch_size=5)
        asked.append([])

        def next_evaluation(event):
            asked.append([])

        fit(model(1), tasks, Listening(), settings, seed=seed, listeners=[next_evaluation])
        return [torch.cat(same) for same in asked if same], tasks[0]

    def test_fixed_batches_are_the_examples_in_their_order(self):
        evaluations, task = self.batches("fixed")
        for evaluation in evaluations[:3]:
            assert torch.equal(evaluation, task.valid.x)
        assert torch.equal(evaluations[3], torch.cat([task.test.x, task.valid.x]))

    def test_reshuffled_ones_hold_every_example_once_and_never_in_the_same_order(self):
        evaluations, task = self.batches("reshuffled")
        for evaluation in evaluations[:3]:
            assert torch.equal(evaluation.sort(dim=0).values, task.valid.x.sort(dim=0).values)
        for one, two in itertools.combinations([task.valid.x, *evaluations[:3], evaluations[3][-12:]], 2):
            assert not torch.equal(one, two)

    def test_the_seed_determines_them(self):
        one, two, other = (self.batches("reshuffled", seed)[0] for seed in (1, 1, 2))
        assert all(map(torch.equal, one, two))
        assert not any(map(torch.equal, one, other))

    def test_without_batch_statistics_they_make_no_difference(self):
        runs = [learn({"evaluation_order": order}, learned=model())[0] for order in ("fixed", "reshuffled")]
        assert np.array_equal(*(run.accuracy for run in runs), equal_nan=True)


class TestBatchesBehindMoments:
    """Of one task each, or end to end."""

    inputs = ((torch.arange(5.0).view(5, 1), None), (torch.arange(5.0, 9.0).view(4, 1), None))

    def test_end_to_end_by_hand(self):
        batches = [batch.flatten().tolist() for batch in end_to_end(self.inputs, 3)]
        assert batches == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]

    def test_no_batch_is_of_one_sample(self):
        batches = [batch.flatten().tolist() for batch in end_to_end(self.inputs, 4)]
        assert batches == [[0, 1, 2, 3], [4, 5, 6, 7, 8]]

    def test_each_task_is_normalised_its_own_way(self):
        images = [(torch.full((3, 1, 2, 2), value), Normalisation((value,), (1.0,))) for value in (0.25, 0.75)]
        assert all((batch == 0).all() for batch in end_to_end(images, 2))

    @pytest.mark.parametrize(("size", "batches"), [(7, "of-one-task"), (7, "across-tasks"), (48, "of-one-task")])
    def test_the_moments_are_those_of_such_batches(self, size, batches):
        """Seen by a layer behind BatchNorm, whose statistics are the batch's: against a loop in plain torch."""
        tasks = stream(3)
        method = make_method("ness", NESSSettings(memory="data", moment_batch_size=size, moment_batches=batches))
        learned = model(norm=lambda width: nn.BatchNorm1d(width, track_running_stats=False))
        fit(learned, tasks, method, training(epochs=1), seed=1, limits=Limits(tasks=2))
        parts = [task.train.x for task in tasks[:2]]
        parts = [torch.cat(parts)] if batches == "across-tasks" else parts
        expected = torch.zeros(64, 64, dtype=torch.float64)
        with torch.no_grad():
            for batch in (batch for part in parts for batch in part.split(size)):
                seen = learned.backbone[:3](batch).double()
                expected += seen.T @ seen
        collected = method._remembered_moments(learned)["3"]
        torch.testing.assert_close(collected.matrix, expected, rtol=1e-5, atol=1e-5)


class TestKeptWeights:
    """Which epoch's weights a task is left with."""

    def of_task_1(self, kept):
        changes = {"epochs": 20, "lr": 0.6, "momentum": 0.0, "kept_weights": kept}
        run, _ = learn(changes, learned=model(), limits=Limits(tasks=1))
        return [(e.valid_loss, e.valid_accuracy) for e in run.history], run.valid_accuracy[0, 0]

    def test_lowest_loss(self):
        history, accuracy = self.of_task_1("lowest-loss")
        assert accuracy == min(history)[1]

    def test_highest_accuracy(self):
        history, accuracy = self.of_task_1("highest-accuracy")
        assert accuracy == max(accuracy for _, accuracy in history)

    def test_last(self):
        history, accuracy = self.of_task_1("last")
        assert accuracy == history[-1][1]

    def test_the_three_are_not_the_same_here(self):
        history, _ = self.of_task_1("last")
        assert len({min(history), max(history, key=lambda epoch: epoch[1]), history[-1]}) == 3

    def test_accuracy_needs_something_to_be_judged_on(self):
        with pytest.raises(TrainingError, match="kept_weights watches the validation data, but a task has no"):
            fit(model(1), stream(1), "finetune", training(kept_weights="highest-accuracy"))
        with pytest.raises(SettingsError, match="set validation_share above 0, or kept_weights to lowest-loss"):
            configure("split-digits", kept_weights="highest-accuracy")


class TestCosine:
    """Against torch's own schedule."""

    settings = training(epochs=7, lr=0.2, lr_minimum=0.01, lr_plan="cosine")

    def test_it_is_that_of_torch(self):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
        theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=7, eta_min=0.01)
        for epoch in range(7):
            assert cosine_rate(epoch, self.settings) == pytest.approx(theirs.get_last_lr()[0], rel=1e-12)
            optimizer.step()
            theirs.step()

    def test_every_task_has_all_of_it_whatever_the_validation_loss(self):
        settings = dataclasses.replace(self.settings, lr_patience=1)
        run = fit(model(2), stream(2, valid=12), "ness", settings)
        expected = [cosine_rate(epoch, settings) for epoch in range(7)]
        assert [epoch.lr for epoch in run.history] == 2 * expected
        assert not Schedule(0.2, best_loss=1.0).after(2.0, settings).over

    def test_without_validation_data_too(self):
        run = fit(model(1), stream(1), "ness", self.settings)
        assert [epoch.lr for epoch in run.history] == [cosine_rate(epoch, self.settings) for epoch in range(7)]


class TestLabelSmoothing:
    """Of the training alone."""

    @pytest.mark.parametrize("name", [name for name in METHODS if name != "hat"])  # its own: test_method_hat.py
    def test_every_method_trains_with_it(self, name):
        """The first step of task 1, with all examples in one batch: s of a label is spread over the 3 classes."""
        share, tasks = 0.3, stream(1)
        learned = model(1)
        x, y = tasks[0].train
        with torch.no_grad():
            logits = learned(x, 0)
            log_p = logits.log_softmax(dim=1)
            expected = -((1 - share) * log_p[torch.arange(len(y)), y] + share * log_p.mean(dim=1)).mean()
        options = {"dfgp": {"mixup_weight": 0.0}, "fs-dgpm": {"ascent_rate": 0.0}}.get(name, {})
        method = make_method(name, METHODS[name].settings_type(**options))
        run = fit(learned, tasks, method, training(epochs=1, batch_size=64, label_smoothing=share))
        assert run.history[0].train_loss == pytest.approx(float(expected), rel=1e-5)

    def test_validation_is_not_smoothed(self):
        run, learned = learn({"epochs": 1, "label_smoothing": 0.3}, learned=model(), limits=Limits(tasks=1))
        valid = stream(count=44, valid=12)[0].valid
        expected = F.cross_entropy(learned(valid.x, 0), valid.y)
        assert run.history[0].valid_loss == pytest.approx(float(expected.detach()), rel=1e-5)

    def test_the_next_run_of_a_method_does_without(self):
        method = make_method("finetune")
        for share in (0.3, 0.0):
            fit(model(1), stream(1), method, training(epochs=1, label_smoothing=share))
            assert method.label_smoothing == share


class TestWeightAverage:
    """w̄ ← β w̄ + (1 - β) w."""

    def test_by_hand(self):
        weight = torch.tensor([1.0, 0.0])
        average = WeightAverage([weight], decay=0.5)
        for values in ([3.0, 4.0], [5.0, 0.0]):
            weight.copy_(torch.tensor(values))
            average.update()
        assert average.averages[0].tolist() == [3.5, 1.0]  # ((1 + 3)/2 + 5)/2 and ((0 + 4)/2 + 0)/2
        with average.in_place():
            assert weight.tolist() == [3.5, 1.0]
        assert weight.tolist() == [5.0, 0.0]

    def test_a_task_is_left_with_the_average_of_its_steps(self):
        """Three steps in all, each followed here in numpy."""
        seen = []

        class Noting(METHODS["finetune"]):
            def step(self, model, batch, optimizer):
                loss = super().step(model, batch, optimizer)
                seen.append(model.heads[0].weight.detach().numpy().copy())
                return loss

        learned = model(1)
        expected = learned.heads[0].weight.detach().numpy().astype(np.float64)
        fit(learned, stream(1), Noting(), training(epochs=1, ema_decay=0.7, batch_size=16))
        for weight in seen:
            expected = 0.7 * expected + 0.3 * weight
        assert len(seen) == 3
        np.testing.assert_allclose(learned.heads[0].weight.detach().numpy(), expected, rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize("name", ["ness", "gpm", "trgp", "adam-nscl"])
    @pytest.mark.parametrize("valid", [0, 12])
    def test_old_outputs_stay(self, name, valid):
        """An average of updates in a subspace lies in it."""
        tasks, learned = stream(valid=valid), model()
        listen = keeping_first(learned)
        fit(learned, tasks, strict(name), training(epochs=6, ema_decay=0.9, lr=0.1), seed=1, listeners=[listen])
        assert moved(learned, listen.model, tasks) < 1e-5

    def test_what_is_validated_is_what_is_kept(self):
        run, learned = learn({"ema_decay": 0.8, "epochs": 6}, learned=model(), limits=Limits(tasks=1))
        valid = stream(count=44, valid=12)[0].valid
        loss = float(F.cross_entropy(learned(valid.x, 0), valid.y).detach())
        assert loss == pytest.approx(min(epoch.valid_loss for epoch in run.history), rel=1e-5)

    def test_a_task_that_is_stopped_goes_on_from_its_average(self, tmp_path):
        changes = {"ema_decay": 0.9, "epochs": 6, "kept_weights": "last"}
        _, whole = learn(changes, limits=Limits(tasks=1))
        options = {"folder": str(tmp_path), "limits": Limits(minutes=1e-9)}
        finished = []
        for _ in range(7):
            _, again = learn(changes, **options, listeners=[finished.append])
            if any(isinstance(event, TaskFinished) for event in finished):
                break
        assert torch.equal(again.heads[0].weight, whole.heads[0].weight)


class TestPresets:
    """The authors' protocol, and ours."""

    names = ("split-cifar100", "five-datasets", "split-miniimagenet")

    @pytest.mark.parametrize("benchmark", names)
    @pytest.mark.parametrize("kind", ["sgdm", "sam"])
    def test_the_two_differ_in_what_surrounds_the_step_alone(self, benchmark, kind):
        theirs, ours = (configure(benchmark, preset=f"{whose}-{kind}") for whose in ("paper", "nesskit"))
        assert (theirs.split, ours.split) == ("authors", "nesskit")
        assert (theirs.training.evaluation_order, ours.training.evaluation_order) == ("reshuffled", "fixed")
        assert (theirs.options.moment_batch_size, theirs.options.moment_batches) == (64, "across-tasks")
        assert (ours.options.moment_batch_size, ours.options.moment_batches) == (256, "of-one-task")
        assert dataclasses.replace(theirs.training, evaluation_order="fixed") == ours.training
        assert dataclasses.replace(theirs.options, moment_batch_size=256, moment_batches="of-one-task") == ours.options
        assert theirs.network == ours.network

    def test_split_is_a_change_by_name(self):
        assert configure("split-cifar100", preset="paper-sgdm", split="nesskit").split == "nesskit"
        with pytest.raises(UnknownNameError, match="unknown split 'author': did you mean 'authors'"):
            configure("split-cifar100", split="author")

    def older_run(self, **changes):
        """A run as nesskit 0.1 recorded it: the name of a preset, and no word of the protocol."""
        config = configure("split-cifar100", preset="nesskit-sgdm", seed=1, **changes).to_dict()
        config = copy.deepcopy({**config, "preset": "paper-sgdm"})
        del config["split"], config["options"]["moment_batch_size"], config["options"]["moment_batches"]
        for name in ("lr_plan", "label_smoothing", "ema_decay", "kept_weights", "evaluation_order"):
            del config["training"][name]
        run = Run.new(config, {}, {}, [str(task) for task in range(10)])
        run.status, run.accuracy = "finished", np.where(np.tri(10, dtype=bool), 70.0, math.nan)
        return run

    def test_an_older_run_is_known_by_its_settings_and_not_by_its_presets_name(self):
        run = self.older_run()
        assert preset_of(run) == "nesskit-sgdm"
        assert remarks(run) == []

    def test_a_reduced_one_too(self):
        run = self.older_run(epochs=3)
        assert preset_of(run) == "nesskit-sgdm"
        assert remarks(run) == ["reduced, epochs = 3 (preset: 200)"]

    def test_a_changed_one_is_told_from_the_preset_that_it_names(self):
        run = self.older_run(lr=0.02)
        assert preset_of(run) == "paper-sgdm"
        assert "lr = 0.02 (preset: 0.005)" in remarks(run)
        assert "evaluation_order = fixed (preset: reshuffled)" in remarks(run)
