"""The Trainer of transformers in place of our loop: the same weights from the same batches, and old outputs stay."""

import copy
import statistics
import sys

import pytest
import torch
from small_tasks import strict, training
from test_encoder import bert, features_of, token_batch, two_tasks
from torch import nn
from torch.utils.data import Sampler

import nesskit
from nesskit import (
    NESS,
    Encoder,
    Examples,
    FrobeniusThreshold,
    NESSSettings,
    NullSpaceCallback,
    Task,
    TaskModel,
    TaskStream,
    fit,
)
from nesskit.errors import DataError, SettingsError, TrainingError
from nesskit.methods import make_method
from nesskit.seeds import derive_seed
from nesskit.streams.batches import TaskData

transformers = pytest.importorskip("transformers", reason="pip install 'nesskit[text]'")
pytest.importorskip("accelerate", reason="pip install 'nesskit[text]'")

TASKS, CLASSES, EPOCHS = 3, 3, 8


def sentences(labels, number, draw):
    """Eight tokens of this task's eighteen; the label is a token that appears among the first four."""
    first = 2 + 18 * number
    ids = torch.randint(first + CLASSES, first + 18, (len(labels), 8), generator=draw)
    ids.scatter_(1, torch.randint(0, 4, (len(labels), 1), generator=draw), (first + labels)[:, None])
    mask = torch.arange(8) < torch.randint(4, 9, (len(labels), 1), generator=draw)
    return {"input_ids": torch.where(mask, ids, 0), "attention_mask": mask.long()}


def text_stream(seed):
    tasks = []
    for number in range(TASKS):
        draw = torch.Generator().manual_seed(10 * seed + number)
        y, few, none = torch.arange(96) % CLASSES, torch.arange(60) % CLASSES, torch.arange(0)
        train, valid, test = (Examples(sentences(labels, number, draw), labels) for labels in (y, none, few))
        tasks.append(Task(f"words {number}", ("a", "b", "c"), train, valid, test))
    return TaskStream("three tasks of words", tasks)


def text_model(seed=0, tasks=TASKS):
    torch.manual_seed(seed)
    encoder = Encoder(bert())
    return TaskModel(encoder, encoder.width, [CLASSES] * tasks)


def ness():
    return NESS(NESSSettings(FrobeniusThreshold(0.01)))


class OurOrder(Sampler):
    """The order in which our loop shows the examples of a task, whose number the batches divide."""

    def __init__(self, task, seed, number):
        self.data, self.seed, self.epoch = TaskData(task, number, torch.device("cpu")), seed, 0

    def __len__(self):
        return len(self.data.train.y)

    def __iter__(self):
        draw = torch.Generator().manual_seed(derive_seed(self.seed, "shuffle", self.data.index, self.epoch))
        self.epoch += 1
        return iter(torch.cat(list(self.data.shuffled(16, draw))).tolist())


class Ordered(transformers.Trainer):
    sampler = None

    def _get_train_sampler(self, *arguments):
        return self.sampler or super()._get_train_sampler(*arguments)


def arguments(folder, **changes):
    options = {
        "per_device_train_batch_size": 16,
        "num_train_epochs": EPOCHS,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return transformers.TrainingArguments(str(folder), **(options | changes))


def learn_by_trainer(callback, stream, folder, our_order=None, after_each=lambda: None, **changes):
    """Every task with a Trainer of its own, and momentum SGD as our loop takes it unless an optimizer is named."""
    for number, task in enumerate(stream):
        examples = callback.begin_task(task)
        sgd = torch.optim.SGD(callback.parameter_groups(), lr=0.05, momentum=0.9)
        optimizers = (None, None) if "optim" in changes else (sgd, None)
        options = {"train_dataset": examples, "callbacks": [callback], "optimizers": optimizers}
        trainer = Ordered(callback.module, arguments(folder, **changes), **options)
        if our_order is not None:
            trainer.sampler = OurOrder(task, our_order, number)
        trainer.train()
        after_each()


@torch.no_grad()
def accuracies(model, stream):
    model.eval()
    answers = [model(task.normalise(task.test.x), number).argmax(1) for number, task in enumerate(stream)]
    return [100 * float((a == task.test.y).float().mean()) for a, task in zip(answers, stream, strict=True)]


METHODS = {"ness": ness, "gpm": lambda: make_method("gpm"), "ewc": lambda: make_method("ewc")}
METHODS["lora"] = lambda: make_method("lora")
METHODS["ness-private"] = lambda: make_method("ness-private")


def learned_by(model):
    """Every weight, and what single tasks have for themselves."""
    return dict(model.named_parameters()) | model.private.content()


@pytest.mark.parametrize("name", METHODS)
def test_from_the_same_batches_come_the_same_weights(name, tmp_path):
    stream, ours = text_stream(0), text_model()
    first, theirs = copy.deepcopy(learned_by(ours)), copy.deepcopy(ours)
    run = fit(ours, stream, METHODS[name](), training(epochs=EPOCHS, kept_weights="last"), seed=5)
    callback = NullSpaceCallback(theirs, METHODS[name](), seed=5)
    learn_by_trainer(callback, stream, tmp_path, our_order=5)
    callback.end_run()
    expected, found = learned_by(ours), learned_by(theirs)
    assert any((expected[key] - first[key]).abs().max() > 0.1 for key in first)
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, atol=1e-5, rtol=1e-5)
    assert accuracies(theirs, stream) == pytest.approx(run.accuracy[-1].tolist(), abs=1e-3)
    assert [(p.layer, p.task, p.rank) for p in callback.profiles] == [(p.layer, p.task, p.rank) for p in run.profiles]


