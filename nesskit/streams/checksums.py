"""Checksums of data: what a run was trained on, also where no source of it has a checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from nesskit.streams.base import Task, TaskStream


def data_checksums(stream: TaskStream) -> Mapping[str, str]:
    """SHA-256 of every data source of ``stream``; of every task where the stream names no source."""
    if stream.checksums:
        return stream.checksums
    return {f"task {number} ({task.name})": task_checksum(task) for number, task in enumerate(stream, start=1)}


def task_checksum(task: Task) -> str:
    """SHA-256 of the task's classes, normalisation and examples."""
    digest = hashlib.sha256(repr((task.classes, task.normalisation)).encode())
    for part in (task.train, task.valid, task.test):
        for tensor in part:
            update(digest, tensor)
    return digest.hexdigest()


def update(digest: hashlib._Hash, tensor: Tensor) -> None:
    """Take type, shape and values of ``tensor`` into ``digest``."""
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    digest.update(values.numpy().data)
