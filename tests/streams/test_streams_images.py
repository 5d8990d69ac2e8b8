"""The split contract of the benchmarks on real images, on small archives in the official formats."""

import numpy as np
import pytest
import sklearn.utils
import torch
from archives import CIFAR10_NAMES, CIFAR100_NAMES, files_of, number_of, tar_gz, write_mirror

from nesskit.errors import DataError, UnknownNameError
from nesskit.streams import fetch_stream, load_stream
from nesskit.streams.base import Examples, split_validation
from nesskit.streams.names import SPLITS
from nesskit.streams.pooling import halved

STREAMS = ("split-cifar100", "five-datasets", "split-miniimagenet")
EVERY = (*STREAMS, "split-cifar100-16")  # whose pixels are averages, in which the archives' tags are lost
# tasks, classes each, training images (with validation) and test images of the small archives
SIZES = {
    "split-cifar100": (10, 10, 200, 20),
    "split-cifar100-16": (10, 10, 200, 20),
    "five-datasets": (5, 10, 200, 40),
    "split-miniimagenet": (20, 5, 20, 5),
}


@pytest.fixture(scope="session")
def mirrors(tmp_path_factory):
    """A mirror for each stream; the two of CIFAR-100 share theirs, as they share the archive."""
    found = {stream: write_mirror(tmp_path_factory.mktemp(stream), files_of(stream)) for stream in STREAMS}
    return {**found, "split-cifar100-16": found["split-cifar100"]}


@pytest.fixture
def load(mirrors, monkeypatch):
    """Loads a stream from its mirror."""

    def put(stream, seed=0, share=0.05, split="nesskit"):
        monkeypatch.setenv("NESSKIT_MIRROR", str(mirrors[stream]))
        return load_stream(stream, seed, share, split)

    return put


def parts_of(task):
    return task.train, task.valid, task.test


def label_of(x):
    """The labels that the archives wrote into the pixels; borders of 2 pixels are skipped."""
    border = 2 if x.shape[-1] == 32 and not x[:, 0, 0].any() else 0
    return x[:, 0, border, border].long()


@pytest.mark.parametrize("stream", EVERY)
def test_sizes_and_classes(load, stream):
    tasks, classes, train, test = SIZES[stream]
    loaded = load(stream)
    assert loaded.name == stream
    assert len(loaded) == tasks
    for task in loaded:
        # Small CIFAR-10 has 5 batches of 40 images, everything else 20 (MiniImageNet 4) of each class.
        valid = int(0.05 * train)
        assert [len(part.y) for part in parts_of(task)] == [train - valid, valid, test]
        assert len(task.classes) == classes
        assert sorted(task.test.y.unique().tolist()) == list(range(classes))
        assert task.train.x.dtype == torch.uint8


@pytest.mark.parametrize("stream", STREAMS)
def test_no_image_is_lost_or_seen_twice(load, stream):
    for task in load(stream, share=0.5):
        if task.train.x.shape[-1] == 32 and not task.train.x[:, 0, 0].any():
            numbers = [number_of(part.x[:, :, 2:, 2:]) for part in parts_of(task)]
        else:
            numbers = [number_of(part.x) for part in parts_of(task)]
        if task.name != "CIFAR-10":  # its five batches are numbered one by one
            seen = torch.cat(numbers[:2])
            assert len(seen.unique()) == len(seen)
        assert len(numbers[2].unique()) == len(numbers[2])


@pytest.mark.parametrize("stream", STREAMS)
def test_labels_stay_with_their_images(load, stream):
    for index, task in enumerate(load(stream)):
        for x, y in parts_of(task):
            found = label_of(x)
            if stream == "split-cifar100":
                assert torch.equal(found, 10 * index + y)
            elif stream == "split-miniimagenet":
                assert [task.classes[label] for label in y] == [f"class {label}" for label in found]
            else:
                assert torch.equal(found, y)


@pytest.mark.parametrize("stream", EVERY)
def test_a_data_set_lies_in_memory_once(load, stream):
    storages = {}
    tasks = load(stream)
    for task in tasks:
        for part in parts_of(task):
            storages[part.x.untyped_storage().data_ptr()] = part.x.untyped_storage().nbytes()
            assert part.x.is_contiguous()
    assert len(storages) == (10 if stream == "five-datasets" else 2)
    assert sum(storages.values()) == sum(part.x.numel() for task in tasks for part in parts_of(task))


@pytest.mark.parametrize("stream", EVERY)
def test_order_within_a_task_is_random_and_seeded(load, stream):
    first, again, other = load(stream, seed=1), load(stream, seed=1), load(stream, seed=2)
    for task, same, different in zip(first, again, other, strict=True):
        for part, same_part in zip(parts_of(task), parts_of(same), strict=True):
            assert torch.equal(part.x, same_part.x)
            assert torch.equal(part.y, same_part.y)
        assert not torch.equal(task.train.x, different.train.x)
        assert not torch.equal(task.test.x, different.test.x)
    # 5 test labels may come out sorted by chance in one of twenty tasks, but not in all.
    assert any(not torch.equal(task.test.y, task.test.y.sort().values) for task in first)
    assert any(not torch.equal(task.train.y, task.train.y.sort().values) for task in first)
    assert first[0].classes == again[0].classes