@pytest.mark.slow
def test_in_its_own_order_the_trainer_is_as_accurate_as_our_loop(tmp_path):
    ours, theirs = [], []
    for seed in range(3):
        stream, model = text_stream(seed), text_model(seed)
        other = copy.deepcopy(model)
        run = fit(model, stream, ness(), training(epochs=EPOCHS, kept_weights="last"), seed=seed)
        ours.append(run.average_accuracy)
        learn_by_trainer(NullSpaceCallback(other, ness(), seed), stream, tmp_path, seed=seed)
        theirs.append(statistics.mean(accuracies(other, stream)))
    assert min(ours) > 80  # by chance 33
    assert abs(statistics.mean(ours) - statistics.mean(theirs)) <= statistics.stdev(ours)


def test_what_the_network_knew_is_protected_before_the_first_task(tmp_path):
    stream, reference = text_stream(0), sentences(torch.arange(6) % CLASSES, 2, torch.Generator().manual_seed(9))
    ours = text_model()
    theirs, method = copy.deepcopy(ours), NESS(NESSSettings(FrobeniusThreshold(0.01), protect="reference"))
    known = TaskStream("with reference", stream.tasks, reference=reference)
    fit(ours, known, method, training(epochs=2, kept_weights="last"), seed=5)
    with pytest.raises(DataError, match="needs inputs that stand for what the network knows"):
        NullSpaceCallback(theirs, method).begin_task(stream[0])
    callback = NullSpaceCallback(theirs, method, seed=5, reference=reference)
    learn_by_trainer(callback, stream, tmp_path, our_order=5, num_train_epochs=2)
    for key, value in ours.named_parameters():
        torch.testing.assert_close(theirs.get_parameter(key), value, atol=1e-5, rtol=1e-5)


DECAYING = {"optim": "adamw_torch", "learning_rate": 0.01, "weight_decay": 0.1, "max_grad_norm": 1.0}


def moved_by_trainer(method, folder, **changes):
    """How far the features of both tasks moved in task 2, whatever the optimizer."""
    torch.manual_seed(3)
    encoder, stream, kept = Encoder(bert()), two_tasks(token_batch), []
    model = TaskModel(encoder, encoder.width, [3, 3])
    callback = NullSpaceCallback(model, method)
    learn_by_trainer(callback, stream, folder, after_each=lambda: kept.append(copy.deepcopy(model)), **changes)
    first, last = kept
    return [float((features_of(last, task.train.x) - features_of(first, task.train.x)).abs().max()) for task in stream]


@pytest.mark.parametrize("name", ["ness", "gpm", "adam-nscl"])
@pytest.mark.parametrize("steps", [1, 2], ids=["each batch a step", "two batches a step"])
def test_old_features_stay_also_with_adamw_and_weight_decay(name, steps, tmp_path):
    """GPM and Adam-NSCL project the steps that AdamW takes: see ``holding`` in methods/held.py."""
    options = DECAYING | {"gradient_accumulation_steps": steps, "num_train_epochs": 4}
    old, new = moved_by_trainer(strict(name), tmp_path, **options)
    assert old < 1e-5
    assert new > 1e-2


def test_fine_tuning_moves_old_features(tmp_path):
    old, _ = moved_by_trainer("finetune", tmp_path, **DECAYING)
    assert old > 1e-2


def test_only_what_the_method_trains_learns_while_a_task_is_open(tmp_path):
    model, stream = text_model(), text_stream(0)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    callback = NullSpaceCallback(model, ness())
    learn_by_trainer(callback, stream[:1], tmp_path)
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    callback.begin_task(stream[1])
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    layers = {name for name, _ in nesskit.adapted_layers(model).items()}
    assert layers
    assert learning == {f"{name}.coefficients" for name in layers} | {"heads.1.weight"}
    callback.end_task()
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert callback.tasks_done == 2


class Interrupting(transformers.TrainerCallback):
    """Somebody presses ctrl-c while the optimizer is about to take its third step."""

    def on_pre_optimizer_step(self, args, state, control, **given):
        if state.global_step == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["ness", "gpm"])
