"""How much of the order of similarities is kept: a case by hand, and scipy."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr

from nesskit import kept_similarity
from nesskit.analysis import pair_similarities, rank_correlation
from nesskit.errors import NesskitError


def test_by_hand():
    """Before: (0,1) alike, then (1,2), (0,2) at right angles. After, 0 is nearer to 2 than 1 is: two of three swap."""
    before = [[1, 0], [1, 0.5], [0, 2]]
    after = [[1, 1], [2, 0], [1, 3]]
    np.testing.assert_allclose(pair_similarities(before), [2 / 5**0.5, 0, 1 / 5**0.5])
    np.testing.assert_allclose(pair_similarities(after), [1 / 2**0.5, 4 / 20**0.5, 1 / 10**0.5])
    # Ranks 3, 1, 2 and 2, 3, 1: ρ = 1 - 6 Σ d² / (n (n² - 1)) = 1 - 6 (1 + 4 + 1) / 24.
    assert kept_similarity(before, after) == pytest.approx(-0.5)


@pytest.mark.parametrize("n", [3, 8, 30])
def test_scipy_says_the_same(n):
    rng = np.random.default_rng(n)
    before, after = rng.normal(size=(n, 5)), rng.normal(size=(n, 7))
    np.testing.assert_allclose(pair_similarities(before), 1 - pdist(before, "cosine"), atol=1e-12)
    expected = spearmanr(1 - pdist(before, "cosine"), 1 - pdist(after, "cosine")).statistic
    assert kept_similarity(torch.tensor(before), after) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=30))
def test_equal_values_share_their_places_as_in_scipy(pairs):
    one, other = np.array(pairs, dtype=np.float64).T
    found = rank_correlation(one, other)
    if len(set(one)) == 1 or len(set(other)) == 1:
        assert np.isnan(found)
    else:
        assert found == pytest.approx(spearmanr(one, other).statistic, abs=1e-12)


def test_turning_and_stretching_keep_everything():
    before = np.random.default_rng(0).normal(size=(20, 6))
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    assert kept_similarity(before, 3 * before @ turn) == pytest.approx(1)


def test_a_row_of_zeros_is_similar_to_none():
    assert pair_similarities([[0, 0], [1, 0], [1, 1]])[:2].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (np.ones((4, 2)), np.ones((3, 2)), "of the same inputs, 3 or more, got 4 and 3"),
        (np.ones((2, 2)), np.ones((2, 2)), "of the same inputs, 3 or more, got 2 and 2"),
        (np.ones(4), np.ones(4), r"finite features \(n, d\), got an array of shape \(4,\)"),
        (np.ones((3, 2)), np.full((3, 2), np.nan), "finite features"),
    ],
)
def test_what_has_no_order_is_refused(before, after, sentence):
    with pytest.raises(NesskitError, match=sentence):
        kept_similarity(before, after)
