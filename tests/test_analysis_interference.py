"""Interference and energy at every rank: against brute force on raw inputs and every rival set of directions."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nesskit import (
    collect_inputs,
    collect_moments,
    interference_by_rank,
    interference_of_profile,
    measured_interference,
)
from nesskit.errors import NesskitError, SpectrumError
from nesskit.spectra.filters import SoftFilter
from nesskit.spectra.moment import Moment
from nesskit.spectra.profile import LayerProfile, layer_profile
from nesskit.spectra.spectrum import Spectrum


def moment_of(x):
    moment = Moment(x.shape[1])
    moment.update(x)
    return moment


def random_inputs(rng, samples, d, decay=3.0):
    """(samples, d) with singular values that fall over ``decay`` orders of magnitude, in random directions."""
    scales = np.logspace(0, -decay, d)
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
    return rng.standard_normal((samples, d)) * scales @ turn


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), d=st.integers(1, 12), outputs=st.integers(1, 6))
def test_the_closed_form_is_what_brute_force_measures(seed, d, outputs):
    rng = np.random.default_rng(seed)
    x, update = random_inputs(rng, 4 * d, d), rng.standard_normal((outputs, d))
    curve = interference_by_rank(update, moment_of(x))
    assert curve.ranks.tolist() == list(range(d + 1))
    full = np.linalg.norm(x @ update.T)
    assert curve.interference[-1] == pytest.approx(full, rel=1e-9)
    for rank in curve.ranks:
        measured = measured_interference(update, x, int(rank))
        assert curve.interference[rank] == pytest.approx(measured, abs=1e-8 * full)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), d=st.integers(2, 12), samples=st.integers(1, 11), outputs=st.integers(1, 6))
def test_an_exact_null_space_costs_nothing_but_round_off(seed, d, samples, outputs):
    """Fewer inputs than directions. Squared inputs have half the digits: zeros come out as at most 1e-7 σ₁."""
    rng = np.random.default_rng(seed)
    x, update = random_inputs(rng, min(samples, d - 1), d), rng.standard_normal((outputs, d))
    curve = interference_by_rank(update, moment_of(x))
    scale = np.linalg.norm(x, 2) * np.linalg.norm(update, 2)
    for rank in curve.ranks:
        measured = measured_interference(update, x, int(rank))
        assert curve.interference[rank] == pytest.approx(measured, abs=1e-7 * scale)


@pytest.mark.parametrize(("rank", "interference", "energy"), [(0, 0, 0), (1, 4, 16), (2, 5, 17), (3, 13, 18)])
def test_a_case_by_hand(rank, interference, energy):
    # I has the columns 12 e₁, 3 e₂, 1 e₃, and D one row (1, 1, 4).
    inputs, update = np.diag([12.0, 3.0, 1.0]), np.array([[1.0, 1.0, 4.0]])
    curve = interference_by_rank(update, moment_of(inputs), weight=np.array([[0.0, 4.0, 5.0]]))
    assert curve.interference[rank] == pytest.approx(interference)
    assert curve.energy_kept[rank] == pytest.approx(energy)
    assert curve.output_norm == pytest.approx(13)
    assert curve.relative_interference[rank] == pytest.approx(interference / 13)
    assert curve.energy_share[rank] == pytest.approx(energy / 18)
    assert measured_interference(update, inputs, rank) == pytest.approx(interference)


def test_energy_kept_is_the_norm_of_the_restricted_update():
    rng = np.random.default_rng(0)
    x, update = random_inputs(rng, 50, 8), rng.standard_normal((3, 8))
    curve = interference_by_rank(update, moment_of(x))
    left = np.linalg.svd(x.T)[0]
    for rank in range(1, 8):
        small = left[:, 8 - rank :]
        assert curve.energy_kept[rank] == pytest.approx(np.linalg.norm(update @ small) ** 2)
    assert curve.energy_kept[-1] == pytest.approx(np.linalg.norm(update) ** 2)
    assert (np.diff(curve.interference) >= 0).all()
    assert (np.diff(curve.energy_kept) >= 0).all()


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, lambda x: torch.from_numpy(x).requires_grad_()])
def test_updates_may_be_arrays_or_tensors_and_moments_may_be_spectra(kind):
    rng = np.random.default_rng(0)
    x, update = random_inputs(rng, 50, 8), rng.standard_normal((3, 8))
    expected = interference_by_rank(update, moment_of(x)).interference
    np.testing.assert_array_equal(interference_by_rank(kind(update), moment_of(x)).interference, expected)
    np.testing.assert_array_equal(interference_by_rank(kind(update), moment_of(x).spectrum()).interference, expected)


def test_a_convolution_interferes_as_measured_whatever_its_options(convolution):
    """Without groups the closed form is the change of the layer's own outputs; with groups it is an upper bound."""
    layer, x = convolution
    model = torch.nn.Sequential(layer)
    moment = collect_moments(model, [x])["0"]
    rows = collect_inputs(model, [x], "0")
    assert torch.allclose(rows.T @ rows, moment.matrix)
    update = torch.randn_like(layer.weight)
    curve = interference_by_rank(update, moment)
    rank = curve.dimension // 2
    assert curve.interference[rank] == pytest.approx(measured_interference(update, rows, rank), rel=1e-9)

    basis = moment.spectrum().null_basis(rank)
    restricted = (update.flatten(1) @ basis @ basis.T).view_as(update)
    with torch.no_grad():
        before = layer(x)
        layer.weight += restricted
        moved = float((layer(x) - before).norm())
    if layer.groups == 1:
        assert moved == pytest.approx(curve.interference[rank], rel=1e-9)
    assert moved <= curve.interference[rank] * (1 + 1e-9)


