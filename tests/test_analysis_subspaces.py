"""Subspaces and spectra, against scipy and cases by hand."""

import numpy as np
import pytest
import scipy.linalg
import torch

from nesskit import effective_rank, null_space_history, spectrum_decay, stable_rank, subspace_overlap
from nesskit.analysis import principal_angles
from nesskit.errors import NesskitError, SettingsError, SpectrumError
from nesskit.spectra.filters import FixedRank, FrobeniusThreshold
from nesskit.spectra.moment import Moment
from nesskit.spectra.profile import LayerProfile
from nesskit.spectra.spectrum import Spectrum


def moment_of(x):
    moment = Moment(np.shape(x)[1])
    moment.update(np.asarray(x, dtype=float))
    return moment


def basis(rng, d, k):
    return np.linalg.qr(rng.standard_normal((d, k)))[0]


@pytest.mark.parametrize(("d", "a", "b"), [(6, 2, 3), (6, 3, 2), (6, 4, 4), (5, 5, 2), (3, 1, 1)])
def test_principal_angles_are_those_of_scipy(d, a, b):
    rng = np.random.default_rng(0)
    one, other = basis(rng, d, a), basis(rng, d, b)
    found = principal_angles(torch.from_numpy(one), torch.from_numpy(other))
    expected = np.sort(np.degrees(scipy.linalg.subspace_angles(one, other)))
    np.testing.assert_allclose(found.angles, expected, atol=1e-6)
    assert found.ranks == (a, b)
    assert found.overlap == pytest.approx(np.linalg.norm(one.T @ other) ** 2 / min(a, b))


@pytest.mark.parametrize("angle", [1e-9, 1e-4, 0.3, 1.0, np.pi / 2 - 1e-9])
def test_a_plane_turned_by_a_known_angle(angle):
    flat = torch.eye(3, dtype=torch.float64)[:, :2]
    turned = torch.tensor([[1.0, 0.0], [0.0, np.cos(angle)], [0.0, np.sin(angle)]], dtype=torch.float64)
    np.testing.assert_allclose(np.radians(principal_angles(flat, turned).angles), [0, angle], atol=1e-15, rtol=1e-6)


def test_random_subspaces_overlap_by_chance():
    rng = np.random.default_rng(0)
    pairs = [principal_angles(*(torch.from_numpy(basis(rng, 30, k)) for k in (5, 9))) for _ in range(200)]
    assert pairs[0].overlap_by_chance == 9 / 30
    assert np.mean([pair.overlap for pair in pairs]) == pytest.approx(9 / 30, abs=0.01)


def test_dominant_spaces_hold_the_asked_share_of_energy():
    # Task one lives in e₁ e₂ (and hardly in e₃), task two in e₂ e₃.
    one, two = moment_of(np.diag([3.0, 2.0, 0.1, 0])), moment_of(np.diag([0, 2.0, 3.0, 0.1]))
    found = subspace_overlap(one, two)
    assert found.ranks == (2, 2)
    np.testing.assert_allclose(found.angles, [0, 90], atol=1e-6)
    assert found.overlap == pytest.approx(0.5)
    assert subspace_overlap(one, two, share=0.5).ranks == (1, 1)
    assert subspace_overlap(one, two.spectrum(), rank=3).ranks == (3, 3)
    assert subspace_overlap(one, one).overlap == pytest.approx(1)


def test_a_task_without_any_input_energy_overlaps_with_nothing():
    found = subspace_overlap(moment_of(np.zeros((2, 3))), moment_of(np.eye(3)))
    assert found.ranks == (0, 3)
    assert np.isnan(found.overlap)


def test_spaces_of_different_models_are_refused():
    with pytest.raises(SpectrumError, match="dimension 3 and 4 belong to different layers or models"):
        subspace_overlap(moment_of(np.eye(3)), moment_of(np.eye(4)))
    with pytest.raises(SpectrumError, match="rank 4 is out of range"):
        subspace_overlap(moment_of(np.eye(3)), moment_of(np.eye(3)), rank=4)
    with pytest.raises(SpectrumError, match="run data through the layer first"):
        subspace_overlap(moment_of(np.eye(3)), Moment(3))
    with pytest.raises(SettingsError, match="share"):
        subspace_overlap(moment_of(np.eye(3)), moment_of(np.eye(3)), share=2.0)


# --- the null space over time


