"""The three benchmarks of the paper on real images: Split CIFAR-100, 5-Datasets and Split MiniImageNet; a small one.

Task order, classes, sizes and normalisation are those of the paper and of its authors' code (Pham, Vepakomma and
Horváth, Learning in the Null Space, CPAL 2026). Every data set lies in memory once, as uint8: it is put in order by
task, at random within a task, and the tasks are slices of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nesskit.errors import DataError
from nesskit.seeds import derive_seed
from nesskit.streams.base import Examples, Normalisation, Task, TaskStream, split_validation
from nesskit.streams.cifar import read_cifar10, read_cifar100
from nesskit.streams.fetch import VerifiedFile, locate_stream
from nesskit.streams.idx import read_idx_examples
from nesskit.streams.pickles import read_miniimagenet, read_notmnist
from nesskit.streams.pooling import halved
from nesskit.streams.svhn import read_svhn

DIGITS = tuple(str(digit) for digit in range(10))
LETTERS = tuple("ABCDEFGHIJ")
GARMENTS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

Files = Mapping[str, VerifiedFile]


class DataSet(NamedTuple):
    """One of the five data sets, as its parser gives it."""

    name: str
    train: Examples
    test: Examples
    classes: tuple[str, ...]
    normalisation: Normalisation


def split_cifar100(seed: int, validation_share: float = 0.05, split: str = "nesskit") -> TaskStream:
    """Ten tasks of ten classes of CIFAR-100 in label order: 0 to 9, 10 to 19, … 90 to 99; x (n, 3, 32, 32).

    Per task 5000 images to train and validate (4750 and 250 at a share of 5 %), 1000 to test.

    Raises:
        DataError: the archive cannot be had, is damaged, or lacks a class.
    """
    return _split_cifar100("split-cifar100", seed, validation_share, split)


def split_cifar100_16(seed: int, validation_share: float = 0.05, split: str = "nesskit") -> TaskStream:
    """Split CIFAR-100 at half the size: the same images in the same order, averaged over 2 × 2 pixels; (n, 3, 16, 16).

    Our own, for machines without a GPU: a small network learns a task in half a minute.

    Raises:
        DataError: as :func:`split_cifar100`, which reads the same archive.
    """
    return _split_cifar100("split-cifar100-16", seed, validation_share, split, halved)


def split_miniimagenet(seed: int, validation_share: float = 0.05, split: str = "nesskit") -> TaskStream:
    """Twenty tasks of five classes of MiniImageNet, the classes permuted by the seed; x (n, 3, 84, 84).

    Per task 2500 images to train and validate (2375 and 125 at a share of 5 %), 500 to test. The permutation is numpy's
    legacy ``RandomState(seed).permutation(100)``, as in the authors' code, so that equal seeds give equal tasks.

    Raises:
        DataError: a file cannot be had, is damaged, or lacks a class.
    """
    files = locate_stream("split-miniimagenet")
    order = np.random.RandomState(seed).permutation(100).tolist()
    groups = [order[first : first + 5] for first in range(0, 100, 5)]
    train, test = (read_miniimagenet(files[name].path) for name in ("train.pkl", "test.pkl"))
    classes = tuple(f"class {label}" for label in range(100))  # the pickles hold no names
    normalisation = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    data = DataSet("MiniImageNet", train, test, classes, normalisation)
    names = [f"classes {', '.join(map(str, group))}" for group in groups]
    tasks = _split_by_class(data, groups, names, seed, validation_share, split)
    return TaskStream("split-miniimagenet", tasks, _checksums(files))


def five_datasets(seed: int, validation_share: float = 0.05, split: str = "nesskit") -> TaskStream:
    """CIFAR-10, MNIST, SVHN, Fashion-MNIST and notMNIST, ten classes each, in this order.

    Colour images are x (n, 3, 32, 32). Grey ones stay x (n, 1, 32, 32) in memory, 28 × 28 pixels with a black border of
    2, and become three equal channels when a task normalises them.

    Raises:
        DataError: a file cannot be had or is damaged, or a data set lacks a class.
    """
    files = locate_stream("five-datasets")
    tasks: list[Task] = []
    for read in (_cifar10, _mnist, _svhn, _fashion_mnist, _notmnist):
        data = read(files)  # read one after the other, so that one raw copy at a time is in memory
        tasks += _split_by_class(data, [list(range(10))], [data.name], seed, validation_share, split)
    return TaskStream("five-datasets", tuple(tasks), _checksums(files))


def _split_cifar100(
    name: str, seed: int, validation_share: float, split: str, resize: Callable[[Tensor], Tensor] | None = None
) -> TaskStream:
    """Ten tasks of ten classes in label order, their images as they are or as ``resize`` makes them."""
    files = locate_stream(name)
    train, test, classes = read_cifar100(files["cifar-100-binary.tar.gz"].path)
    if resize is not None:
        train, test = (Examples(resize(part.x), part.y) for part in (train, test))
    groups = [list(range(first, first + 10)) for first in range(0, 100, 10)]
    data = DataSet("CIFAR-100", train, test, classes, _cifar_normalisation())
    names = [f"classes {group[0]} to {group[-1]}" for group in groups]
    tasks = _split_by_class(data, groups, names, seed, validation_share, split)
    return TaskStream(name, tasks, _checksums(files))


def _cifar10(files: Files) -> DataSet:
    train, test, classes = read_cifar10(files["cifar-10-binary.tar.gz"].path)
    return DataSet("CIFAR-10", train, test, classes, _cifar_normalisation())


def _mnist(files: Files) -> DataSet:
    train, test = _padded_idx(files, "mnist-train"), _padded_idx(files, "mnist-t10k")
    return DataSet("MNIST", train, test, DIGITS, _grey(mean=0.1, std=0.2752))


def _svhn(files: Files) -> DataSet:
    train, test = (read_svhn(files[f"{part}_32x32.mat"].path) for part in ("train", "test"))
    normalisation = Normalisation(mean=(0.4377, 0.4438, 0.4728), std=(0.198, 0.201, 0.197))
    return DataSet("SVHN", train, test, DIGITS, normalisation)


def _fashion_mnist(files: Files) -> DataSet:
    train, test = _padded_idx(files, "fashion-mnist-train"), _padded_idx(files, "fashion-mnist-t10k")
    return DataSet("Fashion-MNIST", train, test, GARMENTS, _grey(mean=0.2190, std=0.3318))


def _notmnist(files: Files) -> DataSet:
    train, test = read_notmnist(files["notmnist.zip"].path)
    return DataSet("notMNIST", train, test, LETTERS, _grey(mean=0.4254, std=0.4501))


def _padded_idx(files: Files, prefix: str) -> Examples:
    """Images of 28 × 28 pixels and their labels, with a black border that makes them 32 × 32."""
    images, labels = (files[f"{prefix}-{kind}-ubyte.gz"].path for kind in ("images-idx3", "labels-idx1"))
    x, y = read_idx_examples(images, labels)
    return Examples(torch.nn.functional.pad(x, (2, 2, 2, 2)), y)


def _cifar_normalisation() -> Normalisation:
    red, green, blue = 125.3 / 255, 123.0 / 255, 113.9 / 255
    return Normalisation(mean=(red, green, blue), std=(63.0 / 255, 62.1 / 255, 66.7 / 255))


def _grey(mean: float, std: float) -> Normalisation:
    """Three equal channels: one grey channel becomes three when it is normalised."""
    return Normalisation((mean,) * 3, (std,) * 3)


def _checksums(files: Files) -> dict[str, str]:
    return {name: file.sha256 for name, file in files.items()}


def _split_by_class(
    data: DataSet, groups: Sequence[Sequence[int]], names: Sequence[str], seed: int, validation_share: float, split: str
) -> tuple[Task, ...]:
    """One task for each group of labels; label ``group[k]`` becomes k within its task."""
    ours = partial(_shuffled, seed=derive_seed(seed, "samples", data.name, "train"))
    theirs = partial(_as_the_authors, seed=seed, share=validation_share)
    train_parts = _arranged(data, "train", data.train, groups, theirs if split == "authors" else ours)
    # In random order even where the files are not: a batch of test images must be a fair sample.
    shuffled = partial(_shuffled, seed=derive_seed(seed, "samples", data.name, "test"))
    test_parts = _arranged(data, "test", data.test, groups, shuffled)
    tasks = []
    for group, name, examples, test in zip(groups, names, train_parts, test_parts, strict=True):
        train, valid = split_validation(examples, validation_share)
        classes = tuple(data.classes[label] for label in group)
        tasks.append(Task(name, classes, train, valid, test, data.normalisation))
    return tuple(tasks)


def _arranged(
    data: DataSet, part: str, examples: Examples, groups: Sequence[Sequence[int]], order_by: Callable[[Tensor], Tensor]
) -> list[Examples]:
    """The examples of each group as slices of one tensor that holds all of them.

    ``order_by`` says in which order: from the group of each example to the indices of all, group by group.
    """
    order_of_labels = torch.tensor([label for group in groups for label in group])
    counts = torch.bincount(examples.y, minlength=len(data.classes))
    absent = [data.classes[label] for label in order_of_labels.tolist() if not counts[label]]
    if absent:
        raise DataError(f"{data.name} has no {part} image of: {', '.join(absent)}")

    group_of, label_within = torch.empty_like(order_of_labels), torch.empty_like(order_of_labels)
    group_of[order_of_labels] = torch.tensor([index for index, group in enumerate(groups) for _ in group])
    label_within[order_of_labels] = torch.tensor([index for group in groups for index in range(len(group))])

    order = order_by(group_of[examples.y])
    sizes = torch.bincount(group_of[examples.y]).tolist()
    x, y = _rearranged(examples.x, order), label_within[examples.y[order]]
    return [Examples(*slices) for slices in zip(x.split(sizes), y.split(sizes), strict=True)]


def _shuffled(group: Tensor, seed: int) -> Tensor:
    """The indices of all samples, group by group, shuffled within each."""
    shuffled = torch.from_numpy(np.random.default_rng(seed).permutation(len(group)))
    return shuffled[torch.sort(group[shuffled], stable=True).indices]


def _as_the_authors(group: Tensor, seed: int, share: float) -> Tensor:
    """The indices of all samples, group by group, each so that its last ``share`` are the authors' validation samples.

    Their code (that of GPM and HAT before it) takes a task's samples in the order of the files, draws a permutation by
    ``sklearn.utils.shuffle(…, random_state=seed)``, which is numpy's legacy one, and validates on its first part.
    """
    in_file_order = torch.sort(group, stable=True).indices
    parts = []
    for part in in_file_order.split(torch.bincount(group).tolist()):
        drawn = torch.from_numpy(np.random.RandomState(seed).permutation(len(part)))
        parts.append(part[drawn.roll(-int(share * len(part)))])
    return torch.cat(parts)


def _rearranged(x: Tensor, order: Tensor) -> Tensor:
    """``x[order]``. A contiguous x is rearranged in place, since there may be no room for MiniImageNet twice."""
    if not x.is_contiguous():
        return x.index_select(0, order)
    rows, source = x.view(len(x), -1).numpy(), order.tolist()
    for start in range(len(source)):
        held, row = rows[start].copy(), start
        while source[row] != start:  # follow one cycle of the permutation, then mark its rows as done
            rows[row], next_row = rows[source[row]], source[row]
            source[row], row = row, next_row
        rows[row], source[row] = held, row
    return x
