"""Inputs of several tensors, padding, and inputs that a dataset reads: each as the plain way of saying the same."""

import copy
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, Dataset, IterableDataset

from nesskit import (
    Examples,
    Fields,
    Limits,
    Normalisation,
    Task,
    TaskModel,
    TaskStream,
    TrainingSettings,
    build_model,
    collect_inputs,
    collect_moments,
    fit,
)
from nesskit.errors import DataError, NesskitError, SettingsError, TrainingError
from nesskit.methods import METHODS, make_method
from nesskit.methods.remembered import Remembered, size_of
from nesskit.methods.subspace import batch_means
from nesskit.runs.events import EpochFinished
from nesskit.settings import METHOD_SETTINGS
from nesskit.streams.base import split_validation
from nesskit.streams.batches import TaskData, pieces
from nesskit.streams.checksums import task_checksum
from nesskit.streams.fields import OnDisk, joined
from nesskit.training.graphs import make_steps

VOCABULARY, LENGTH, WIDTH, CLASSES = 24, 9, 12, 3
CPU = torch.device("cpu")
MAKES_NO_SENSE = {"dfgp", "hat"}  # mixes inputs; knows its own networks alone


def sentences(number, count=32, kind=torch.int64):
    """Sentences of 1 … LENGTH tokens, right-padded by 0; most of their tokens are those of their class."""
    draw = torch.Generator().manual_seed(number)
    y = torch.randint(0, CLASSES, (count,), generator=draw)
    tokens = 1 + (y[:, None] * 7 + number + torch.randint(0, 9, (count, LENGTH), generator=draw)) % (VOCABULARY - 1)
    lengths = torch.randint(1, LENGTH + 1, (count,), generator=draw)
    mask = (torch.arange(LENGTH) < lengths[:, None]).to(kind)
    return {"input_ids": (tokens * mask).to(kind), "attention_mask": mask}, y


def task(number, valid=8, made=lambda part, x: x):
    parts = []
    for part, count in (("train", 32), ("valid", valid), ("test", 16)):
        x, y = sentences(3 * number + len(parts), count)
        parts.append(Examples(made(part, x), y))
    return Task(f"task {number}", ("a", "b", "c"), *parts)


def stream(tasks=3, **options):
    return TaskStream("sentences", [task(number, **options) for number in range(tasks)])


class Encoder(nn.Module):
    """One layer of attention, written out or torch's own; the mean over tokens."""

    def __init__(self, attention="written out"):
        super().__init__()
        self.attention = attention
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        if attention == "written out":
            self.project = nn.Linear(WIDTH, 3 * WIDTH)
        else:
            self.attend = nn.MultiheadAttention(WIDTH, 2, batch_first="time" not in attention)
        self.first, self.second = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    def forward(self, input_ids, attention_mask):
        x, real = self.embedding(input_ids), attention_mask.bool()
        if self.attention == "written out":
            q, k, v = self.project(x).chunk(3, dim=-1)
            x = x + F.scaled_dot_product_attention(q, k, v, real[:, None, :])
        else:
            x = x + self._attend(x, real)
        x = x + self.second(F.gelu(self.first(x)))
        return (x * real[..., None]).sum(1) / real.sum(1, keepdim=True)

    def _attend(self, x, real):
        x = x.transpose(0, 1) if "time" in self.attention else x
        if self.attention.startswith("told"):
            y, _ = self.attend(x, x, x, key_padding_mask=~real)
        else:
            length = real.shape[1]
            allowed = real[:, None, :].expand(-1, length, -1).repeat_interleave(2, dim=0)  # one for each head
            y, _ = self.attend(x, x, x, attn_mask=~allowed)
        return y.transpose(0, 1) if "time" in self.attention else y


def network(tasks=3, seed=5):
    torch.manual_seed(seed)
    return TaskModel(Encoder(), WIDTH, [CLASSES] * tasks)


def training(**changes):
    return TrainingSettings(**{"epochs": 2, "lr": 0.1, "batch_size": 8, "evaluation_batch_size": 8, **changes})


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


# Fields -------------------------------------------------------------------------------------------------------------


