"""Many runs at once: through a pool of processes on this machine, or a Dask cluster of many machines.

Both are executors in the sense of :mod:`concurrent.futures`, and so may be anything else that is given to
:func:`nesskit.compare`.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from nesskit.errors import SettingsError

MOST_PROCESSES = 1000


@contextmanager
def open_executor(address: str) -> Iterator[Executor]:
    """The executor that ``address`` names, closed afterwards.

    Args:
        address: ``processes:4`` for so many processes of this machine, ``dask://host:8786`` for a Dask scheduler.

    Raises:
        SettingsError: another address, a number of processes that makes no sense, Dask is not installed, or no
            scheduler answers.
    """
    kind, _, rest = address.partition(":")
    if kind not in ("processes", "dask"):
        raise SettingsError(f"no executor is called '{address}': write processes:4, say, or dask://host:8786")
    with _processes(rest) if kind == "processes" else _dask(rest) as executor:
        yield executor


def _processes(count: str) -> ProcessPoolExecutor:
    if not count.isdecimal() or not 1 <= int(count) <= MOST_PROCESSES:
        raise SettingsError(f"processes:{count} names no number of processes: write processes:4, say")
    _require_guard()
    threads = max(1, (os.cpu_count() or 1) // int(count))
    context = multiprocessing.get_context("spawn")  # a fork would share the threads of torch
    return ProcessPoolExecutor(int(count), context, initializer=_limit_threads, initargs=(threads,))


def _require_guard() -> None:
    """Every worker runs the program's file from its beginning: without a guard each would start workers in turn."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is None or not Path(file).is_file():
        return
    if "__main__" not in Path(file).read_text(encoding="utf-8", errors="replace"):
        raise SettingsError(
            f"every worker process runs {file} from its beginning: put what it does under "
            "if __name__ == '__main__', or leave the executor out"
        )


@contextmanager
def _dask(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError as error:
        raise SettingsError("dask:// needs Dask: pip install 'nesskit[cluster]'") from error
    place = address.lstrip("/")
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()  # Dask itself would try again and again
        client = Client(f"tcp:{address}", timeout=10)
    except (OSError, ValueError, OverflowError) as error:
        raise SettingsError(f"no Dask scheduler answers at {place}: is it running?") from error
    with client:
        yield client.get_executor(pure=False)


def _limit_threads(count: int) -> None:
    """So that processes beside each other do not fight for the cores."""
    import torch

    torch.set_num_threads(count)
