"""A stream of your own: ``nesskit run examples/own_stream.py:shifted_digits``."""

import torch
from sklearn.datasets import load_digits

from nesskit import Examples, Task, TaskStream
from nesskit.streams.base import split_validation


def shifted_digits(seed: int, validation_share: float) -> TaskStream:
    """Five tasks of ten classes: the digits, moved to the right by 0, 1, … 4 pixels."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(seed))
    images = torch.from_numpy(digits.images)[order].float() / 16  # (1797, 8, 8)
    labels = torch.from_numpy(digits.target)[order].long()
    classes = tuple(str(digit) for digit in range(10))
    tasks = []
    for shift in range(5):
        x = images.roll(shift, dims=2).flatten(1)
        train, valid = split_validation(Examples(x[:1300], labels[:1300]), validation_share)
        tasks.append(Task(f"shifted by {shift}", classes, train, valid, Examples(x[1300:], labels[1300:])))
    return TaskStream("shifted digits", tuple(tasks))