def test_fields_are_rows_and_a_mapping():
    x, _ = sentences(0, 5)
    fields = Fields(x)
    assert len(fields) == 5
    assert list(fields) == ["input_ids", "attention_mask"]
    assert len(fields.keys()) == 2
    assert dict(fields) == dict(**fields) == dict(fields.items())
    assert "input_ids" in fields
    assert "labels" not in fields
    rows = torch.tensor([3, 1])
    assert torch.equal(fields[rows]["input_ids"], x["input_ids"][rows])
    assert torch.equal(fields[1:3]["attention_mask"], x["attention_mask"][1:3])
    assert fields.nbytes == 2 * 5 * LENGTH * 8
    assert [len(part) for part in fields.split(2)] == [2, 2, 1]
    copied = fields.clone()
    copied["input_ids"].zero_()
    assert fields["input_ids"].any()


@pytest.mark.parametrize("count", [1, 7, 8, 9, 17])
def test_pieces_of_fields_are_those_of_their_tensors(count):
    x, _ = sentences(0, count)
    for company in (False, True):
        whole, parts = pieces(x["input_ids"], 8, company), pieces(Fields(x), 8, company)
        assert len(whole) == len(parts)
        assert all(torch.equal(part["input_ids"], tensor) for part, tensor in zip(parts, whole, strict=True))


def test_batches_lose_the_columns_that_are_padding_in_all_of_their_rows():
    tokens = torch.tensor([[1, 2, 0, 0], [3, 0, 0, 0], [4, 5, 6, 0]])
    x = {
        "input_ids": tokens,
        "attention_mask": (tokens > 0).long(),
        "vectors": torch.ones(3, 4, 2),
        "age": tokens[:, 0],
    }
    data = TaskData(Task("t", ("a",), *[Examples(x, torch.zeros(3, dtype=torch.int64))] * 3), 0, CPU)
    batch = data.batch(data.train, torch.tensor([1, 0])).x
    assert torch.equal(batch["input_ids"], torch.tensor([[3, 0], [1, 2]]))
    assert batch["attention_mask"].shape == (2, 2)
    assert batch["vectors"].shape == (2, 2, 2)
    assert batch["age"].tolist() == [3, 1]
    assert data.batch(data.train, slice(0, 3)).x["input_ids"].shape == (3, 3)


def test_joined_sentences_are_padded_to_the_longest():
    one, other = Fields(sentences(0, 4)[0]).with_columns(3), Fields(sentences(1, 2)[0]).with_columns(5)
    both = joined([one, other])
    assert both["input_ids"].shape == both["attention_mask"].shape == (6, 5)
    assert torch.equal(both["input_ids"][:4, :3], one["input_ids"])
    assert not both["attention_mask"][:4, 3:].any()
    with pytest.raises(DataError, match="must have the same fields: input_ids, attention_mask"):
        joined([one, torch.zeros(2, 5)])


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_integers_stay_what_they_are_and_floats_become_float32(kind):
    x, y = sentences(0, kind=kind)
    x["weight"], x["flag"] = torch.rand(len(y), dtype=torch.float64), y > 0
    batch = TaskData(Task("t", ("a", "b", "c"), *[Examples(x, y)] * 3), 0, CPU)
    seen = batch.batch(batch.train, slice(0, 4)).x
    kinds = {name: tensor.dtype for name, tensor in seen.items()}
    assert kinds == {"input_ids": kind, "attention_mask": kind, "weight": torch.float32, "flag": torch.bool}


def test_the_network_gets_fields_by_name_and_floats_in_its_type():
    class Note(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 2).double()

        def forward(self, ids, weight):
            self.kinds = ids.dtype, weight.dtype
            return self.layer(weight)

    model = TaskModel(Note(), 2, [3])
    assert model(Fields({"ids": torch.ones(4, 1, dtype=torch.int32), "weight": torch.ones(4, 1)}), 0).shape == (4, 3)
    assert model.backbone.kinds == (torch.int32, torch.float64)


