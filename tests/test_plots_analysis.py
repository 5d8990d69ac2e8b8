"""Figures of the analysis: what is drawn is what was computed, and the words say the same."""

import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from nesskit import capacity, interference_by_rank, null_space_history, plots
from nesskit.analysis import (
    FeatureDrift,
    LayerDrift,
    NetworkCurves,
    OutputDrift,
    StabilityBound,
    SubspaceOverlap,
    stability_of_profile,
)
from nesskit.errors import NesskitError, SpectrumError
from nesskit.spectra.filters import FixedRank, FrobeniusThreshold, InterferenceBudget, NuclearThreshold
from nesskit.spectra.moment import Moment
from nesskit.spectra.profile import LayerProfile, layer_profile
from nesskit.spectra.spectrum import Spectrum

SIGMA = np.array([8.0, 4.0, 2.0, 1.0, 0.0])


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def profile(layer="fc", task=1, rank=2, d=5, seed=0):
    rng = np.random.default_rng(seed)
    spectrum = Spectrum(torch.from_numpy(np.sort(rng.random(d))[::-1].copy()), torch.eye(d))
    update, weight = torch.from_numpy(rng.standard_normal((2, 3, d)))
    return layer_profile(layer, task, rank, 10, spectrum, update, weight)


def moment_of(x):
    moment = Moment(np.shape(x)[1])
    moment.update(np.asarray(x, dtype=float))
    return moment


def part(ax, gid):
    return next(artist for artist in ax.get_children() if artist.get_gid() == gid)


def legend_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


# --- spectra


def test_the_spectrum_shows_every_singular_value_and_zeros_inside_the_round_off_band():
    ax = plots.plot_spectrum(SIGMA)
    line = part(ax, "spectrum")
    assert ax.get_yscale() == "log"
    np.testing.assert_array_equal(line.get_xdata(), [1, 2, 3, 4, 5])
    np.testing.assert_allclose(line.get_ydata()[:4], SIGMA[:4])
    assert 0 < line.get_ydata()[4] < 1e-7 * 8
    assert [text.get_text() for text in ax.texts] == ["round-off"]
    assert not plots.plot_spectrum(SIGMA[:4]).texts


def test_cuts_stand_before_the_first_free_direction_and_at_their_height():
    # ‖I‖_F = √85 ≈ 9.22, Σσ = 15.
    rules = [FrobeniusThreshold(0.25), NuclearThreshold(0.3), FixedRank(1)]
    ax = plots.plot_spectrum(SIGMA, rules, title="a $title")
    assert [part(ax, f"cut {name}").get_xdata()[0] for name in ("frobenius", "nuclear", "rank")] == [2.5, 1.5, 4.5]
    assert part(ax, "height frobenius").get_ydata()[0] == pytest.approx(0.25 * np.sqrt(85))
    assert part(ax, "height nuclear").get_ydata()[0] == pytest.approx(4.5)
    null = part(ax, "null space")
    assert (null.get_x(), null.get_x() + null.get_width()) == (2.5, 5.5)  # of the first rule
    assert legend_of(ax) == ["Frobenius ε = 0.25: r = 3 of 5", "nuclear ε = 0.3: r = 4 of 5", "rank 1: r = 1 of 5"]
    assert ax.get_title(loc="left") == r"a \$title"
    ax.figure.canvas.draw()


def test_every_kind_of_spectrum_can_be_drawn_and_a_profile_serves_every_rule():
    for source in (SIGMA, Spectrum(torch.from_numpy(SIGMA), torch.eye(5)), moment_of(np.diag(SIGMA))):
        np.testing.assert_allclose(part(plots.plot_spectrum(source), "spectrum").get_ydata()[:4], SIGMA[:4])
    ax = plots.plot_spectrum(profile("conv1"), [InterferenceBudget(0.1)])
    assert ax.get_title(loc="left") == "conv1"
    with pytest.raises(SpectrumError, match="InterferenceBudget needs"):
        plots.plot_spectrum(SIGMA, [InterferenceBudget(0.1)])
    with pytest.raises(SpectrumError, match="the spectrum is empty"):
        plots.plot_spectrum([])


