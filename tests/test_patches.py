"""The moment of a convolution's patches by shared rows equals the plain one, every patch written out in float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nesskit.adaptation import patches
from nesskit.adaptation.capture import layer_inputs
from nesskit.adaptation.patches import Geometry, patch_moment
from nesskit.adaptation.watch import watching
from nesskit.adaptation.weights import known_kind
from nesskit.spectra.moment import Moment


def plain_moment(layer, x, augment=False):
    """Σ p pᵀ over patches that are all written out, and their count."""
    pieces = list(layer_inputs(layer, x, augment))
    rows = torch.cat([rows for rows, _ in pieces]).double()
    return rows.T @ rows, sum(count for _, count in pieces)


def seen(layer, x):
    """What ``layer`` convolves when it is called with ``x``: geometry, and input with any padding but zeros."""
    uses = []
    with torch.no_grad(), watching(layer, {"": layer}, {"": known_kind(layer)}, lambda _, use: uses.append(use)):
        layer(x)
    (use,) = uses
    return use.geometry, use.x


def assert_equal_to_plain(layer, x, augment=False):
    moment, count = patch_moment(*seen(layer, x), augment)
    expected, expected_count = plain_moment(layer, x, augment)
    torch.testing.assert_close(moment, expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))
    assert torch.equal(moment, moment.T) or torch.allclose(moment, moment.T, rtol=1e-14)
    assert count == expected_count


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_it_is_the_moment_of_the_written_out_patches(convolution, augment):
    assert_equal_to_plain(*convolution, augment)


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    more=st.tuples(st.integers(0, 6), st.integers(0, 5)),
    groups=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**16),
)
def test_it_holds_for_any_geometry(kernel, stride, dilation, more, groups, seed):
    torch.manual_seed(seed)
    layer = nn.Conv2d(2, 2, kernel, stride, dilation=dilation, groups=groups).double()
    size = [d * (k - 1) + 1 + m for k, d, m in zip(kernel, dilation, more, strict=True)]
    assert_equal_to_plain(layer, torch.randn(2, 2, *size, dtype=torch.float64), augment=True)


@pytest.mark.parametrize("values", [1, 300, 1000])
def test_the_buffer_bounds_memory_and_changes_nothing(monkeypatch, values):
    geometry, x = Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1), torch.randn(6, 2, 5, 5, dtype=torch.float64)
    whole, count = patch_moment(geometry, x)
    written = []
    flat_patches = patches._flat_patches
    monkeypatch.setattr(patches, "BUFFER_VALUES", values)
    monkeypatch.setattr(patches, "_flat_patches", lambda *given: written.append(flat_patches(*given)) or written[-1])
    in_pieces, count_in_pieces = patch_moment(geometry, x)
    one_sample = 7 * 5 * 3 * 2  # padded rows, outputs a row, kernel width, channels
    assert len(written) > 1
    assert max(rows.numel() for rows in written) <= max(values, one_sample)
    torch.testing.assert_close(in_pieces, whole, rtol=1e-13, atol=1e-13)
    assert count_in_pieces == count == 6 * 25


@pytest.mark.parametrize("size", [4, 14, 40])
def test_every_pair_of_rows_is_multiplied_once(size):
    """What makes it fast: of images of any height the products of a 3 × 3 kernel are 3 a row, at most, not 9."""
    geometry = Geometry((3, 3), (1, 1), (0, 0), (1, 1), 1)
    shared = list(patches._shared_rows(geometry, size))
    pairs = [
        (upper, lower)
        for s in shared
        for upper, lower in zip(range(size)[s.rows], range(size)[s.rows_below(geometry)], strict=True)
    ]
    assert len(pairs) == len(set(pairs)) <= 3 * size


def test_it_sums_half_precision_in_float64():
    x = (300 * torch.randn(2, 2, 4, 4)).half()  # 300² is too much for float16
    geometry = Geometry((3, 3), (1, 1), (1, 1), (1, 1), 1)
    exact, _ = plain_moment(nn.Conv2d(2, 3, 3, padding=1).double(), x.double())
    torch.testing.assert_close(patch_moment(geometry, x)[0], exact, rtol=1e-12, atol=1e-6)


def test_null_directions_of_real_shapes_agree_with_the_plain_moment():
    """Rank-deficient patches, as dead channels make them: the same null space, and energies in it at round-off."""
    layer, x = nn.Conv2d(8, 4, 3), torch.rand(20, 8, 6, 6)
    x[:, 5:] = x[:, :3]  # three channels repeat others
    matrix, count = patch_moment(*seen(layer, x))
    moment = Moment(72)
    moment.add(matrix, count)
    spectrum = moment.spectrum()
    rank = int((spectrum.singular_values < 1e-6 * spectrum.singular_values[0]).sum())
    assert rank == 27
    basis = spectrum.null_basis(rank)
    rows = torch.cat([rows for rows, _ in layer_inputs(layer, x)]).double()
    np.testing.assert_allclose(rows @ basis, 0, atol=1e-6 * float(spectrum.singular_values[0]))
