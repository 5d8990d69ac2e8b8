"""Tasks without a name: one head over all classes seen, or the nearest class mean, against numpy."""

import copy
import dataclasses
from collections import Counter

import numpy as np
import pytest
import small_tasks
import torch

from nesskit import FrobeniusThreshold, Limits, NESSSettings, TaskModel, TrainingSettings, fit, load_stream
from nesskit.errors import TrainingError
from nesskit.methods import METHODS, make_method
from nesskit.networks import build_model
from nesskit.networks.class_means import nearness
from nesskit.runs.events import EpochFinished, TaskFinished
from nesskit.runs.folder import RunFolder
from nesskit.settings import NetworkSettings
from nesskit.streams.batches import MixedData, TaskData

HEADS = pytest.mark.parametrize("head", ["shared", "means"])
PRIVATE = ["hat", "trgp", "ness-private"]  # in which a task uses the backbone in its own way
EVERY_METHOD = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=() if name in ("finetune", "ness", "joint", "frozen", "lora", *PRIVATE) else pytest.mark.every
        )
        for name in METHODS
    ],
)


def digits(tasks=3):
    return load_stream("split-digits", seed=0).first(tasks)


def learn(name, head, stream, settings=None, **options):
    model = build_model(stream, NetworkSettings("mlp", widths=(24, 16)), 0, head == "shared")
    training = TrainingSettings(epochs=3, lr=0.02, head=head)
    return model, fit(model, stream, make_method(name, settings), training, seed=0, **options)


@torch.no_grad()
def features_of(model, x, task):
    return model.eval().task_features(x, task).double().numpy()


def answers_by_means(model, stream, kept, x):
    """The (task, class) of the nearest mean, in numpy; ``kept`` are the means of each task."""
    distances = [
        ((features_of(model, x, task)[:, None] - kept[task].double().numpy()[None]) ** 2).sum(axis=2)
        for task in range(len(stream))
    ]
    places = [(task, label) for task, block in enumerate(distances) for label in range(block.shape[1])]
    return [places[nearest] for nearest in np.concatenate(distances, axis=1).argmin(axis=1)]


@EVERY_METHOD
def test_the_last_row_is_what_the_nearest_of_all_means_answers(name):
    stream = digits()
    model, run = learn(name, "means", stream)
    kept = [model.means.of(task) for task in range(len(stream))]
    for number, task in enumerate(stream):
        found = answers_by_means(model, stream, kept, task.normalise(task.test.x))
        right = [answer == (number, label) for answer, label in zip(found, task.test.y.tolist(), strict=True)]
        assert run.accuracy[-1, number] == pytest.approx(100 * np.mean(right), abs=1e-9)


@EVERY_METHOD
def test_with_means_tasks_are_learned_just_as_with_heads(name):
    stream = digits()
    _, with_names = learn(name, "task", stream)
    _, run = learn(name, "means", stream)
    assert run.named_accuracy.tobytes() == with_names.accuracy.tobytes()
    assert [epoch.train_loss for epoch in run.history] == [epoch.train_loss for epoch in with_names.history]
    assert np.isnan(with_names.named_accuracy).all()


def test_means_are_those_of_the_features_right_after_a_task_and_stay_so():
    stream, expected = digits(), []

    def listen(event):
        if isinstance(event, TaskFinished):
            task = stream[event.task]
            features = features_of(model, task.normalise(task.train.x), event.task)
            labels = task.train.y.numpy()
            expected.append(np.stack([features[labels == label].mean(axis=0) for label in (0, 1)]))

    model = build_model(stream, NetworkSettings("mlp", widths=(24, 16)), 0)
    training = TrainingSettings(epochs=3, lr=0.02, head="means")
    fit(model, stream, "finetune", training, listeners=[listen])
    for task, means in enumerate(expected):
        np.testing.assert_allclose(model.means.of(task).numpy(), means, rtol=1e-4, atol=1e-5)


def test_the_nearest_mean_of_a_hand_worked_example():
    means = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert torch.equal(nearness(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), means), -torch.tensor([[0.0, 5.0], [3.0, 4.0]]))


@EVERY_METHOD
def test_the_last_row_is_what_one_head_over_all_classes_answers(name):
    stream = digits()
    model, run = learn(name, "shared", stream)
    with torch.no_grad():
        for number, task in enumerate(stream):
            x, y = task.normalise(task.test.x), task.test.y.numpy() + 2 * number
            answers = [model.eval()(x, other).numpy() for other in range(3)]
            assert answers[0].shape == (len(y), 6)
            blocks = np.concatenate([answer[:, 2 * t : 2 * t + 2] for t, answer in enumerate(answers)], axis=1)
            assert run.accuracy[-1, number] == pytest.approx(100 * np.mean(blocks.argmax(1) == y), abs=1e-9)
            own = answers[number][:, 2 * number : 2 * number + 2].argmax(1) + 2 * number
            assert run.named_accuracy[-1, number] == pytest.approx(100 * np.mean(own == y), abs=1e-9)


def test_tasks_that_share_everything_answer_alike_whatever_name_they_are_called_by():
    stream = digits()
    model, _ = learn("ness", "shared", stream)
    x = stream[0].normalise(stream[0].test.x)
    assert not model.tasks_have_parts
    assert torch.equal(model(x, 0), model(x, 2))