LABELS = torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ({}, "task 't', train examples: a dict of inputs is empty"),
        (
            {"ids": torch.zeros(4, 2), "mask": torch.zeros(3, 2)},
            "differ in their numbers of rows: ids has 4, mask has 3",
        ),
        ({"ids": torch.zeros(3, 2)}, "3 inputs but 4 labels"),
        ({"ids": torch.tensor(3)}, "the field 'ids' is a single number"),
        ({0: torch.zeros(4, 2)}, "has the key 0: name each tensor"),
        (
            {"ids": torch.zeros(4, 2), "age": torch.full((4,), torch.nan)},
            "the field 'age' holds NaN or infinite values",
        ),
        ({"ids": torch.zeros(4, 2).to_sparse()}, "the field 'ids' must be dense and real"),
        ({"ids": torch.zeros(4, 2, dtype=torch.complex64)}, "the field 'ids' must be dense and real"),
        ({"ids": [["a", "b"]] * 4}, "must be a pair of inputs and labels, as tensors or arrays"),
    ],
)
def test_bad_fields_are_refused_in_one_sentence(x, message):
    with pytest.raises(DataError, match=message):
        Task("t", ("a",), *[Examples(x, LABELS)] * 3)


def test_parts_of_a_task_must_have_the_same_fields():
    good, other = {"ids": torch.zeros(4, 2)}, {"ids": torch.zeros(4, 3)}
    with pytest.raises(DataError, match=r"test examples: shape \{'ids': \(3,\)\} differs from \{'ids': \(2,\)\}"):
        Task("t", ("a",), Examples(good, LABELS), Examples(good, LABELS), Examples(other, LABELS))
    with pytest.raises(DataError, match="valid examples: shape"):
        Task("t", ("a",), Examples(good, LABELS), Examples(torch.zeros(4, 2), LABELS), Examples(good, LABELS))
    with pytest.raises(
        DataError, match="a normalisation is for images, given as one tensor, and these are the fields ids"
    ):
        Task("t", ("a",), *[Examples(good, LABELS)] * 3, normalisation=Normalisation((0.5,), (0.5,)))


def test_validation_is_split_from_dicts_too():
    x, y = sentences(0, 10)
    train, valid = split_validation(Examples(x, y), 0.2)
    assert (len(train.x), len(valid.x)) == (8, 2)
    assert torch.equal(valid.x["input_ids"], x["input_ids"][8:])


def test_networks_by_name_and_mixing_methods_refuse_fields():
    with pytest.raises(SettingsError, match="has the fields input_ids, attention_mask: give fit"):
        build_model(stream())
    with pytest.raises(SettingsError, match=r"mixtures of two inputs, .* cannot be mixed \(input_ids: torch.int64"):
        fit(network(), stream(), "dfgp", training())
    tokens = stream(made=lambda part, x: x["input_ids"])
    model = TaskModel(nn.Sequential(nn.Embedding(VOCABULARY, 2), nn.Flatten()), 2 * LENGTH, [CLASSES] * 3)
    with pytest.raises(SettingsError, match=r"cannot be mixed \(torch.int64 of shape \(9,\)\)"):
        fit(model, tokens, "dfgp", training())
    with pytest.raises(NesskitError, match="units"):
        fit(network(), stream(), "hat", training())


def test_a_network_that_takes_other_names_is_refused_before_training():
    with pytest.raises(TrainingError, match=r"does not take the inputs of task 1 .*unexpected keyword argument"):
        fit(TaskModel(nn.Linear(LENGTH, WIDTH), WIDTH, [CLASSES] * 3), stream(), "finetune", training())


# Moments --------------------------------------------------------------------------------------------------------------


def moments_of_single_sentences(model, x):
    """The sum over sentences that were never padded."""
    total = {}
    for ids, mask in zip(x["input_ids"], x["attention_mask"], strict=True):
        short = ids[mask.bool()].unsqueeze(0)
        for name, moment in collect_moments(
            model, [{"input_ids": short, "attention_mask": torch.ones_like(short)}]
        ).items():
            total[name] = total[name] + moment if name in total else moment
    return total