def test_cifar100_comes_in_label_order(load):
    for seed in (0, 1):
        stream = load("split-cifar100", seed)
        assert [name for task in stream for name in task.classes] == CIFAR100_NAMES
    assert stream[3].name == "classes 30 to 39"


@pytest.mark.parametrize("split", SPLITS)
def test_cifar100_at_16_pixels_is_the_same_images_averaged(load, split):
    """In the same order with the same split, against numpy."""
    whole, small = (load(stream, seed=3, share=0.25, split=split) for stream in ("split-cifar100", "split-cifar100-16"))
    assert {task.input_shape for task in small} == {(3, 16, 16)}
    assert small.checksums == whole.checksums
    for task, pooled in zip(whole, small, strict=True):
        assert (pooled.name, pooled.classes) == (task.name, task.classes)
        assert pooled.normalisation == task.normalisation
        for part, pooled_part in zip(parts_of(task), parts_of(pooled), strict=True):
            assert torch.equal(part.y, pooled_part.y)
            squares = part.x.numpy().astype(float).reshape(-1, 3, 16, 2, 16, 2)
            assert np.array_equal(pooled_part.x.numpy(), np.floor(squares.mean((3, 5)) + 0.5))


def test_a_pixel_of_a_halved_image_by_hand():
    x = torch.tensor([[0, 0, 255, 255], [0, 1, 255, 255], [0, 1, 9, 9], [1, 0, 9, 8]], dtype=torch.uint8)
    before = x.clone()
    # 1/4 is rounded to 0, a half to 1, 35/4 to 9; four times 255 does not overflow.
    assert halved(x.view(1, 1, 4, 4)).flatten().tolist() == [0, 255, 1, 9]
    assert torch.equal(x, before)


def test_more_images_than_are_halved_at_once():
    x = torch.arange(2501 * 4).remainder(256).to(torch.uint8).view(2501, 1, 2, 2)
    expected = np.floor(x.numpy().astype(float).mean((2, 3)) + 0.5)
    assert np.array_equal(halved(x).numpy()[:, :, 0, 0], expected)


@pytest.mark.parametrize("x", [torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 5, 4, dtype=torch.uint8)])
def test_what_cannot_be_halved_is_refused(x):
    with pytest.raises(DataError, match="of uint8 with even height and width"):
        halved(x)


@pytest.mark.parametrize("seed", [0, 1, 37])
def test_miniimagenet_is_permuted_as_the_authors_do(load, seed):
    order = np.random.RandomState(seed).permutation(100)
    stream = load("split-miniimagenet", seed)
    assert [name for task in stream for name in task.classes] == [f"class {label}" for label in order]
    np.random.seed(seed)  # noqa: NPY002 - the authors' way
    assert np.array_equal(order, np.random.permutation(100))  # noqa: NPY002
    assert stream[0].input_shape == (3, 84, 84)


def test_five_datasets_come_in_the_papers_order(load):
    stream = load("five-datasets")
    assert [task.name for task in stream] == ["CIFAR-10", "MNIST", "SVHN", "Fashion-MNIST", "notMNIST"]
    assert stream[0].classes == tuple(CIFAR10_NAMES)
    assert stream[1].classes == stream[2].classes == tuple("0123456789")
    assert stream[3].classes[0] == "T-shirt/top"
    assert stream[4].classes == tuple("ABCDEFGHIJ")
    assert [task.train.x.shape[1] for task in stream] == [3, 1, 3, 1, 1]
    assert {task.input_shape for task in stream} == {(3, 32, 32)}


def test_small_grey_images_get_a_black_border_of_two_pixels(load):
    stream = load("five-datasets")
    for index in (1, 3):
        for x, _ in parts_of(stream[index]):
            inner = x[:, :, 2:30, 2:30]
            assert x.shape[1:] == (1, 32, 32)
            assert int(x.sum()) == int(inner.sum()) > 0
    assert stream[4].train.x[:, :, :2].any()  # notMNIST has 32 x 32 pixels of its own


