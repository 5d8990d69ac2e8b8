"""The streams that nesskit knows, by name."""

from __future__ import annotations

# name -> "module:function"; each function takes (seed, validation_share) and returns a TaskStream.
LOADERS = {
    "permuted-digits": "nesskit.streams.digits:permuted_digits",
    "split-digits": "nesskit.streams.digits:split_digits",
    "rotated-digits": "nesskit.streams.digits:rotated_digits",
    "split-cifar100": "nesskit.streams.images:split_cifar100",
    "split-cifar100-16": "nesskit.streams.images:split_cifar100_16",
    "five-datasets": "nesskit.streams.images:five_datasets",
    "split-miniimagenet": "nesskit.streams.images:split_miniimagenet",
    "split-clinc150": "nesskit.streams.clinc150:split_clinc150",
}

# How a task's examples are told apart into training and validation: ours, or as the authors' code draws them.
SPLITS = ("nesskit", "authors")
# Whose loaders know the authors' split: each takes (seed, validation_share, split).
WITH_AUTHORS_SPLIT = ("split-cifar100", "split-cifar100-16", "five-datasets", "split-miniimagenet")