@pytest.mark.parametrize("attention", ["written out", "told", "untold", "told, time first", "untold, time first"])
def test_padding_counts_in_no_moment(attention):
    torch.manual_seed(0)
    model, (x, _) = Encoder(attention).double(), sentences(1, 12)
    truth, found = moments_of_single_sentences(model, x), collect_moments(model, [Fields(x)])
    assert found.keys() == truth.keys()
    assert len(found) >= 4
    for name, moment in found.items():
        assert moment.count == truth[name].count == int(x["attention_mask"].sum()), name
        error = (moment.matrix - truth[name].matrix).norm() / truth[name].matrix.norm()
        assert error < 1e-9, name


def test_without_a_mask_padding_would_count():
    torch.manual_seed(0)
    model, (x, _) = Encoder().double(), sentences(1, 12)

    class Unmasked(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = model

        def forward(self, input_ids, mask):
            return self.encoder(input_ids, mask)

    truth = moments_of_single_sentences(model, x)
    found = collect_moments(Unmasked(), [{"input_ids": x["input_ids"], "mask": x["attention_mask"]}])
    for name, moment in found.items():
        own = truth[name.removeprefix("encoder.")]
        assert moment.count == 12 * LENGTH > own.count
        assert (moment.matrix - own.matrix).norm() > 0.01 * own.matrix.norm()


def test_the_first_samples_count_without_their_padding():
    torch.manual_seed(0)
    model, (x, _) = Encoder().double(), sentences(1, 12)
    names = list(collect_moments(model, [Fields(x)]))
    truth = moments_of_single_sentences(model, Fields(x)[:5])
    for batch in (x, Fields(x)):
        found = collect_moments(model, [batch], samples=dict.fromkeys(names, 5))
        for name in names:
            assert found[name].count == truth[name].count
            assert torch.allclose(found[name].matrix, truth[name].matrix, rtol=1e-9, atol=1e-12)


def test_means_of_a_batch_and_collected_inputs_are_those_without_padding():
    torch.manual_seed(0)
    model, (x, _) = Encoder().double(), sentences(1, 12)
    real = model.embedding(x["input_ids"])[x["attention_mask"].bool()].detach()
    (means,) = batch_means(model, [Fields(x)])
    assert torch.allclose(means["project"], real.mean(0, keepdim=True))
    assert torch.equal(collect_inputs(model, [Fields(x)], "project"), real)


def test_a_mask_of_who_attends_to_whom_hides_nothing():
    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x, attention_mask):
            return self.layer(x)

    x = torch.randn(9, 4, 4)  # as many positions as the mask has entries
    moments = collect_moments(Causal(), [{"x": x, "attention_mask": torch.ones(6, 6).tril()}])
    assert moments["layer"].count == 36


# Methods --------------------------------------------------------------------------------------------------------------


def learn(name, tasks, folder=None, limits=None, listeners=(), settings=None):
    model, method = network(), make_method(name, settings)
    run = fit(model, tasks, method, training(), seed=1, folder=folder, limits=limits, listeners=listeners)
    return model, method, run


OF_DATA = METHOD_SETTINGS["ness"](memory="data", moment_batch_size=8)
RUNS = [(name, None) for name in METHODS if name not in MAKES_NO_SENSE] + [("ness", OF_DATA)]


@pytest.mark.parametrize(("name", "settings"), RUNS, ids=[f"{n}{'-data' * bool(s)}" for n, s in RUNS])
def test_every_method_learns_sentences_and_goes_on_where_it_was_stopped(name, settings, tmp_path):
    whole, method, run = learn(name, stream(), settings=settings)
    assert run.finished

    def interrupt(event):
        if isinstance(event, EpochFinished) and event.epoch == 0:
            raise KeyboardInterrupt

    # Between tasks, and in the middle of each that is left; joint training has but one.
    stopped = learn(name, stream(), tmp_path / "run", Limits(tasks=1, checkpoint_epochs=1), settings=settings)[2]
    if name != "joint":
        assert stopped.status == "stopped"
        assert (
            learn(name, stream(), tmp_path / "run", Limits(checkpoint_epochs=1), [interrupt], settings)[2].status
            == "stopped"
        )
    resumed, again, rest = learn(name, stream(), tmp_path / "run", settings=settings)
    assert rest.finished
    assert_same(weights(resumed), weights(whole))
    assert torch.equal(torch.tensor(rest.accuracy).nan_to_num(), torch.tensor(run.accuracy).nan_to_num())
    assert again.memory_report() == method.memory_report()