def test_classes_of_tasks_to_come_are_not_seen():
    """Rows of the head for classes that were never seen stay as they were drawn."""
    stream = digits()
    fresh = build_model(stream, NetworkSettings("mlp", widths=(24, 16)), 0, shared_head=True)
    model, _ = learn("finetune", "shared", stream, limits=Limits(tasks=2))
    assert model(torch.zeros(1, 64), 0).shape == (1, 4)
    before, after = fresh.backbone.head.weight, model.backbone.head.weight
    assert torch.equal(before[4:], after[4:])
    assert not torch.equal(before[2:4], after[2:4])
    # the count travels with the state
    fresh.load_state_dict(model.state_dict())
    assert fresh(torch.zeros(1, 64), 0).shape == (1, 4)


def test_the_head_is_held_in_the_null_space_of_old_features():
    """Old logits do not move, those of the classes to come neither: ‖logits_new - logits_old‖ on inputs of task 1."""
    stream = small_tasks.stream()
    backbone = small_tasks.model().backbone
    model = TaskModel(backbone, 40, [small_tasks.CLASSES] * 3, shared_head=True)
    keep = small_tasks.keeping_first(model)
    strict = make_method("ness", NESSSettings(FrobeniusThreshold(1e-6)))
    fit(model, stream, strict, small_tasks.training(head="shared"), listeners=[keep])
    x = stream[0].train.x.double()
    with torch.no_grad():
        old, new = (copy.deepcopy(m.backbone).double().eval()(x) for m in (keep.model, model))
    assert float((new - old).abs().max()) < 1e-4 * float(old.abs().max())
    fine = TaskModel(small_tasks.model().backbone, 40, [small_tasks.CLASSES] * 3, shared_head=True)
    keep = small_tasks.keeping_first(fine)
    fit(fine, stream, "finetune", small_tasks.training(head="shared"), listeners=[keep])
    with torch.no_grad():
        old, new = (copy.deepcopy(m.backbone).double().eval()(x) for m in (keep.model, fine))
    assert float((new - old).abs().max()) > 0.1 * float(old.abs().max())


@HEADS
@pytest.mark.parametrize("name", ["ness", "hat", "ness-private", "joint", "fs-dgpm"])
def test_a_run_that_was_stopped_ends_the_same(name, head, tmp_path):
    stream = digits()
    whole_model, whole = learn(name, head, stream)

    def interrupt(event):
        if isinstance(event, EpochFinished) and (event.task, event.epoch) == (2, 1):
            raise KeyboardInterrupt

    first = learn(name, head, stream, folder=tmp_path, listeners=[interrupt], limits=Limits(checkpoint_epochs=1))[1]
    assert first.status == "stopped"
    model, run = learn(name, head, stream, folder=tmp_path)
    assert run.finished
    assert run.accuracy.tobytes() == whole.accuracy.tobytes()
    assert run.named_accuracy.tobytes() == whole.named_accuracy.tobytes()
    for key, tensor in whole_model.state_dict().items():
        assert torch.equal(torch.as_tensor(tensor), torch.as_tensor(model.state_dict()[key])), key
    read = RunFolder(tmp_path).read()
    np.testing.assert_array_equal(read.named_accuracy, run.named_accuracy)


def test_what_the_means_take_is_counted():
    _, run = learn("finetune", "means", digits())
    assert run.memory["class means"] == 3 * 2 * 16 * 4  # tasks × classes × features × bytes
    assert "class means" not in learn("finetune", "task", digits())[1].memory


def test_a_model_that_is_trained_again_forgets_its_means():
    stream = digits()
    model, _ = learn("finetune", "means", stream)
    fit(model, stream, "finetune", TrainingSettings(epochs=1))
    assert not model.means.places


def test_batches_of_joint_training_with_one_head_hold_examples_of_all_tasks():
    stream = digits()
    mixed = MixedData([TaskData(task, n, torch.device("cpu"), first_label=2 * n) for n, task in enumerate(stream)])
    order = torch.randperm(len(mixed.train.y), generator=torch.Generator().manual_seed(0))
    seen = Counter()
    for rows in order.split(32):
        batch = mixed.batch(mixed.train, rows)
        assert batch.y.unique().numel() > 2
        seen.update((label, x.numpy().tobytes()) for x, label in zip(batch.x, batch.y.tolist(), strict=True))
    expected = Counter(
        (label + 2 * number, x.numpy().tobytes())
        for number, task in enumerate(stream)
        for x, label in zip(task.normalise(task.train.x), task.train.y.tolist(), strict=True)
    )
    assert seen == expected


@pytest.mark.parametrize(("head", "shared"), [("shared", False), ("task", True), ("means", True)])
def test_a_network_with_the_wrong_kind_of_head_is_refused(head, shared):
    model = build_model(digits(), shared_head=shared)
    with pytest.raises(TrainingError, match=rf"shared_head={head == 'shared'}"):
        fit(model, digits(), "finetune", TrainingSettings(epochs=1, head=head))


def test_a_shared_head_of_other_classes_is_refused():
    stream = digits()
    backbone = build_model(stream).backbone
    model = TaskModel(backbone, 128, [2, 3, 2], shared_head=True)
    with pytest.raises(TrainingError, match="task 2"):
        fit(model, stream, "finetune", TrainingSettings(epochs=1, head="shared"))


def test_a_null_space_keeps_class_means_right_that_fine_tuning_loses():
    """What the setting is for: means stored long ago stay right if features do not move. Five seeds of split-digits."""
    gains = []
    for seed in range(5):
        stream = load_stream("split-digits", seed)
        accuracy = {}
        for name in ("ness", "finetune"):
            model = build_model(stream, None, seed)
            settings = dataclasses.replace(TrainingSettings(epochs=10, lr=0.05), head="means")
            accuracy[name] = fit(model, stream, name, settings, seed=seed).average_accuracy
        gains.append(accuracy["ness"] - accuracy["finetune"])
    assert min(gains) > 0
