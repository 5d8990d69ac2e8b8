"""Three streams on scikit-learn's handwritten digits: 1797 real images of 8 × 8 pixels that need no download.

The recipe: pixels divided by 16, one seeded permutation of the samples, the first 1300 to train, the other 497 to test.
Data: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
CC BY 4.0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from nesskit.seeds import derive_seed
from nesskit.streams.base import Examples, Task, TaskStream, split_validation

TRAIN_COUNT = 1300
DIGITS = tuple(str(digit) for digit in range(10))


def permuted_digits(seed: int, validation_share: float = 0.0, tasks: int = 10) -> TaskStream:
    """Ten tasks of ten classes: the first shows the digits as they are, each other one permutes the pixels its way."""

    def permute(task: int) -> Callable[[Tensor], Tensor]:
        if task == 0:
            return lambda x: x
        order = np.random.default_rng(derive_seed(seed, "pixels", task)).permutation(64)
        return lambda x: x[:, torch.from_numpy(order)]

    return _transformed("permuted-digits", [f"permutation {t}" for t in range(tasks)], permute, seed, validation_share)


def rotated_digits(seed: int, validation_share: float = 0.0, tasks: int = 10) -> TaskStream:
    """Ten tasks of ten classes: task t shows the digits turned by 18 t degrees (bilinear, with black corners)."""
    angles = [180 * t / tasks for t in range(tasks)]
    return _transformed(
        "rotated-digits",
        [f"{angle:g} degrees" for angle in angles],
        lambda task: lambda x: _rotate(x, angles[task]),
        seed,
        validation_share,
    )


def split_digits(seed: int, validation_share: float = 0.0) -> TaskStream:
    """Five tasks of two classes: 0 and 1, then 2 and 3, … 8 and 9."""
    train, test, checksums = _digits(seed)

    def pick(examples: Examples, low: int) -> Examples:
        chosen = (examples.y == low) | (examples.y == low + 1)
        return Examples(examples.x[chosen], examples.y[chosen] - low)

    tasks = []
    for low in range(0, 10, 2):
        task_train, task_valid = split_validation(pick(train, low), validation_share)
        tasks.append(Task(f"{low} and {low + 1}", DIGITS[low : low + 2], task_train, task_valid, pick(test, low)))
    return TaskStream("split-digits", tuple(tasks), checksums)


def _digits(seed: int) -> tuple[Examples, Examples, dict[str, str]]:
    """All digits as (train, test, checksums); x is (n, 64) in [0, 1]."""
    from sklearn.datasets import load_digits  # only this loader needs scikit-learn, and importing it takes a second

    data = load_digits()
    checksum = hashlib.sha256(data.data.astype("<f8").tobytes() + data.target.astype("<i8").tobytes()).hexdigest()
    order = np.random.default_rng(derive_seed(seed, "samples")).permutation(len(data.target))
    x = torch.from_numpy((data.data[order] / 16).astype(np.float32))
    y = torch.from_numpy(data.target[order].astype(np.int64))
    train, test = Examples(x[:TRAIN_COUNT], y[:TRAIN_COUNT]), Examples(x[TRAIN_COUNT:], y[TRAIN_COUNT:])
    return train, test, {"scikit-learn digits": checksum}


def _transformed(
    name: str,
    task_names: list[str],
    transform_of: Callable[[int], Callable[[Tensor], Tensor]],
    seed: int,
    validation_share: float,
) -> TaskStream:
    """A stream whose tasks show the same digits, each through a transform of the inputs of its own."""
    train, test, checksums = _digits(seed)
    train, valid = split_validation(train, validation_share)
    tasks = []
    for index, task_name in enumerate(task_names):
        transform = transform_of(index)
        task_train, task_valid, task_test = (Examples(transform(part.x), part.y) for part in (train, valid, test))
        tasks.append(Task(task_name, DIGITS, task_train, task_valid, task_test))
    return TaskStream(name, tuple(tasks), checksums)


def _rotate(x: Tensor, degrees: float) -> Tensor:
    """Flat 8 × 8 images (n, 64), turned counter-clockwise."""
    if degrees == 0 or len(x) == 0:
        return x
    angle = np.deg2rad(degrees)
    turn = torch.tensor([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]], dtype=x.dtype)
    images = x.view(-1, 1, 8, 8)
    grid = torch.nn.functional.affine_grid(turn.expand(len(x), 2, 3), list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, align_corners=False).view(-1, 64)
