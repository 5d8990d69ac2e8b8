"""What a task takes for its examples, and that nothing wrong gets in: it would be found out only after training."""

import struct

import numpy as np
import pytest
import torch
from archives import cifar10_members, tar_gz
from torch import nn

import nesskit
from nesskit import Examples, Moment, Normalisation, Spectrum, Task, TaskModel, TaskStream, TrainingSettings
from nesskit.errors import DataError, SpectrumError
from nesskit.streams.batches import TaskData, pieces
from nesskit.streams.cifar import read_cifar10
from nesskit.streams.pickles import read_miniimagenet
from nesskit.streams.svhn import read_svhn

PICTURES = torch.randint(0, 256, (8, 3, 4, 4), dtype=torch.uint8)
LABELS = torch.arange(8) % 2


def task(x=PICTURES, y=LABELS, **options):
    return Task("t", ("a", "b"), *[Examples(x, y)] * 3, **options)


def test_arrays_are_taken_like_tensors():
    ours, theirs = task(PICTURES.numpy(), LABELS.numpy()), task()
    assert torch.equal(ours.train.x, theirs.train.x)
    assert torch.equal(ours.normalise(ours.train.x), theirs.normalise(theirs.train.x))
    assert ours.train.y.dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16])
def test_images_of_other_integers_are_refused(dtype):
    with pytest.raises(DataError, match=r"images must be uint8 .* or floating, got"):
        task(PICTURES.to(dtype))


def test_numbers_of_tokens_stay_what_they_are():
    tokens = torch.randint(0, 1000, (8, 5))
    assert torch.equal(task(tokens).normalise(tokens), tokens)


RGB = Normalisation((0.1, 0.5, 0.9), (0.2, 0.2, 0.2))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: task(y=torch.eye(2, dtype=torch.int64)[LABELS]), "they look one-hot: give the number of each class"),
        (lambda: task(y=LABELS.float()), "labels must be int64, got torch.float32"),
        (lambda: task(y=LABELS + 1), "labels run from 1 to 2"),
        (lambda: task(torch.rand(8, 6, 5, 3), normalisation=RGB), "they look like channels last"),
        (lambda: task(torch.rand(8, 2, 5, 5), normalisation=RGB), "a normalisation of 3 channels does not fit"),
        (lambda: task(torch.full((8, 4), float("nan"))), "NaN or infinite"),
        (lambda: task(torch.eye(8).to_sparse()), "must be dense and real"),
        (lambda: task(torch.ones(8, 3, dtype=torch.cfloat)), "must be dense and real"),
        (lambda: task(PICTURES[:0], LABELS[:0]), "there is no sample"),
        (lambda: task("pictures"), "must be a pair of inputs and labels"),
        (lambda: Task("t", ("a",), 3, 3, 3), "must be a pair of inputs and labels"),
        (lambda: Normalisation((0.0,) * 3, (1.0, 0.0, 1.0)), "finite means and stds above 0"),
        (lambda: Normalisation((0.0,) * 3, (1.0,)), "a mean and a std for each channel, got 3 and 1"),
        (lambda: Normalisation((float("nan"),), (1.0,)), "finite means"),
    ],
)
def test_what_no_task_can_be_made_of_is_refused_in_a_sentence(make, sentence):
    with pytest.raises(DataError, match=sentence) as caught:
        make()
    assert "\n" not in str(caught.value)


# ---- moments and spectra


@pytest.mark.parametrize(
    "x",
    [torch.ones(3, 4, dtype=torch.cfloat), np.ones((3, 4), dtype=complex), torch.eye(4).to_sparse(), "text", None],
    ids=["complex", "complex array", "sparse", "text", "nothing"],
)
def test_a_moment_takes_real_dense_rows_only(x):
    moment = Moment(4)
    with pytest.raises(SpectrumError):
        moment.update(x)
    assert moment.count == 0
    assert not moment.matrix.any()


def test_a_spectrum_takes_orthonormal_directions_only():
    values = torch.tensor([2.0, 1.0])
    for directions in (torch.tensor([[1.0, 0.5], [0.0, 1.0]]), 2 * torch.eye(2), torch.full((2, 2), float("nan"))):
        with pytest.raises(SpectrumError, match="directions must be orthonormal"):
            Spectrum(values, directions)
    Spectrum(values, torch.eye(2))


# ---- batches of one


@pytest.mark.parametrize(
    ("count", "size", "company", "expected"),
    [
        (7, 3, True, [3, 4]),
        (7, 3, False, [3, 3, 1]),
        (6, 3, True, [3, 3]),
        (1, 3, True, [1]),
        (3, 1, True, [1, 1, 1]),
        (8, 3, True, [3, 3, 2]),
    ],
)
def test_a_row_that_is_left_over_joins_the_last_piece(count, size, company, expected):
    parts = pieces(torch.arange(count), size, company)
    assert [len(part) for part in parts] == expected
    assert torch.equal(torch.cat(list(parts)), torch.arange(count))


@pytest.mark.parametrize("norm", [{"track_running_stats": False}, {}], ids=["batch", "running"])
@pytest.mark.parametrize("method", ["finetune", "ness", "gpm"])
def test_no_batch_of_one_reaches_batchnorm(method, norm):
    x = torch.rand(33, 6)
    tasks = [Task(f"t{i}", ("a", "b"), *[Examples(x, torch.arange(33) % 2)] * 3) for i in range(2)]
    backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, **norm), nn.ReLU())
    settings = TrainingSettings(epochs=1, batch_size=16, evaluation_batch_size=8)
    run = nesskit.fit(TaskModel(backbone, 8, [2, 2]), TaskStream("own", tasks), method, settings)
    assert run.finished
    sizes = [len(batch.y) for batch in TaskData(tasks[0], 0, torch.device("cpu"), True).batches(tasks[0].test, 8)]
    assert sizes == [8, 8, 8, 9]


# ---- archives


def test_gzips_own_checksum_is_compared(tmp_path):
    path = tmp_path / "cifar-10-binary.tar.gz"
    content = tar_gz(cifar10_members(1))
    path.write_bytes(content)
    read_cifar10(path)
    path.write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])
    with pytest.raises(DataError, match=r"cannot be read as a tar\.gz archive"):
        read_cifar10(path)


def test_a_small_pickle_of_many_objects_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("nesskit.streams.pickles.MOST_READS", 10_000)  # a five-hundredth, as the file is
    path = tmp_path / "train.pkl"
    path.write_bytes(b"\x80\x02" + b"]" * 12_000 + b".")
    with pytest.raises(DataError, match="holds more than any data set here"):
        read_miniimagenet(path)


def test_a_long_name_in_a_mat_file_is_refused(tmp_path):
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    flags = struct.pack("<IIII", 6, 8, 6, 0)
    shape = struct.pack("<IIii", 5, 8, 1, 1)
    name = struct.pack("<II", 1, 1 << 30)
    body = flags + shape + name
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(header + struct.pack("<II", 14, len(body)) + body)
    with pytest.raises(DataError, match="the name of a variable claims to be 1073741824 bytes long"):
        read_svhn(path)