def test_all_layers_as_small_multiples():
    profiles = [profile(f"fc{k}", d=4 + k, seed=k) for k in range(5)]
    axes = plots.plot_layer_spectra(profiles, [FrobeniusThreshold(0.3), FixedRank(2)])
    assert len(axes) == len(axes[0].figure.axes) == 5
    ranks = [curve.null_rank(FrobeniusThreshold(0.3)) for curve in NetworkCurves.of(profiles).layers]
    for k, (ax, rank) in enumerate(zip(axes, ranks, strict=True)):
        assert ax.get_title(loc="left") == f"fc{k}, r = {rank} and 2 of {4 + k}"
        assert ax.get_legend() is None
    (legend,) = axes[0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["Frobenius ε = 0.3", "rank 2"]
    axes[0].figure.canvas.draw()
    assert not plots.plot_layer_spectra(profiles)[0].figure.legends
    with pytest.raises(NesskitError, match="no layer profiles"):
        plots.plot_layer_spectra([])


def test_a_spectrum_in_words():
    text = plots.describe_spectrum(SIGMA, [FixedRank(2)])
    assert "5 directions, from 8 down to 0 (1 at or under round-off)" in text
    assert "rank 2 frees 2." in text
    assert "of layer fc" in plots.describe_spectrum(profile())


# --- subspaces


def test_principal_angles_and_their_overlap():
    overlaps = {"tasks 1 and 2": SubspaceOverlap(np.array([0.0, 90.0]), (2, 3), 6)}
    ax = plots.plot_principal_angles(overlaps)
    np.testing.assert_array_equal(ax.get_lines()[0].get_ydata(), [0, 90])
    assert legend_of(ax) == ["tasks 1 and 2: 50% shared (by chance 50%)"]
    assert "50% shared (by chance 50%), angles 0° to 90°" in plots.describe_principal_angles(overlaps)
    nothing = {"none": SubspaceOverlap(np.empty(0), (0, 3), 6)}
    plots.plot_principal_angles(nothing).figure.canvas.draw()
    assert "none: one of them is empty." in plots.describe_principal_angles(nothing)


def test_the_null_space_over_time():
    history = null_space_history([moment_of(np.eye(4)[[k]]) for k in range(3)], FrobeniusThreshold(1e-6))
    free, kept = plots.plot_null_space(history).get_lines()
    np.testing.assert_allclose(free.get_ydata(), [75, 50, 25])
    np.testing.assert_allclose(kept.get_ydata(), [100, 200 / 3, 100 / 3])
    assert "Free directions of 4: 3 after task 1, 1 after task 3; 33% of the first" in plots.describe_null_space(
        history
    )


# --- interference


def curve(weight=None):
    return interference_by_rank(np.eye(4), moment_of(np.diag([9.0, 3.0, 1.0, 1.0])), weight)


def test_interference_and_energy_by_rank_are_shares_and_the_knee_joins_them():
    ax = plots.plot_interference(curve(2 * np.eye(4)), rank=2, title="fc")
    np.testing.assert_allclose(part(ax, "energy").get_ydata(), [0, 25, 50, 75, 100])
    np.testing.assert_allclose(part(ax, "cost").get_ydata(), 100 * np.sqrt(np.array([0, 1, 2, 11, 92]) / 92))
    np.testing.assert_array_equal(part(ax, "knee").get_xdata(), [3, 3])
    assert part(ax, "rank").get_xdata()[0] == 2
    assert "100 % = 0.5 ‖W I‖" in legend_of(ax)[1]
    ax.figure.canvas.draw()


def test_interference_in_words():
    assert plots.describe_interference(curve()) == (
        "The knee lies at rank 3 of 4: 75% of the update's energy is kept for 35% of its interference."
    )
    text = plots.describe_interference(curve(2 * np.eye(4)), rank=4)
    assert text.startswith("At rank 4 of 4: 100%")
    assert text.endswith("100% of its interference, 0.5 of the size of the old outputs.")


def test_an_update_of_zeros_can_be_drawn_and_said():
    nothing = interference_by_rank(np.zeros((1, 2)), moment_of(np.eye(2)), np.ones((1, 2)))
    for draw, say in (
        (plots.plot_interference, plots.describe_interference),
        (plots.plot_frontier, plots.describe_frontier),
    ):
        draw(nothing).figure.canvas.draw()
        assert say(nothing) == "The update is zero: there is nothing to keep and nothing moves."


def test_frontiers_are_relative_to_the_outputs_where_these_are_known():
    ax = plots.plot_frontier(curve(2 * np.eye(4)))
    np.testing.assert_allclose(part(ax, "frontier").get_ydata(), 50 * np.sqrt(np.array([0, 1, 2, 11, 92]) / 92))
    assert ax.get_ylabel() == "change of old outputs (%)"
    ax = plots.plot_frontier({"known": curve(2 * np.eye(4)), "unknown": curve()})
    assert "interference" in ax.get_ylabel()
    assert legend_of(ax) == ["known", "unknown"]
    knee = part(ax, "knee")
    assert (knee.get_xdata()[0], knee.get_ydata()[0]) == pytest.approx((75, 100 * np.sqrt(11 / 92)))


def test_a_point_stands_where_a_rule_puts_it():
    curves = NetworkCurves.of([profile("a"), profile("b", d=8, seed=1)])
    point = curves.at(FrobeniusThreshold(0.3))
    ax = plots.plot_frontier(curves.frontier(FrobeniusThreshold), points=[point], log=True)
    ring = part(ax, "point")
    assert ring.get_xdata()[0] == pytest.approx(100 * point.energy_share)
    assert ring.get_ydata()[0] == pytest.approx(100 * point.relative_interference)
    assert ax.get_yscale() == "log"
    ax.figure.canvas.draw()
    axes = plots.plot_layer_frontiers(curves, [FrobeniusThreshold(0.3), FixedRank(1)])
    assert [ax.get_title(loc="left") for ax in axes] == ["a", "b"]
    assert part(axes[1], "point").get_xdata()[0] == pytest.approx(100 * point.layers[1].energy_share)


def test_frontiers_in_words():
    assert "75% of the update's energy is kept for 35%" in plots.describe_frontier(curve())
    text = plots.describe_frontier(curve(2 * np.eye(4)))
    assert text.endswith("change by 0.17 of their size; the whole update would change them by 0.5.")


# --- stability


def bound(layer, task, worst=2.0):
    return StabilityBound(layer, task, 3, 4.0, np.nan, 5.0, 6.0, worst, 1.0, 1.2, 16)


def test_the_bound_stands_over_the_worst_and_the_mean_input():
    ax = plots.plot_stability([bound("a", 1), bound("b", 1, worst=10.0)])
    high, low, mean = (line.get_ydata() for line in ax.get_lines())
    assert high.tolist() == [20, 20]
    assert low.tolist() == [2, 10]
    assert mean.tolist() == [1, 1]
    assert [text.get_text() for text in ax.texts] == ["10×", "2×"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b"]
    assert plots.describe_stability([bound("a", 1)]).endswith("a: bound 10 times the worst input.")
    ax.figure.canvas.draw()


def test_profiles_have_a_bound_for_the_root_mean_square():
    bounds = [stability_of_profile(profile(task=task, rank=rank)) for task, rank in ((1, 5), (2, 0))]
    ax = plots.plot_stability(bounds)
    high, low = (line.get_ydata() for line in ax.get_lines())
    assert high[0] == pytest.approx(bounds[0].rms_bound)
    assert low[0] == pytest.approx(bounds[0].rms)
    assert np.isnan(high[1])  # nothing free: a logarithm cannot show it
    assert [text.get_text() for text in ax.get_xticklabels()] == ["task 2", "task 3"]
    assert "root mean square" in plots.describe_stability(bounds)


def test_layers_and_tasks_are_told_apart():
    ax = plots.plot_stability([bound("a", 1), bound("a", 2), bound("b", 1)])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a, task 2", "a, task 3", "b, task 2"]
    with pytest.raises(NesskitError, match="no bound to draw"):
        plots.plot_stability([])


# --- the network


def test_capacity_over_tasks():
    ranks = {("a", 1): 4, ("b", 1): 2, ("a", 2): 1, ("b", 2): 1}
    vector = np.ones(4)
    profiles = [LayerProfile(*place, rank, 10, vector, vector, vector, 3) for place, rank in ranks.items()]
    ax = plots.plot_capacity(capacity(profiles))
    values = [line.get_ydata().tolist() for line in ax.get_lines()]
    assert values == [[100, 25], [50, 25], [75, 25]]
    assert legend_of(ax) == ["a", "b", "all layers"]
    assert "task 2 and in task 3: a 100% and 25%; b 50% and 25%" in plots.describe_capacity(capacity(profiles))


def drift():
    layers = (
        LayerDrift("a", 0.2, 0.2, 0.0, 0.0, (1.0, 0.0, 0.0)),
        LayerDrift("b", 0.1, 0.05, 0.1, 0.02, (0.5, 0.8, -0.3)),
        LayerDrift("c", 0.0, 0.0, 0.0, 0.0, (np.nan,) * 3),
    )
    return OutputDrift(layers, 0.15)


def test_the_parts_of_a_drift_add_up_to_its_total():
    ax = plots.plot_drift(drift())
    bars = np.array([[bar.get_height() for bar in container] for container in ax.containers[:3]])
    np.testing.assert_allclose(bars, [[20, 5, 0], [0, 8, 0], [0, -3, 0]], atol=1e-12)
    np.testing.assert_allclose(bars.sum(axis=0), [20, 10, 0])
    own, upstream, cross = ([bar.get_y() for bar in container] for container in ax.containers[:3])
    assert (own[1], upstream[1], cross[1]) == (0, pytest.approx(5), 0)  # what counteracts goes down from zero
    assert ax.containers[3][0].get_height() == pytest.approx(15)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["a", "b", "c", "network"]
    ax.figure.canvas.draw()


def test_drift_in_words():
    text = plots.describe_drift(drift())
    assert "a 20.0%, 100% its own; b 10.0%, 50% its own; c 0.0%. The network's outputs change by 15.0%." in text


def test_what_kept_moments_miss():
    drifts = [FeatureDrift("fc", 0.5, 3, 2, 0.01, 0.04, 8)]
    ax = plots.plot_feature_drift(drifts)
    assert [line.get_ydata()[0] for line in ax.get_lines()] == pytest.approx([1, 4])
    assert "fc 1.00% believed, 4.00% found, moments 50% apart" in plots.describe_feature_drift(drifts)
    with pytest.raises(NesskitError, match="no layer to draw"):
        plots.plot_feature_drift([])


# --- all of them


def test_they_draw_where_they_are_told_and_change_no_setting():
    before = dict(mpl.rcParams)
    history = null_space_history([moment_of(np.eye(3)[:2])], FixedRank(1))
    overlaps = {"a": SubspaceOverlap(np.zeros(1), (1, 1), 2)}
    drawings = [
        (plots.plot_spectrum, SIGMA),
        (plots.plot_principal_angles, overlaps),
        (plots.plot_null_space, history),
        (plots.plot_interference, curve()),
        (plots.plot_frontier, curve()),
        (plots.plot_stability, [bound("a", 1)]),
        (plots.plot_capacity, capacity([profile()])),
        (plots.plot_drift, drift()),
        (plots.plot_feature_drift, [FeatureDrift("fc", 0.5, 3, 2, 0.01, 0.04, 8)]),
    ]
    for draw, what in drawings:
        _, axes = plt.subplots(1, 2, layout="constrained")
        assert draw(what, ax=axes[1]) is axes[1]
    assert dict(mpl.rcParams) == before


def test_lines_that_are_no_methods_differ_without_colour():
    lines = plots.plot_frontier({str(k): curve() for k in range(28)}).get_lines()
    looks = [(line.get_color(), line.get_linestyle()) for line in lines if line.get_gid() == "frontier"]
    assert len(set(looks)) == 28
    assert all(one[1] != other[1] for one, other in itertools.pairwise(looks))


def test_every_public_name_is_there():
    assert all(hasattr(plots, name) for name in plots.__all__)
    assert plots.style.__module__ == "nesskit.plots.drawing"