# On disk --------------------------------------------------------------------------------------------------------------


class Files(Dataset):
    """Single inputs, each in a file of its own; counts how many of them are held at once."""

    def __init__(self, folder, x):
        folder.mkdir()
        self.folder, self.fields = folder, isinstance(x, dict)
        self.length = len(next(iter(x.values())) if self.fields else x)
        self.held = self.most = self.read = 0
        for number in range(self.length):
            item = {name: tensor[number].clone() for name, tensor in x.items()} if self.fields else x[number].clone()
            torch.save(item, folder / f"{number}.pt")

    def __len__(self):
        return self.length

    def __getitem__(self, number):
        item = torch.load(self.folder / f"{number}.pt", weights_only=True)
        self.held, self.read = self.held + 1, self.read + 1
        self.most = max(self.most, self.held)
        weakref.finalize(next(iter(item.values())) if self.fields else item, self._forget)
        return item

    def _forget(self):
        self.held -= 1


def on_disk(folder, tasks=2, wrap=lambda dataset: dataset):
    """The stream of sentences with every part's inputs in files, and the datasets that read them."""
    folder.mkdir()
    read = []

    def made(part, x):
        read.append(Files(folder / f"{part}-{len(read)}", x))
        return wrap(read[-1])

    return stream(tasks, made=made), read


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("finetune", None),
        ("ness", METHOD_SETTINGS["ness"](moment_batch_size=8)),
        ("ness", OF_DATA),
        ("ewc", METHOD_SETTINGS["ewc"](fisher_batch=8)),
        ("joint", None),
    ],
)
def test_a_stream_on_disk_is_learned_batch_by_batch_as_one_in_memory(name, settings, tmp_path):
    files, datasets = on_disk(tmp_path / "files")
    model, _, run = learn(name, files, settings=copy.deepcopy(settings))
    other, _, expected = learn(name, stream(2), settings=settings)
    assert_same(weights(model), weights(other))
    assert torch.equal(torch.tensor(run.accuracy).nan_to_num(), torch.tensor(expected.accuracy).nan_to_num())
    assert max(dataset.most for dataset in datasets) <= 8
    assert all(dataset.held == 0 for dataset in datasets)
    assert all(dataset.read for dataset in datasets)


@pytest.mark.parametrize("name", ["gpm", "a-gem", "fs-dgpm", "ness-private", "ness-data"])
def test_what_methods_remember_of_a_disk_survives_a_restart(name, tmp_path):
    settings = OF_DATA if name == "ness-data" else None
    name = name.removesuffix("-data")
    files, _ = on_disk(tmp_path / "files", 3)
    learn(name, files, tmp_path / "run", Limits(tasks=2), settings=settings)
    model, _, run = learn(name, stream(), tmp_path / "run", settings=settings)  # the same data, now in memory
    assert run.finished
    assert_same(weights(model), weights(learn(name, stream(), settings=settings)[0]))


def test_moments_and_checksums_of_files_are_those_of_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr("nesskit.streams.checksums.ROWS", 5)
    model, plain = network().backbone, task(0)
    files = on_disk(tmp_path / "files", 1)[0][0]
    found = collect_moments(model, [files.normalise(part) for part in files.train.x.split(8)])
    truth = collect_moments(model, [plain.normalise(part) for part in plain.train.x.split(8)])
    for name in truth:
        assert torch.equal(found[name].matrix, truth[name].matrix)
    assert task_checksum(files) == task_checksum(plain)


def test_images_of_a_dataset_are_normalised_as_tensors_are(tmp_path, monkeypatch):
    monkeypatch.setattr("nesskit.streams.checksums.ROWS", 4)
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (6, 3, 4, 4), generator=draw, dtype=torch.uint8)
    y, how = torch.zeros(6, dtype=torch.int64), Normalisation((0.4, 0.5, 0.6), (0.2, 0.3, 0.1))
    plain = Task("t", ("a",), *[Examples(x, y)] * 3, normalisation=how)
    files = Task("t", ("a",), *[Examples(Files(tmp_path / "x", x), y)] * 3, normalisation=how)
    rows = torch.tensor([4, 0, 5])
    one, other = (data.batch(data.train, rows).x for data in (TaskData(plain, 0, CPU), TaskData(files, 0, CPU)))
    assert torch.equal(one, other)
    assert files.input_shape == plain.input_shape == (3, 4, 4)
    assert task_checksum(files) == task_checksum(plain)


