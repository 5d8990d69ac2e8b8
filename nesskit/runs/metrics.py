"""What an accuracy matrix says about learning and forgetting.

``accuracy[t, i]`` is the test accuracy on task i after learning task t, in percent; NaN where t < i. Rows of tasks that
were not reached are NaN, and every measure below then describes the stream up to the last task that was. Joint training
fills only the last row: it has an average accuracy, and NaN for everything that compares two moments in time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nesskit.errors import NesskitError

Array = NDArray[np.float64]


def average_accuracy(accuracy: ArrayLike) -> float:
    """ACC: the mean of the last row, in percent (paper, Section 4; Lopez-Paz and Ranzato 2017)."""
    return float(final_accuracy(accuracy).mean()) if len(_reached(accuracy)) else float("nan")


def backward_transfer(accuracy: ArrayLike) -> float:
    """BWT: the mean over earlier tasks of final minus first accuracy, in percent points; negative where forgotten."""
    return _mean(backward_transfer_per_task(accuracy))


def forgetting(accuracy: ArrayLike) -> float:
    """The mean over earlier tasks of their best former minus their final accuracy (Chaudhry et al. 2018)."""
    return _mean(forgetting_per_task(accuracy))


def learning_accuracy(accuracy: ArrayLike) -> float:
    """The mean of the diagonal: how well each task was learned when it was new, in percent (Riemer et al. 2019)."""
    return _mean(learning_accuracy_per_task(accuracy))


def transfer(accuracy: ArrayLike, alone: ArrayLike) -> float:
    """The mean of :func:`transfer_per_task`, in percent points."""
    return _mean(transfer_per_task(accuracy, alone))


def final_accuracy(accuracy: ArrayLike) -> Array:
    """(T,) the last row: accuracy of each task at the end, in percent."""
    rows = _reached(accuracy)
    return rows[-1].copy() if len(rows) else np.empty(0)


def backward_transfer_per_task(accuracy: ArrayLike) -> Array:
    """(T - 1,) A[T, i] - A[i, i] for every task but the last."""
    rows = _reached(accuracy)
    return (rows[-1] - np.diag(rows))[:-1] if len(rows) else np.empty(0)


def forgetting_per_task(accuracy: ArrayLike) -> Array:
    """(T - 1,) max over t < T of A[t, i], minus A[T, i], for every task but the last; negative where it improved."""
    rows = _reached(accuracy)
    if len(rows) < 2:
        return np.empty(0)
    former = np.where(np.isnan(rows[:-1, :-1]), -np.inf, rows[:-1, :-1]).max(axis=0)
    return np.where(np.isinf(former), np.nan, former) - rows[-1, :-1]


def learning_accuracy_per_task(accuracy: ArrayLike) -> Array:
    """(T,) the diagonal: accuracy of each task right after it was learned, in percent."""
    return np.diag(_reached(accuracy)).copy()


def transfer_per_task(accuracy: ArrayLike, alone: ArrayLike) -> Array:
    """(T,) A[i, i] minus the accuracy of a network trained on task i alone (minus the intransigence of Chaudhry 2018).

    Args:
        accuracy: (T, T) percent.
        alone: (T,) percent, accuracy of a fresh network of the same kind trained on each task alone.
    """
    learned = learning_accuracy_per_task(accuracy)
    reference = np.asarray(alone, dtype=np.float64)
    tasks = len(np.asarray(accuracy))
    if reference.shape != (tasks,):
        raise NesskitError(
            f"need one accuracy of a network trained alone for each of {tasks} tasks, got shape {reference.shape}"
        )
    return learned - reference[: len(learned)]


def summary(accuracy: ArrayLike) -> dict[str, float]:
    """The measures of a run by name, in percent (NaN where there is none)."""
    return {
        "average_accuracy": average_accuracy(accuracy),
        "backward_transfer": backward_transfer(accuracy),
        "forgetting": forgetting(accuracy),
        "learning_accuracy": learning_accuracy(accuracy),
    }


def _reached(accuracy: ArrayLike) -> Array:
    """The accuracies up to the last task that was learned, (t, t)."""
    matrix = np.asarray(accuracy, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise NesskitError(f"an accuracy matrix must be square (tasks × tasks), got shape {matrix.shape}")
    learned = np.flatnonzero(~np.isnan(matrix).all(axis=1))
    count = learned[-1] + 1 if len(learned) else 0
    return matrix[:count, :count]


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else float("nan")
