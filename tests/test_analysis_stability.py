"""Eq. 7 beside what was measured, one input at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nesskit import stability_bound, stability_of_profile
from nesskit.errors import SpectrumError
from nesskit.spectra.filters import FixedRank, FrobeniusThreshold, NuclearThreshold
from nesskit.spectra.moment import Moment
from nesskit.spectra.profile import LayerProfile, layer_profile


def moment_of(x):
    moment = Moment(x.shape[1])
    moment.update(x)
    return moment


def random_case(seed, d=8, samples=50, outputs=3):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, d)) * np.logspace(0, -3, d) @ np.linalg.qr(rng.standard_normal((d, d)))[0]
    return x, rng.standard_normal((outputs, d))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rank=st.integers(0, 8))
def test_the_bound_holds_for_every_old_input_and_for_their_mean(seed, rank):
    x, update = random_case(seed)
    result = stability_bound(update, moment_of(x), rank, x)
    small = np.linalg.svd(x.T)[0][:, 8 - rank :]
    restricted = update @ small @ small.T
    moves = np.linalg.norm(x @ restricted.T, axis=1)
    tolerance = 1e-8 * np.linalg.norm(x @ update.T)
    assert result.worst == pytest.approx(moves.max(), abs=tolerance)
    assert result.mean == pytest.approx(moves.mean(), abs=tolerance)
    assert result.rms == pytest.approx(np.sqrt((moves**2).mean()), abs=tolerance)
    assert result.spectral_norm == pytest.approx(np.linalg.norm(restricted, 2), abs=1e-9)
    assert result.frobenius_norm == pytest.approx(np.linalg.norm(restricted), abs=1e-9)
    assert result.mean <= result.rms <= result.worst <= result.bound + tolerance
    assert result.rms <= result.rms_bound + tolerance
    assert result.rms_bound <= result.sigma * result.frobenius_norm


def test_a_case_by_hand():
    # σ = (10, 4, 3); the two smallest directions are free, V = (2, 1)ᵀ for one output.
    x, update = np.diag([10.0, 4.0, 3.0]), np.array([[7.0, 2.0, 1.0]])
    result = stability_bound(update, moment_of(x), 2, x, layer="fc", task=1)
    assert (result.layer, result.task, result.rank, result.count) == ("fc", 1, 2, 3)
    assert result.sigma == pytest.approx(4)
    assert result.bound == pytest.approx(4 * np.sqrt(5))
    assert result.worst == pytest.approx(8)  # of the input (0, 4, 0)
    assert result.mean == pytest.approx((0 + 8 + 3) / 3)
    assert result.rms == pytest.approx(np.sqrt((64 + 9) / 3))
    assert result.slack == pytest.approx(np.sqrt(5) / 2)
    assert result.mean_slack == pytest.approx(result.bound / result.mean)
    assert result.rms_slack == pytest.approx(4 * np.sqrt(5 / 3) / np.sqrt(73 / 3))


@pytest.mark.parametrize("rule", [FrobeniusThreshold(0.05), NuclearThreshold(0.02)], ids=str)
def test_the_threshold_is_the_right_hand_side_of_equation_7(rule):
    x, update = random_case(0)
    spectrum = moment_of(x).spectrum()
    result = stability_bound(update, spectrum, rule, x)
    assert result.rank == rule.null_rank(spectrum)
    assert 0 < result.rank < 8
    assert result.cut == rule.cut(spectrum)
    assert result.worst <= result.bound <= result.threshold_bound == result.cut * result.spectral_norm
    by_rank = stability_bound(update, spectrum, FixedRank(result.rank), x)
    assert by_rank.bound == result.bound
    assert np.isnan(by_rank.threshold_bound)


def test_inputs_may_come_in_pieces():
    x, update = random_case(0)
    whole = stability_bound(update, moment_of(x), 5, x)
    pieces = stability_bound(update, moment_of(x), 5, iter(torch.from_numpy(x).split(7)))
    assert pieces.worst == whole.worst
    assert pieces.rms == pytest.approx(whole.rms)
    assert pieces.count == whole.count


@pytest.mark.parametrize("rank", [0, 3, 8])
def test_a_profile_knows_the_mean_square_and_a_weaker_bound(rank):
    x, update = random_case(0)
    spectrum = moment_of(x).spectrum()
    basis = spectrum.null_basis(rank).numpy()
    trained = torch.from_numpy(update @ basis @ basis.T)
    profile = layer_profile("fc", 1, rank, len(x), spectrum, trained, trained)
    ours, theirs = stability_of_profile(profile), stability_bound(trained, spectrum, rank, x, "fc", 1)
    assert (ours.layer, ours.task, ours.rank, ours.count) == ("fc", 1, rank, 50)
    assert ours.rms == pytest.approx(theirs.rms)
    assert ours.rms_bound == pytest.approx(theirs.rms_bound)
    assert ours.bound == pytest.approx(ours.sigma * theirs.frobenius_norm)
    assert ours.bound >= theirs.bound
    assert np.isnan([ours.worst, ours.mean, ours.spectral_norm, ours.slack]).all()


def test_where_nothing_is_free_nothing_moves():
    x, update = random_case(0)
    result = stability_bound(update, moment_of(x), 0, x)
    assert result.sigma == result.bound == result.worst == 0
    assert np.isnan(result.slack)


def test_what_does_not_fit_is_refused():
    x, update = random_case(0)
    with pytest.raises(SpectrumError, match="rank 9 is out of range"):
        stability_bound(update, moment_of(x), 9, x)
    with pytest.raises(SpectrumError, match=r"the inputs with 8 columns, .* got 7"):
        stability_bound(update, moment_of(x), 3, x[:, :7])
    with pytest.raises(SpectrumError, match="at least one row"):
        stability_bound(update, moment_of(x), 3, x[:0])
    with pytest.raises(SpectrumError, match="layer 'fc' was never run"):
        stability_bound(update, Moment(8), 3, x, layer="fc")
    with pytest.raises(SpectrumError, match="rank 5 is out of range"):
        stability_of_profile(LayerProfile("fc", 1, 5, 10, np.ones(4), np.ones(4), np.ones(4)))