def test_of_a_loader_the_dataset_is_taken(tmp_path):
    files, datasets = on_disk(tmp_path / "files", 1, lambda dataset: DataLoader(dataset, batch_size=3, shuffle=True))
    assert files[0].train.x.dataset is datasets[0]
    assert torch.equal(files[0].train.x.read()["input_ids"], task(0).train.x["input_ids"])


def test_what_is_remembered_of_a_disk_is_in_memory(tmp_path):
    data = TaskData(on_disk(tmp_path / "files", 1)[0][0], 0, CPU)
    remembered = Remembered.of(data, torch.tensor([2, 5]))
    assert isinstance(data.train.x, OnDisk)
    assert torch.equal(remembered.x["input_ids"], task(0).train.x["input_ids"][[2, 5]])
    assert size_of([remembered]) == 2 * (2 * LENGTH + 1) * 8
    assert data.train.x.nbytes == 32 * 2 * LENGTH * 8


@pytest.mark.parametrize(("made", "replayed"), [(lambda part, x: x, False), (lambda part, x: x["vectors"], True)])
def test_steps_are_replayed_only_where_batches_are_made_alike(made, replayed, monkeypatch):
    asked = []

    def steps(step, replayable, optimizer, device):
        asked.append(replayable)
        return make_steps(step, replayable, optimizer, device)

    monkeypatch.setattr("nesskit.training.trainer.make_steps", steps)

    class Mean(nn.Linear):
        def forward(self, vectors, **others):
            return super().forward(vectors)

    tasks = stream(1, made=lambda part, x: made(part, {**x, "vectors": F.one_hot(x["input_ids"][:, 0], 24).float()}))
    fit(TaskModel(Mean(VOCABULARY, WIDTH), WIDTH, [CLASSES]), tasks, "finetune", training())
    assert asked == [replayed]


def test_many_items_are_read_at_once_where_a_dataset_can():
    class Together(Dataset):
        def __init__(self):
            self.asked = []

        def __len__(self):
            return 4

        def __getitems__(self, numbers):
            self.asked.append(numbers)
            return [{"ids": torch.tensor([number])} for number in numbers]

    dataset = Together()
    assert OnDisk(dataset)[torch.tensor([3, 1])].read()["ids"].tolist() == [[3], [1]]
    assert dataset.asked == [[3, 1]]


class Endless(IterableDataset):
    def __iter__(self):
        return iter(())


class Unmeasured(Dataset):
    def __getitem__(self, number):
        return torch.zeros(2)


class Items(Dataset):
    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, number):
        return self.items[number]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (Endless(), "train examples: inputs cannot come from an IterableDataset"),
        (DataLoader(Endless()), "train examples: inputs cannot come from an IterableDataset"),
        (Unmeasured(), "Unmeasured has no __len__"),
        (Items(*[(torch.zeros(2), 0)] * 4), "items of a dataset must be inputs alone, .*; what came was tuple"),
        (Items(*[torch.zeros(2)] * 3), "3 inputs but 4 labels"),
        (Items(*[torch.full((2,), torch.nan)] * 4), "rows of the dataset Items: the inputs hold NaN"),
    ],
)
def test_bad_datasets_are_refused_in_one_sentence(x, message):
    with pytest.raises(DataError, match=message):
        Task("t", ("a",), *[Examples(x, LABELS)] * 3)


def test_a_row_that_does_not_fit_is_named_when_it_is_read():
    x = OnDisk(Items(torch.zeros(2), torch.zeros(3), torch.full((2,), torch.inf)))
    with pytest.raises(DataError, match="tensors of one shape"):
        x[:2].read()
    with pytest.raises(DataError, match="the inputs hold NaN or infinite values"):
        x[torch.tensor([0, 2])].read()
