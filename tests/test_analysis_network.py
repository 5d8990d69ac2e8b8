"""All layers under one rule: look-ups equal the filters themselves, totals the sums over layers."""

import time

import numpy as np
import pytest
import torch

from nesskit import NetworkCurves, capacity, profile_layers, profiles_by_task
from nesskit.errors import NesskitError, SpectrumError
from nesskit.spectra.filters import (
    EnergyThreshold,
    FixedRank,
    FrobeniusThreshold,
    InterferenceBudget,
    NuclearThreshold,
    Probe,
    RelativeThreshold,
    SoftFilter,
)
from nesskit.spectra.moment import Moment
from nesskit.spectra.profile import LayerProfile, layer_profile

SIZES = {"conv1": (8, 27), "fc1": (16, 12), "fc2": (4, 16)}


def network(seed=0, task=1):
    """For every layer raw inputs, weight and update, and the profiles of them."""
    rng = np.random.default_rng(seed)
    parts, profiles = {}, []
    for name, (outputs, d) in SIZES.items():
        x = rng.standard_normal((60, d)) * np.logspace(0, -4, d) @ np.linalg.qr(rng.standard_normal((d, d)))[0]
        weight, update = (torch.from_numpy(rng.standard_normal((outputs, d))) for _ in range(2))
        moment = Moment(d)
        moment.update(x)
        spectrum = moment.spectrum()
        parts[name] = x, weight, update, spectrum
        profiles.append(layer_profile(name, task, d, moment.count, spectrum, update, weight))
    return parts, profiles