def test_after_an_interrupt_the_task_is_still_open(name, tmp_path):
    torch.manual_seed(3)
    encoder, stream = Encoder(bert()), two_tasks(token_batch)
    model = TaskModel(encoder, encoder.width, [3, 3])
    callback = NullSpaceCallback(model, strict(name))
    learn_by_trainer(callback, stream[:1], tmp_path)
    before, examples = copy.deepcopy(model), callback.begin_task(stream[1])
    options = {"train_dataset": examples, "callbacks": [callback, Interrupting()]}
    interrupted = transformers.Trainer(callback.module, arguments(tmp_path, **DECAYING), **options)
    with pytest.raises(KeyboardInterrupt):
        interrupted.train()
    assert callback.tasks_done == 1
    trainer_of(callback, examples, tmp_path, **DECAYING).train()
    assert callback.tasks_done == 2
    assert not nesskit.adapted_layers(model)
    old, new = (features_of(model, task.train.x) - features_of(before, task.train.x) for task in stream)
    assert old.abs().max() < 1e-5
    assert new.abs().max() > 1e-2


def images():
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(48) % 2
    x = (torch.rand(48, 1, 4, 4, generator=draw) * 100 + 150 * y[:, None, None, None]).to(torch.uint8)
    normalisation = nesskit.Normalisation((0.5,), (0.25,))
    return TaskStream(
        "images", [Task("bright", ("no", "yes"), Examples(x, y), Examples(x[:0], y[:0]), Examples(x, y), normalisation)]
    )


def test_images_are_normalised_and_the_trainer_evaluates_them(tmp_path):
    stream = images()
    torch.manual_seed(0)
    model = TaskModel(nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU()), 8, [2])
    callback = NullSpaceCallback(model, "ness")
    options = {
        "train_dataset": callback.begin_task(stream[0]),
        "eval_dataset": callback.examples(stream[0].test),
        "callbacks": [callback],
        "compute_metrics": lambda out: {"accuracy": float((out.predictions.argmax(1) == out.label_ids).mean())},
    }
    trainer = transformers.Trainer(callback.module, arguments(tmp_path), **options)
    trainer.train()
    metrics = trainer.evaluate()
    logits = model(stream[0].normalise(stream[0].test.x), 0)
    expected = nn.functional.cross_entropy(logits, stream[0].test.y)
    assert metrics["eval_accuracy"] == 1.0
    assert metrics["eval_loss"] == pytest.approx(float(expected.detach()), rel=1e-4)


# ---------------------------------------------------------------------------------------------------- what is refused


def trainer_of(callback, examples, folder, module=None, **changes):
    optimizers = changes.pop("optimizers", (None, None))
    options = {"train_dataset": examples, "callbacks": [callback], "optimizers": optimizers}
    return transformers.Trainer(module or callback.module, arguments(folder, **changes), **options)


def test_calls_in_the_wrong_order_are_refused(tmp_path):
    model, stream = text_model(tasks=1), text_stream(0)
    callback = NullSpaceCallback(model, ness())
    with pytest.raises(TrainingError, match="no task is open that could end"):
        callback.end_task()
    with pytest.raises(TrainingError, match=r"no task was begun: call begin_task\(task\) before"):
        trainer_of(callback, callback.examples(stream[0].train), tmp_path).train()
    early = torch.optim.SGD(model.backbone.parameters(), lr=0.1)
    examples = callback.begin_task(stream[0])
    with pytest.raises(TrainingError, match="the optimizer was made of other parameters"):
        trainer_of(callback, examples, tmp_path, optimizers=(early, None)).train()
    with pytest.raises(TrainingError, match=r"task 1 \('words 0'\) has not ended: train\(\), or end_task\(\)"):
        callback.begin_task(stream[1])
    with pytest.raises(SettingsError, match="leave it at 0 and set callback"):
        trainer_of(callback, examples, tmp_path, label_smoothing_factor=0.1).train()
    other = NullSpaceCallback(text_model(), ness()).module
    with pytest.raises(TrainingError, match=r"trains another model than callback\.module"):
        trainer_of(callback, examples, tmp_path, module=other).train()
    callback.end_task()
    with pytest.raises(TrainingError, match=r"task 2 \('words 1'\) has 3 classes, but the heads .* are for 3$"):
        callback.begin_task(stream[1])


@pytest.mark.parametrize("name", ["joint", "hat", "dfgp", "fs-dgpm"])
def test_methods_whose_steps_the_trainer_cannot_take_are_refused(name):
    sentence = "learns all tasks at once" if name == "joint" else "has training steps of its own"
    with pytest.raises(SettingsError, match=rf"method '{name}' {sentence}, .*: use nesskit\.fit"):
        NullSpaceCallback(text_model(), name)


def test_it_is_a_callback_of_transformers_and_needs_it_only_when_it_is_made(monkeypatch):
    callback = NullSpaceCallback(text_model())
    assert isinstance(callback, transformers.TrainerCallback)
    assert isinstance(callback, NullSpaceCallback)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SettingsError, match=r"pip install 'nesskit\[text\]'"):
        NullSpaceCallback(text_model)