def test_every_task_takes_its_directions_away():
    # Each task uses one more unit vector; what none has used is free.
    tasks = [moment_of(np.eye(4)[[k]]) for k in range(3)]
    history = null_space_history(tasks, FrobeniusThreshold(1e-6))
    assert history.ranks.tolist() == [3, 2, 1]
    assert history.dimension == 4
    np.testing.assert_allclose(history.kept, [1, 2 / 3, 1 / 3], atol=1e-9)
    assert [o.ranks for o in history.to_first] == [(3, 3), (3, 2), (3, 1)]
    assert [o.ranks for o in history.to_previous] == [(3, 2), (2, 1)]
    assert all(overlap.overlap == pytest.approx(1) for overlap in history.to_previous)


def test_a_null_space_of_fixed_size_turns_away():
    history = null_space_history([moment_of(np.diag([2.0, 1, 0])), moment_of(np.diag([0, 0, 9.0]))], FixedRank(1))
    assert history.ranks.tolist() == [1, 1]
    np.testing.assert_allclose(history.kept, [1, 0], atol=1e-9)


def test_where_nothing_was_ever_free_nothing_is_kept():
    history = null_space_history([moment_of(np.eye(2))] * 2, FrobeniusThreshold(1e-6))
    assert history.ranks.tolist() == [0, 0]
    assert np.isnan(history.kept).all()


def test_a_history_needs_moments_of_one_layer():
    with pytest.raises(NesskitError, match="keep one per task"):
        null_space_history([], FixedRank(1))
    with pytest.raises(SpectrumError, match="different layers"):
        null_space_history([moment_of(np.eye(2)), moment_of(np.eye(3))], FixedRank(1))
    with pytest.raises(SpectrumError, match="task 2 has seen no input"):
        null_space_history([moment_of(np.eye(2)), Moment(2)], FixedRank(1))


# --- effective rank and decay


@pytest.mark.parametrize(
    ("values", "effective", "stable"),
    [
        ([5.0], 1, 1),
        ([2.0, 2.0, 2.0], 3, 3),
        ([1.0, 0.0, 0.0], 1, 1),
        ([0.0, 0.0], 0, 0),
        ([2.0, 1.0, 1.0], 2**1.5, 1.5),  # p = (1/2, 1/4, 1/4) has 1.5 bits
    ],
)
def test_ranks_by_hand(values, effective, stable):
    assert effective_rank(values) == pytest.approx(effective)
    assert stable_rank(values) == pytest.approx(stable)


def test_ranks_of_anything_that_has_singular_values():
    values = np.array([3.0, 2.0, 1.0])
    profile = LayerProfile("fc", 1, 1, 10, values**2, values, values)
    sources = [
        values,
        list(values),
        Spectrum(torch.from_numpy(values), torch.eye(3)),
        moment_of(np.diag(values)),
        profile,
    ]
    assert len({round(effective_rank(source), 9) for source in sources}) == 1
    assert len({round(stable_rank(source), 9) for source in sources}) == 1


def test_the_decay_of_a_power_law_has_its_exponent():
    decay = spectrum_decay(7 * np.arange(1, 51) ** -1.5)
    assert decay.exponent == pytest.approx(1.5)
    assert decay.relative[0] == 1
    assert decay.relative[3] == pytest.approx(1 / 8)
    assert decay.numerical_rank == 50
    assert decay.energy[-1] == 1


def test_decay_counts_directions():
    decay = spectrum_decay([2.0, 1.0, 1.0, 1e-9])
    np.testing.assert_allclose(decay.energy, [4 / 6, 5 / 6, 1, 1])
    assert decay.numerical_rank == 3
    assert [decay.directions_for(share) for share in (0.5, 4 / 6, 0.7, 0.9, 1.0)] == [1, 1, 2, 3, 3]
    with pytest.raises(SettingsError, match="share"):
        decay.directions_for(0)


def test_the_decay_of_nothing():
    decay = spectrum_decay([0.0, 0.0])
    assert decay.relative.tolist() == [0, 0]
    assert np.isnan(decay.energy).all()
    assert decay.directions_for(0.9) == decay.numerical_rank == 0
    assert np.isnan(decay.exponent)


def test_an_empty_spectrum_is_refused():
    for function in (effective_rank, stable_rank, spectrum_decay):
        with pytest.raises(SpectrumError, match="the spectrum is empty: it needs at least one singular value"):
            function([])
        with pytest.raises(SpectrumError, match="descending"):
            function([1.0, 2.0])
        with pytest.raises(SpectrumError, match="run data through the layer first"):
            function(Moment(3))