RULES = [
    *(
        rule(eps)
        for rule in (FrobeniusThreshold, NuclearThreshold, RelativeThreshold)
        for eps in np.logspace(-5, 0.3, 9)
    ),
    *(EnergyThreshold(share) for share in (0.5, 0.9, 0.999, 1.0)),
    *(FixedRank(rank) for rank in (0, 3, 12)),
    *(InterferenceBudget(budget) for budget in (0.001, 0.03, 0.5, 5.0)),
    *(SoftFilter(tau, scale) for tau in (0.01, 1.0) for scale in ("absolute", "frobenius")),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("task", [1, 4])
def test_a_look_up_is_what_the_filter_does_to_the_update(rule, task):
    parts, profiles = network(task=task)
    point = NetworkCurves.of(profiles).at(rule)
    for layer in point.layers:
        x, weight, update, spectrum = parts[layer.layer]
        weights = rule.weights(spectrum, Probe(weight, update, tasks=task))
        filtered = update @ spectrum.directions * weights @ spectrum.directions.T
        assert layer.rank == int((weights > 0).sum())
        moved = float((torch.from_numpy(x) @ filtered.T).norm())
        full = float((torch.from_numpy(x) @ update.T).norm())
        assert layer.interference == pytest.approx(moved, abs=1e-9 * full)
        assert layer.energy_kept == pytest.approx(float(filtered.square().sum()), rel=1e-9, abs=1e-12)
        assert layer.energy_share == pytest.approx(layer.energy_kept / float(update.square().sum()))
        outputs = float((torch.from_numpy(x) @ weight.T).norm())
        assert layer.relative_interference == pytest.approx(layer.interference / outputs)
        assert layer.trainable == layer.rank * len(weight)
        assert layer.interference <= layer.bound * (1 + 1e-12)
        assert layer.relative_bound == pytest.approx(layer.bound / outputs)


def test_a_singular_value_at_the_cut_is_free():
    energies = np.ones(3)
    curves = NetworkCurves.of([LayerProfile("fc", 1, 3, 10, np.array([16.0, 4.0, 1.0]), energies, energies)])
    assert [curves.at(RelativeThreshold(eps)).rank for eps in (0.24, 0.25, 0.5, 1.0)] == [0, 1, 2, 3]


def test_the_bound_is_that_of_equation_7_with_the_largest_free_singular_value():
    parts, profiles = network()
    rule = FrobeniusThreshold(0.01)
    for layer in NetworkCurves.of(profiles).at(rule).layers:
        *_, update, spectrum = parts[layer.layer]
        basis = spectrum.null_basis(layer.rank)
        assert 0 < layer.rank < layer.dimension
        expected = float(spectrum.singular_values[-layer.rank] * (update @ basis).norm())
        assert layer.bound == pytest.approx(expected)
        assert layer.cut == rule.cut(spectrum)
        assert spectrum.singular_values[-layer.rank] <= layer.cut < spectrum.singular_values[-layer.rank - 1]


def test_totals_are_sums_over_layers():
    _, profiles = network()
    point = NetworkCurves.of(profiles).at(NuclearThreshold(0.01))
    assert point.rank == sum(layer.rank for layer in point.layers)
    assert point.dimension == sum(d for _, d in SIZES.values())
    assert point.trainable == sum(layer.rank * SIZES[layer.layer][0] for layer in point.layers)
    assert point.trainable_share == pytest.approx(point.trainable / sum(o * d for o, d in SIZES.values()))
    squares = sum(layer.interference**2 for layer in point.layers)
    outputs = sum(profile.sigma_squared @ profile.weight_energy for profile in profiles)
    assert point.relative_interference == pytest.approx(np.sqrt(squares / outputs))
    energy = sum(profile.update_energy.sum() for profile in profiles)
    assert point.energy_share == pytest.approx(point.energy_kept / energy)


@pytest.mark.parametrize("rule", [FrobeniusThreshold, NuclearThreshold, RelativeThreshold])
def test_the_frontier_of_a_rule_holds_what_every_eps_gives(rule):
    _, profiles = network()
    curves = NetworkCurves.of(profiles)
    frontier = curves.frontier(rule)
    assert len(frontier.eps) == 1 + sum(d for _, d in SIZES.values())
    assert frontier.eps[0] == 0
    assert (np.diff(frontier.eps) >= 0).all()
    for k in (1, 7, 30, len(frontier.eps) - 1):
        point = curves.at(rule(frontier.eps[k] * (1 + 1e-12)))
        assert point.rank == k
        assert point.interference == pytest.approx(frontier.interference[k])
        assert point.energy_share == pytest.approx(frontier.energy_share[k])
        assert point.trainable_share == pytest.approx(frontier.trainable_share[k])
        assert point.relative_interference == pytest.approx(frontier.relative_interference[k])
        before = curves.at(rule(frontier.eps[k] * (1 - 1e-9)))
        assert before.rank == np.count_nonzero(frontier.eps[1:] < frontier.eps[k])  # k - 1, but for ties
    assert 0 < frontier.knee < len(frontier.eps) - 1


def test_records_of_older_versions_do_not_know_the_outputs():
    vector = np.array([4.0, 1.0])
    curves = NetworkCurves.of([LayerProfile("fc", 1, 1, 10, vector, vector, vector)])
    point = curves.at(FixedRank(1))
    assert point.layers[0].trainable_share == 0.5
    assert np.isnan(point.trainable_share)
    assert np.isnan(curves.frontier(NuclearThreshold).trainable_share).all()


def test_any_eps_is_a_look_up():
    rng = np.random.default_rng(0)
    profiles = [
        LayerProfile(f"fc{k}", 1, d, 10, np.sort(rng.random(d))[::-1].copy(), rng.random(d), rng.random(d), 100)
        for k, d in enumerate((48, 576, 512, 1024, 2048))
    ]
    curves = NetworkCurves.of(profiles)
    rules = [FrobeniusThreshold(eps) for eps in np.logspace(-4, 0, 200)]
    curves.at(rules[0])
    best = float("inf")
    for _ in range(5):  # the best of five: another process may take the core for a moment
        started = time.perf_counter()
        for rule in rules:
            curves.at(rule)
        best = min(best, (time.perf_counter() - started) / len(rules))
    assert best < 1e-3


# --- choosing profiles


def test_profiles_are_sorted_by_task_and_chosen_by_layer():
    profiles = network(task=1)[1] + network(task=2)[1]
    by_task = profiles_by_task(profiles)
    assert list(by_task) == [1, 2]
    curves = NetworkCurves.of(by_task[2])
    assert curves.names == list(SIZES)
    assert curves["fc1"].profile is by_task[2][1]
    with pytest.raises(NesskitError, match="no profile of layer 'fc9'; there are conv1, fc1, fc2"):
        curves["fc9"]


def test_profiles_of_several_tasks_or_of_none_are_refused():
    with pytest.raises(NesskitError, match=r"of tasks 2, 3: choose one, profiles_by_task\(profiles\)\[task\]"):
        NetworkCurves.of(network(task=1)[1] + network(task=2)[1])
    for function in (NetworkCurves.of, profiles_by_task, capacity):
        with pytest.raises(NesskitError, match="there are no layer profiles: take a run of ness"):
            function([])


def test_a_rank_that_a_layer_has_not_is_refused():
    with pytest.raises(SpectrumError, match=r"rank 20 is out of range: this layer has 12 directions"):
        NetworkCurves.of(network()[1]).at(FixedRank(20))


# --- capacity


def profile(layer, task, rank, d, outputs=0):
    return LayerProfile(layer, task, rank, 10, np.ones(d), np.ones(d), np.ones(d), outputs)


def test_capacity_counts_free_directions_and_trainable_parameters():
    result = capacity([profile("a", 1, 4, 4, 3), profile("b", 1, 5, 10, 2), profile("a", 2, 1, 4, 3)])
    assert result.layers == ("a", "b")
    assert result.tasks == (1, 2)
    np.testing.assert_array_equal(result.rank, [[4, 1], [5, np.nan]])
    np.testing.assert_array_equal(result.free_share, [[1, 0.25], [0.5, np.nan]])
    np.testing.assert_array_equal(result.trainable, [[12, 3], [10, np.nan]])
    np.testing.assert_array_equal(result.network_trainable, [22, np.nan])
    np.testing.assert_array_equal(result.network_share, [22 / 32, np.nan])


def test_capacity_of_older_records_needs_to_be_told_the_outputs():
    old = [profile("a", 1, 2, 4), profile("b", 1, 5, 10)]
    assert np.isnan(capacity(old).network_share).all()
    assert capacity(old).free_share.tolist() == [[0.5], [0.5]]
    assert capacity(old, {"a": 3, "b": 2}).network_trainable.tolist() == [16]


def test_capacity_refuses_profiles_that_are_not_of_one_run():
    with pytest.raises(SpectrumError, match="'a' has 4 inputs in one profile and 5 in another"):
        capacity([profile("a", 1, 4, 4), profile("a", 2, 4, 5)])
    with pytest.raises(NesskitError, match="two profiles of layer 'a', task 2: take the profiles of one run"):
        capacity([profile("a", 1, 4, 4), profile("a", 1, 3, 4)])


# --- profiles of any update


def test_profiles_of_any_update():
    parts, expected = network()
    moments = {}
    for name, (x, *_) in parts.items():
        moments[name] = Moment(x.shape[1])
        moments[name].update(x)
    weights = {name: part[1] for name, part in parts.items()}
    updates = {name: part[2].reshape(-1, 3, 3, 3) if name == "conv1" else part[2] for name, part in parts.items()}
    for ours, theirs in zip(profile_layers(moments, weights, updates, task=1), expected, strict=True):
        assert (ours.layer, ours.task, ours.rank, ours.outputs) == (theirs.layer, 1, theirs.rank, theirs.outputs)
        np.testing.assert_allclose(ours.update_energy, theirs.update_energy, rtol=1e-9)


def test_moments_of_another_model_are_refused():
    moment, weight = Moment(3), {"fc": np.ones((2, 3))}
    with pytest.raises(SpectrumError, match="layer 'fc' was never run"):
        profile_layers({"fc": moment}, weight, weight)
    moment.update(np.eye(3))
    with pytest.raises(
        NesskitError, match=r"moments and weights belong to different models .* no partner for fc, other"
    ):
        profile_layers({"other": moment}, weight, weight)
    with pytest.raises(NesskitError, match="moments and updates"):
        profile_layers({"fc": moment}, weight, {})
    with pytest.raises(SpectrumError, match="layer 'fc': expected the update with 3 columns"):
        profile_layers({"fc": moment}, weight, {"fc": np.ones((2, 4))})
    with pytest.raises(SpectrumError, match="layer 'fc': update and weight have 5 and 2 outputs"):
        profile_layers({"fc": moment}, weight, {"fc": np.ones((5, 3))})
