"""How much of what a pretrained backbone knows is kept: which inputs are similar to it, and whether they still are.

What counts is the order of the similarities, not their size: features that are all turned or stretched alike know as
much as before (the same measure, cosines against ranks, is what sentence encoders are judged by).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from nesskit.analysis.checks import Array
from nesskit.errors import NesskitError


def pair_similarities(features: Any) -> Array:
    """The cosine similarity of every pair of rows.

    Args:
        features: (n, d), as an array or a tensor on the CPU.

    Returns:
        (n (n - 1) / 2,) of the pairs (0, 1), (0, 2), … (n - 2, n - 1), in [-1, 1]; a row of zeros is similar to none.

    Raises:
        NesskitError: it is no matrix, or holds NaN or infinite values.
    """
    rows = np.asarray(features, dtype=np.float64)
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise NesskitError(f"similarities need finite features (n, d), got an array of shape {rows.shape}")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    directions = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    similarities: Array = (directions @ directions.T)[np.triu_indices(len(rows), 1)]
    return similarities


def ranks(values: Array) -> Array:
    """(n,) the place of each value, 1 for the smallest; equal values share the mean of their places."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    shared: Array = (last - (counts - 1) / 2)[place]
    return shared


def rank_correlation(one: Array, other: Array) -> float:
    """Spearman's correlation of two measurements (n,) of the same things, in [-1, 1]: that of their ranks.

    NaN where all values of one of the two are equal, so that nothing has an order.
    """
    a, b = (r - r.mean() for r in (ranks(one), ranks(other)))
    size = np.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / size, -1, 1)) if size else float("nan")


def kept_similarity(before: Any, after: Any) -> float:
    """How much of the order of similarities is kept: 1 all of it, 0 nothing.

    Args:
        before: (n, d) features of n inputs, at least 3.
        after: (n, d') features of the same inputs later, in the same order.

    Returns:
        Spearman's correlation of the cosine similarities of all pairs, before and after.

    Raises:
        NesskitError: features of different numbers of inputs, or of too few for an order; or NaN among them.
    """
    one, other = pair_similarities(before), pair_similarities(after)
    if len(before) != len(after) or len(before) < 3:
        raise NesskitError(
            f"similarities before and after must be of the same inputs, 3 or more, got {len(before)} and {len(after)}"
        )
    return rank_correlation(one, other)
