import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nesskit.adaptation.layers import NESSLinear
from nesskit.errors import SpectrumError
from nesskit.spectra.moment import Moment
from nesskit.spectra.profile import layer_profile
from nesskit.spectra.spectrum import Spectrum

DISTINCT = [20.0, 9.0, 5.0, 1.0, 0.3, 0.02]


def inputs_with(singular_values, samples=40, seed=0):
    """(samples, d) rows x whose matrix has exactly these singular values."""
    rng = np.random.default_rng(seed)
    d = len(singular_values)
    left, right = (np.linalg.qr(rng.standard_normal((n, d)))[0] for n in (samples, d))
    return left * np.asarray(singular_values) @ right.T


def moment_of(x):
    moment = Moment(x.shape[1])
    moment.update(x)
    return moment


def rank_deficient_pixels():
    """5000 float32 images of 40 pixels: 7 are always zero, 8 repeat others, so that the rank is 25."""
    x = np.random.default_rng(0).random((5000, 25), dtype=np.float32)
    return np.hstack([x, x[:, :8], np.zeros((5000, 7), np.float32)])


INPUTS = {
    "full rank": inputs_with(DISTINCT),
    "rank-deficient": inputs_with([3, 2, 1, 0, 0, 0]),
    "zero pixels": inputs_with([3, 2, 1]) @ np.eye(3, 6),
    "equal singular values": inputs_with([2.0] * 6),
    "single sample": np.arange(1.0, 7.0)[None],
    "all zero": np.zeros((4, 6)),
    "float32 images": rank_deficient_pixels(),
}


@pytest.mark.parametrize("x", INPUTS.values(), ids=INPUTS)
def test_spectrum_is_the_svd_of_the_raw_inputs(x):
    spectrum = moment_of(x).spectrum()
    values, directions = spectrum.singular_values.numpy(), spectrum.directions.numpy()
    expected = np.zeros(x.shape[1])
    expected[: min(x.shape)] = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    # Squaring halves the digits: zeros come out as at most 1e-7 σ₁.
    np.testing.assert_allclose(values, expected, rtol=1e-9, atol=1e-7 * expected[0])
    np.testing.assert_allclose(directions.T @ directions, np.eye(len(values)), atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(x @ directions, axis=0), values, rtol=1e-9, atol=1e-7 * expected[0])


def test_basis_stays_orthonormal_in_a_float32_layer():
    basis = moment_of(inputs_with(np.geomspace(100, 1e-3, 64), 200)).spectrum().null_basis(50)
    stored = NESSLinear.from_layer(torch.nn.Linear(64, 3), basis).basis
    assert stored.dtype == torch.float32
    torch.testing.assert_close((stored.T @ stored), torch.eye(50), atol=1e-6, rtol=0)


def test_norms_are_those_of_the_input_matrix():
    x = INPUTS["full rank"]
    spectrum = moment_of(x).spectrum()
    assert spectrum.frobenius_norm == pytest.approx(np.linalg.norm(x), rel=1e-12)
    assert spectrum.nuclear_norm == pytest.approx(np.linalg.norm(x, "nuc"), rel=1e-9)


@pytest.mark.parametrize("change", [np.negative, np.flipud], ids=["negated", "in reverse order"])
def test_the_same_samples_give_the_same_directions(change):
    x = INPUTS["full rank"]
    ours, theirs = (moment_of(data).spectrum().directions for data in (x, change(x)))
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)


def test_largest_entry_of_each_direction_is_positive():
    directions = moment_of(INPUTS["full rank"]).spectrum().directions
    assert (directions.max(dim=0).values >= -directions.min(dim=0).values).all()


@pytest.mark.parametrize("wobble", [1e-15, -1e-15])
def test_round_off_does_not_choose_the_sign_where_the_largest_entry_is_a_tie(wobble):
    spectrum = Spectrum.of(torch.tensor([[2.0, -1.0], [-1.0, 2.0 + wobble]], dtype=torch.float64))
    expected = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64) / 2**0.5
    torch.testing.assert_close(spectrum.directions, expected, atol=1e-12, rtol=0)