def test_normalisation_of_one_pixel_by_hand(load):
    grey = torch.full((1, 1, 1, 1), 200, dtype=torch.uint8)
    colour = grey.expand(1, 3, 1, 1)
    five = load("five-datasets")
    for task in (five[0], load("split-cifar100")[0]):
        expected = [(200 - 125.3) / 63.0, (200 - 123.0) / 62.1, (200 - 113.9) / 66.7]
        assert task.normalise(colour).flatten().tolist() == pytest.approx(expected)
    expected = [(200 / 255 - 0.4377) / 0.198, (200 / 255 - 0.4438) / 0.201, (200 / 255 - 0.4728) / 0.197]
    assert five[2].normalise(colour).flatten().tolist() == pytest.approx(expected)
    for index, mean, std in ((1, 0.1, 0.2752), (3, 0.2190, 0.3318), (4, 0.4254, 0.4501)):
        assert five[index].normalise(grey).flatten().tolist() == pytest.approx(3 * [(200 / 255 - mean) / std])
    expected = [(200 / 255 - 0.485) / 0.229, (200 / 255 - 0.456) / 0.224, (200 / 255 - 0.406) / 0.225]
    assert load("split-miniimagenet")[0].normalise(colour).flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("stream", STREAMS)
def test_checksums_are_those_of_the_files_read(load, mirrors, stream):
    sums = (mirrors[stream] / "SHA256SUMS").read_text().splitlines()
    assert load(stream).checksums == {name: checksum for checksum, name in (line.split("  ") for line in sums)}
    assert set(fetch_stream(stream)) == set(load(stream).checksums)


def test_validation_is_rounded_down_as_in_the_paper():
    sizes = {50_000: 2500, 60_000: 3000, 73_257: 3662, 16_853: 842, 5000: 250, 2500: 125}
    for count, valid in sizes.items():
        train, held_out = split_validation(Examples(torch.zeros(count, 1), torch.zeros(count)), 0.05)
        assert (len(train.y), len(held_out.y)) == (count - valid, valid)


def test_a_class_without_images_is_named(tmp_path, monkeypatch):
    record = np.zeros((200, 3074), np.uint8)
    record[:, 1] = np.arange(200) % 99  # no image of class 99
    names = "\n".join(CIFAR100_NAMES).encode()
    content = {"train.bin": record.tobytes(), "test.bin": record.tobytes(), "fine_label_names.txt": names}
    archive = tar_gz([(f"cifar-100-binary/{name}", content[name]) for name in content])
    monkeypatch.setenv("NESSKIT_MIRROR", str(write_mirror(tmp_path / "m", {"cifar-100-binary.tar.gz": archive})))
    with pytest.raises(DataError, match="CIFAR-100 has no train image of: thing_99"):
        load_stream("split-cifar100")


def test_a_stream_without_its_data_says_how_to_get_it(monkeypatch):
    with pytest.raises(DataError, match=r"split-miniimagenet needs the file 'train\.pkl'.*Three ways to get it"):
        load_stream("split-miniimagenet")


def test_real_cifar100(real_mirror, monkeypatch):
    monkeypatch.setenv("NESSKIT_MIRROR", real_mirror)
    stream = load_stream("split-cifar100", seed=1, validation_share=0.05)
    assert [[len(part.y) for part in parts_of(task)] for task in stream] == 10 * [[4750, 250, 1000]]
    assert stream[0].classes[:3] == ("apple", "aquarium_fish", "baby")
    assert stream[9].classes[-3:] == ("wolf", "woman", "worm")
    for task in stream:
        assert task.test.y.bincount().tolist() == 10 * [100]
        assert torch.cat([task.train.y, task.valid.y]).bincount().tolist() == 10 * [500]
    sample = torch.cat([task.normalise(task.train.x[:300]) for task in stream])
    assert sample.mean().abs() < 0.1
    assert 0.9 < sample.std() < 1.2


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("seed", [1, 37])
def test_the_authors_split(mirrors, monkeypatch, stream, seed):
    """Against sklearn.utils.shuffle over a task's images in the order of the files, the first share to validate."""
    monkeypatch.setenv("NESSKIT_MIRROR", str(mirrors[stream]))
    share = 0.3
    theirs = load_stream(stream, seed, share, split="authors")
    for task, ours in zip(theirs, load_stream(stream, seed, share), strict=True):
        if task.name in ("CIFAR-10", "notMNIST"):
            continue  # not numbered, or batch by batch
        border = 2 if task.train.x.shape[1] == 1 else 0
        numbers = [number_of(part.x[:, :, border:, border:]) for part in parts_of(task)]
        in_file_order = torch.cat(numbers[:2]).sort().values
        drawn = sklearn.utils.shuffle(np.arange(len(in_file_order)), random_state=seed)
        count = int(share * len(drawn))
        assert torch.equal(numbers[1], in_file_order[drawn[:count]])
        assert torch.equal(numbers[0], in_file_order[drawn[count:]])
        assert torch.equal(task.test.x, ours.test.x)


def test_only_images_have_the_authors_split():
    with pytest.raises(DataError, match=r"split is one of split-cifar100, .*; split-digits has split nesskit alone"):
        load_stream("split-digits", split="authors")
    with pytest.raises(UnknownNameError, match="unknown split 'author'"):
        load_stream("split-cifar100", split="author")