def test_a_profile_gives_the_same_curve_without_data():
    rng = np.random.default_rng(0)
    x = random_inputs(rng, 50, 8)
    update, weight = rng.standard_normal((2, 3, 8))
    spectrum = moment_of(x).spectrum()
    profile = layer_profile("fc", 1, 8, 50, spectrum, torch.tensor(update), torch.tensor(weight))
    ours, theirs = interference_of_profile(profile), interference_by_rank(update, spectrum, weight)
    np.testing.assert_allclose(ours.interference, theirs.interference, rtol=1e-12)
    np.testing.assert_allclose(ours.energy_kept, theirs.energy_kept, rtol=1e-12)
    assert ours.output_norm == pytest.approx(np.linalg.norm(x @ weight.T))
    assert theirs.output_norm == pytest.approx(ours.output_norm)


# --- what is optimal about the smallest directions (Ky Fan; Pareto; the soft filter)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_no_projector_of_the_same_rank_lets_less_of_the_inputs_through(rank):
    rng = np.random.default_rng(rank)
    x = random_inputs(rng, 30, 6, decay=1.0)
    # D = 1: interference is ‖P I‖_F itself.
    ours = interference_by_rank(np.eye(6), moment_of(x)).interference[rank]
    for _ in range(500):
        basis = np.linalg.qr(rng.standard_normal((6, rank)))[0]
        assert np.linalg.norm(x @ basis) >= ours * (1 - 1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_no_set_of_whole_directions_keeps_more_and_costs_less(seed):
    rng = np.random.default_rng(seed)
    x, update = random_inputs(rng, 30, 6, decay=1.0), rng.standard_normal((3, 6))
    moment = moment_of(x)
    curve = interference_by_rank(update, moment)
    energies = (update @ moment.spectrum().directions.numpy()) ** 2
    energies, costs = energies.sum(0), energies.sum(0) * moment.spectrum().singular_values.numpy() ** 2
    for size in range(7):
        for chosen in map(list, itertools.combinations(range(6), size)):
            kept, cost = energies[chosen].sum(), costs[chosen].sum()
            dominated = (curve.energy_kept < kept * (1 - 1e-12)) & (curve.interference**2 > cost * (1 + 1e-12))
            assert not dominated.any()


def test_a_set_between_two_ranks_can_keep_more_than_the_smaller_rank():
    # σ = 2, 1 and energies 1, 0.1: the budget 4 holds direction 1 alone, but not both.
    update = np.array([[1.0, 0.0], [0.0, np.sqrt(0.1)]])
    curve = interference_by_rank(update, moment_of(np.diag([2.0, 1.0])))
    within = curve.energy_kept[curve.interference <= 2].max()
    assert within == pytest.approx(0.1)  # the rule of smallest directions stops here, while direction 1 has energy 1


def test_the_curve_is_convex_in_squares_with_the_slope_sigma_squared():
    rng = np.random.default_rng(0)
    moment = moment_of(random_inputs(rng, 30, 6))
    curve = interference_by_rank(rng.standard_normal((3, 6)), moment)
    slopes = np.diff(curve.interference**2) / np.diff(curve.energy_kept)
    np.testing.assert_allclose(slopes[::-1], moment.spectrum().singular_values.square().numpy(), rtol=1e-6)
    assert (np.diff(slopes) > 0).all()


def test_the_soft_filter_minimises_the_penalised_problem():
    rng = np.random.default_rng(0)
    x, update, tau = random_inputs(rng, 30, 6), rng.standard_normal((3, 6)), 0.7
    spectrum = moment_of(x).spectrum()
    directions, weights = spectrum.directions.numpy(), SoftFilter(tau).weights(spectrum).numpy()

    def loss(candidate):
        return np.linalg.norm(update - candidate) ** 2 + np.linalg.norm(x @ candidate.T) ** 2 / tau**2

    best = update @ directions * weights @ directions.T
    for _ in range(200):
        step = rng.standard_normal(best.shape) * 10.0 ** rng.uniform(-4, 0)
        assert loss(best) <= loss(best + step)


# --- the knee


def test_the_knee_is_farthest_from_the_chord():
    # D = 1, σ = (9, 3, 1, 1): interference² 0, 1, 2, 11, 92 of 92; energy 0, 1, 2, 3, 4 of 4.
    curve = interference_by_rank(np.eye(4), moment_of(np.diag([9.0, 3.0, 1.0, 1.0])))
    x, y = curve.energy_share, curve.interference_share
    np.testing.assert_allclose(x, [0, 0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(y, np.sqrt(np.array([0, 1, 2, 11, 92]) / 92))
    distances = np.abs(x - y) / np.sqrt(2)  # from the line y = x
    assert curve.knee == int(np.argmax(distances)) == 3


def test_where_nothing_interferes_everything_is_free():
    curve = interference_by_rank(np.ones((1, 3)), moment_of(np.zeros((5, 3))))
    assert curve.interference.tolist() == [0, 0, 0, 0]
    assert np.isnan(curve.interference_share).all()
    assert curve.knee == 3


def test_an_update_of_zeros_has_no_shares():
    curve = interference_by_rank(np.zeros((2, 3)), moment_of(np.eye(3)))
    assert np.isnan(curve.energy_share).all()
    assert curve.knee == 0
    assert np.isnan(curve.relative_interference).all()  # no weight, no size of the outputs


# --- bad input


def test_a_moment_of_another_layer_is_refused():
    with pytest.raises(SpectrumError, match=r"the update with 6 columns, .* got 4: .* different layers or models$"):
        interference_by_rank(np.ones((2, 4)), moment_of(np.eye(6)))
    with pytest.raises(SpectrumError, match="its last column must be the bias"):
        interference_by_rank(np.ones((2, 5)), moment_of(np.eye(6)))
    with pytest.raises(SpectrumError, match="the weight with 6 columns"):
        interference_by_rank(np.ones((2, 6)), moment_of(np.eye(6)), weight=np.ones((2, 4)))


def test_a_layer_that_was_never_run_is_refused():
    with pytest.raises(SpectrumError, match="run data through the layer first"):
        interference_by_rank(np.ones((2, 3)), Moment(3))


@pytest.mark.parametrize("rank", [-1, 4, 1.5])
def test_a_rank_out_of_range_is_refused(rank):
    with pytest.raises(SpectrumError, match=rf"rank {rank} is out of range: this layer has 3 directions \(0 … 3\)"):
        measured_interference(np.ones((2, 3)), np.eye(3), rank)


def test_updates_that_are_no_matrix_or_not_finite_are_refused():
    with pytest.raises(SpectrumError, match=r"must be \(d_out, d\)"):
        interference_by_rank(np.ones(3), moment_of(np.eye(3)))
    with pytest.raises(SpectrumError, match="NaN or infinite"):
        interference_by_rank(np.full((1, 3), np.nan), moment_of(np.eye(3)))
    with pytest.raises(SpectrumError, match="at least one row"):
        measured_interference(np.ones((2, 3)), np.empty((0, 3)), 1)


@pytest.mark.parametrize("lengths", [(0, 0, 0), (3, 2, 3)])
def test_a_damaged_profile_is_refused(lengths):
    profile = LayerProfile("fc", 2, 1, 10, *(np.ones(n) for n in lengths))
    with pytest.raises(SpectrumError, match="layer 'fc', task 3, is damaged"):
        interference_of_profile(profile)
    assert issubclass(SpectrumError, NesskitError)


def test_equal_singular_values_are_any_basis_but_one_curve():
    curve = interference_by_rank(np.eye(2), Spectrum(torch.ones(2), torch.eye(2)))
    np.testing.assert_allclose(curve.interference, np.sqrt([0, 1, 2]))
