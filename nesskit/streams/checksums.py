"""Checksums of data: what a run was trained on, also where no source of it has a checksum."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from nesskit.streams.base import Task, TaskStream
from nesskit.streams.fields import Fields, Stored, in_memory

ROWS = 1024  # that are read at a time


def data_checksums(stream: TaskStream) -> Mapping[str, str]:
    """SHA-256 of every data source of ``stream``; where it names no source, of every task and of the inputs of none.

    Those count for every run of the stream, whether its method protects them or not.
    """
    if stream.checksums:
        return stream.checksums
    tasks = {f"task {number} ({task.name})": task_checksum(task) for number, task in enumerate(stream, start=1)}
    of_no_task = {"reference": stream.reference, "held out": stream.held_out}
    return tasks | {name: inputs_checksum(x) for name, x in of_no_task.items() if x is not None}


def task_checksum(task: Task) -> str:
    """SHA-256 of the task's classes, normalisation and examples."""
    digest = hashlib.sha256(repr((task.classes, task.normalisation)).encode())
    for part in (task.train, task.valid, task.test):
        for values in part:
            update(digest, values)
    return digest.hexdigest()


def inputs_checksum(x: Stored) -> str:
    """SHA-256 of inputs without labels."""
    digest = hashlib.sha256()
    update(digest, x)
    return digest.hexdigest()


def update(digest: hashlib._Hash, x: Stored) -> None:
    """Take types, shapes and values of ``x`` into ``digest``: the same in memory and read from a disk."""
    if isinstance(x, Tensor):
        _begin(digest, x, len(x) if x.ndim else 0)
        _add(digest, x)
        return
    if not len(x):
        return
    fields: dict[str, hashlib._Hash] = {}  # a digest for each, as rows are read once
    for part in x.split(ROWS):
        read = in_memory(part)
        for name, tensor in read.items() if isinstance(read, Fields) else [("", read)]:
            if name not in fields:
                fields[name] = hashlib.sha256() if name else digest
                _begin(fields[name], tensor, len(x))
            _add(fields[name], tensor)
    for name, own in fields.items():
        if name:
            digest.update(f"{name} {own.hexdigest()}".encode())


def _begin(digest: hashlib._Hash, tensor: Tensor, rows: int) -> None:
    shape = (rows, *tensor.shape[1:]) if tensor.ndim else ()
    digest.update(f"{tensor.dtype} {shape}".encode())


def _add(digest: hashlib._Hash, tensor: Tensor) -> None:
    values = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    digest.update(values.numpy().data)