def test_negative_round_off_eigenvalues_are_clamped_and_the_rank_is_right():
    x = rank_deficient_pixels()
    moment = moment_of(x)
    assert np.linalg.eigvalsh(moment.matrix.numpy())[0] < 0, "this test needs a negative eigenvalue"
    values = moment.spectrum().singular_values
    assert (values >= 0).all()
    assert int((values > 1e-6 * values[0]).sum()) == np.linalg.matrix_rank(x.astype(np.float64)) == 25


def test_a_negative_eigenvalue_does_not_poison_the_norms():
    spectrum = Spectrum.of(torch.diag(torch.tensor([9.0, 4.0, -1e-12])))
    assert spectrum.singular_values.tolist() == [3, 2, 0]
    assert spectrum.nuclear_norm == 5


def test_a_solver_that_returns_nan_is_asked_again_on_the_cpu(monkeypatch):
    solve, calls = torch.linalg.eigh, []

    def flaky(matrix):
        calls.append(matrix)
        values, directions = solve(matrix)
        return (values * np.nan, directions) if len(calls) == 1 else (values, directions)

    monkeypatch.setattr(torch.linalg, "eigh", flaky)
    assert Spectrum.of(torch.diag(torch.tensor([4.0, 1.0]))).singular_values.tolist() == [2, 1]
    assert len(calls) == 2


@pytest.mark.parametrize("dimension", [511, 512, 1027])
def test_a_moment_summed_up_block_by_block_is_the_plain_product(dimension):
    x = torch.randn(30, dimension, dtype=torch.float64)
    moment = Moment(dimension)
    moment.update(x[:10])
    moment.update(x[10:])
    torch.testing.assert_close(moment.matrix, x.T @ x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(moment.matrix, moment.matrix.T, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_refused_inputs_leave_a_moment_as_it_was(bad):
    moment = moment_of(np.eye(3))
    for add in (lambda: moment.update(np.array([[0, bad, 0.0]])), lambda: moment.add(torch.full((3, 3), bad), 1)):
        with pytest.raises(SpectrumError, match="NaN or infinite"):
            add()
    with pytest.raises(SpectrumError, match=r"shape \(3, 3\)"):
        moment.add(torch.eye(4), 1)
    assert torch.equal(moment.matrix, torch.eye(3, dtype=torch.float64))
    assert moment.count == 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64, torch.uint8])
def test_inputs_of_any_type_are_summed_in_float64(dtype):
    x = torch.tensor([[0, 200, 255], [1, 255, 3]]).to(dtype)  # 255² overflows uint8, their sum overflows float16
    exact = x.double()
    assert torch.equal(moment_of(x).matrix, exact.T @ exact)


def test_moments_of_two_halves_add_up_to_the_moment_of_the_whole():
    x = INPUTS["full rank"]
    total = moment_of(x[:15]) + moment_of(x[15:])
    np.testing.assert_allclose(total.matrix, x.T @ x, rtol=1e-12)
    assert total.count == len(x)


def test_adding_leaves_both_summands_alone():
    first, second = moment_of(np.ones((2, 3))), moment_of(np.ones((1, 3)))
    first + second
    assert (first.count, second.count) == (2, 1)
    assert first.matrix.eq(2).all()


def test_moments_of_different_layers_cannot_be_added():
    with pytest.raises(SpectrumError, match="dimension 3 and 4"):
        Moment(3) + Moment(4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite_are_refused_and_leave_no_trace(bad):
    moment = moment_of(np.ones((2, 3)))
    with pytest.raises(SpectrumError, match="NaN or infinite"):
        moment.update(np.array([[1.0, bad, 0.0]]))
    assert moment.count == 2
    assert moment.matrix.eq(2).all()


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 3)])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(SpectrumError, match=r"\(n, 3\)"):
        Moment(3).update(torch.zeros(shape))


def test_a_moment_without_inputs_has_no_spectrum():
    with pytest.raises(SpectrumError, match="no input"):
        Moment(3).spectrum()
    with pytest.raises(SpectrumError, match="at least one dimension"):
        Moment(0)


def test_a_moment_survives_a_checkpoint(tmp_path):
    moment = moment_of(INPUTS["full rank"])
    torch.save(moment.state_dict(), tmp_path / "moment.pt")
    restored = Moment.from_state_dict(torch.load(tmp_path / "moment.pt", weights_only=True))
    assert torch.equal(restored.matrix, moment.matrix)
    assert restored.count == moment.count


def test_a_moment_says_what_it_occupies():
    assert Moment(100).nbytes == 80_000


def test_null_basis_holds_the_smallest_directions():
    spectrum = moment_of(INPUTS["full rank"]).spectrum()
    assert torch.equal(spectrum.null_basis(2), spectrum.directions[:, 4:])
    assert spectrum.null_basis(0).shape == (6, 0)
    for rank in (-1, 7):
        with pytest.raises(SpectrumError, match=f"rank {rank} is out of range"):
            spectrum.null_basis(rank)


@pytest.mark.parametrize("values", [[1.0, np.nan], [1.0, -0.1], [1.0, 2.0], [np.inf, 1.0]])
def test_a_spectrum_refuses_values_that_cannot_be_singular_values(values):
    with pytest.raises(SpectrumError, match="descending"):
        Spectrum(torch.tensor(values), torch.eye(2))


def test_a_spectrum_needs_as_many_directions_as_values():
    with pytest.raises(SpectrumError, match="d × d"):
        Spectrum(torch.ones(3), torch.eye(2))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rank=st.integers(1, 5),
    outputs=st.integers(1, 8),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_stability_bound_holds_for_all_old_inputs_and_all_coefficients(seed, rank, outputs, scale):
    """Eq. 7, with ε₁ the smallest threshold that frees ``rank`` directions, so that σ_j = ε₁ ‖I‖_F."""
    rng = np.random.default_rng(seed)
    x = scale * inputs_with(10 ** rng.uniform(-3, 2, 6), seed=seed)
    coefficients = rng.standard_normal((rank, outputs))
    sigma = np.linalg.svd(x, compute_uv=False)[-rank]
    basis = moment_of(x).spectrum().null_basis(rank).numpy()
    change = np.linalg.norm(x @ basis @ coefficients, axis=1)  # ‖xᵀΔW‖₂ of each old input
    assert (change <= sigma * np.linalg.norm(coefficients, 2) * (1 + 1e-6)).all()


def test_the_largest_directions_violate_the_stability_bound():
    x = inputs_with(DISTINCT)
    rank, sigma = 2, DISTINCT[-2]
    basis = moment_of(x).spectrum().directions[:, :rank].numpy()
    change = np.linalg.norm(x @ basis @ np.eye(rank), axis=1)
    assert change.max() > 5 * sigma


def test_layer_profile_gives_the_interference_of_every_rank():
    """‖D U_r U_rᵀ I‖_F² is the sum of σ_i² ‖D u_i‖² over the r smallest directions."""
    x = inputs_with(DISTINCT)
    rng = np.random.default_rng(1)
    update, weight = rng.standard_normal((2, 3, 6))
    moment = moment_of(x)
    spectrum = moment.spectrum()
    profile = layer_profile("fc", 1, 2, moment.count, spectrum, torch.tensor(update), torch.tensor(weight))
    curve = np.cumsum((profile.sigma_squared * profile.update_energy)[::-1])
    left = np.linalg.svd(x.T)[0]
    for rank in range(1, 7):
        small = left[:, 6 - rank :]
        assert curve[rank - 1] == pytest.approx(np.linalg.norm(update @ small @ small.T @ x.T) ** 2, rel=1e-6)
    assert profile.update_energy.sum() == pytest.approx(np.linalg.norm(update) ** 2)
    assert profile.sigma_squared @ profile.weight_energy == pytest.approx(np.linalg.norm(weight @ x.T) ** 2)
