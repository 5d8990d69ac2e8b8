"""The analysis of a real run: what its profiles say without data is what the data say."""

import copy
from dataclasses import asdict

import numpy as np
import pytest
import torch

from nesskit import (
    NESS,
    FrobeniusThreshold,
    NESSSettings,
    NetworkCurves,
    TrainingSettings,
    build_model,
    capacity,
    collect_inputs,
    collect_moments,
    fit,
    interference_of_profile,
    layer_weights,
    load_run,
    load_stream,
    measured_interference,
    output_drift,
    profile_layers,
    stability_bound,
    stability_of_profile,
)
from nesskit.adaptation.adapt import adapted_layers
from nesskit.runs.events import EpochFinished, TaskFinished
from nesskit.runs.folder import RunFolder
from nesskit.spectra.profile import layer_profile
from nesskit.spectra.spectrum import Spectrum

RULE = FrobeniusThreshold(0.02)


class Finished:
    """Two tasks of permuted digits, two epochs each, and what the model was like in between."""

    def __init__(self, folder):
        stream = load_stream("permuted-digits", seed=0).first(2)
        self.old = stream[0].normalise(stream[0].train.x)
        self.updates = {}
        self.model = build_model(stream, seed=0)
        method = NESS(NESSSettings(filter=RULE))
        settings = TrainingSettings(epochs=2)
        self.run = fit(self.model, stream, method, settings, folder=str(folder), listeners=[self._listen])

    def _listen(self, event):
        if isinstance(event, TaskFinished) and event.task == 0:
            self.before = copy.deepcopy(self.model.backbone)
        if isinstance(event, EpochFinished) and event.task == 1:
            layers = adapted_layers(self.model.backbone)
            self.updates = {name: layer.delta_weight().detach() for name, layer in layers.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return Finished(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def profiles(finished):
    """As they come back from disk."""
    return load_run(finished.run.folder).profiles


def test_interference_of_the_first_layer_is_that_of_the_raw_pixels(finished, profiles):
    profile, update = profiles[0], finished.updates["layers.0"]
    pixels = finished.old.flatten(1)
    curve = interference_of_profile(profile)
    assert 0 < profile.rank < curve.dimension == 64
    assert curve.interference[-1] > 0
    for rank in (1, 5, profile.rank // 2, profile.rank, 64):
        measured = measured_interference(update, pixels, rank)
        assert curve.interference[rank] == pytest.approx(measured, abs=1e-7 * float(pixels.norm() * update.norm()))
    assert curve.output_norm == pytest.approx(
        float((pixels @ finished.before.layers[0].weight.detach().T).norm()), rel=1e-5
    )
    assert curve.relative_interference[-1] < 0.1  # old outputs have hardly moved


def test_interference_of_a_deep_layer_is_that_of_its_inputs(finished, profiles):
    rows = collect_inputs(finished.before, [finished.old], "layers.1")
    moved = float((rows.double() @ finished.updates["layers.1"].double().T).norm())
    assert interference_of_profile(profiles[1]).interference[-1] == pytest.approx(moved, rel=1e-6)


def test_the_update_stays_in_the_null_space(profiles):
    for profile in profiles:
        occupied = len(profile.sigma_squared) - profile.rank
        assert profile.update_energy[:occupied].sum() < 1e-10 * profile.update_energy.sum()
        curve = interference_of_profile(profile)
        assert curve.energy_share[profile.rank] == pytest.approx(1)


def test_the_bound_of_equation_7_holds_for_every_old_input(finished, profiles):
    for profile in profiles:
        rows = collect_inputs(finished.before, [finished.old], profile.layer)
        update = finished.updates[profile.layer]
        moment = collect_moments(finished.before, [finished.old], [profile.layer])[profile.layer]
        measured = stability_bound(update, moment, RULE, rows, profile.layer, profile.task)
        assert measured.rank == profile.rank
        assert 1 < measured.slack < measured.mean_slack
        assert measured.worst < measured.bound <= measured.threshold_bound
        known = stability_of_profile(profile)
        assert known.count == measured.count == len(rows)
        assert known.rms == pytest.approx(measured.rms, rel=1e-4)
        assert known.bound >= measured.bound * (1 - 1e-6)


def test_a_rule_that_was_used_frees_what_it_freed(profiles):
    point = NetworkCurves.of(profiles).at(RULE)
    assert [layer.rank for layer in point.layers] == [profile.rank for profile in profiles]
    assert point.trainable_share == pytest.approx(capacity(profiles).network_share[0])
    assert 0 < point.trainable_share < 1
    assert [profile.outputs for profile in profiles] == [128, 128]


def test_only_the_first_layer_is_covered_by_the_bound_alone(finished):
    first, second = output_drift(finished.before, finished.model.backbone, [finished.old]).layers
    assert first.upstream == first.cross == 0
    assert first.shares == pytest.approx((1, 0, 0))
    assert second.upstream > 0
    assert sum(second.shares) == pytest.approx(1)


def test_profiles_of_fine_tuning_can_be_made_too(finished, profiles):
    before, after = layer_weights(finished.before), layer_weights(finished.model.backbone)
    updates = {name: after[name] - before[name] for name in before}
    made = profile_layers(collect_moments(finished.before, [finished.old]), before, updates, task=1)
    for ours, theirs in zip(made, profiles, strict=True):
        np.testing.assert_allclose(ours.update_energy, theirs.update_energy, atol=1e-4 * theirs.update_energy.max())
        assert (ours.layer, ours.outputs, ours.rank) == (theirs.layer, theirs.outputs, len(theirs.sigma_squared))


def test_profiles_of_older_versions_are_still_read(finished, tmp_path):
    folder = finished.run.folder
    (tmp_path / "record.json").write_bytes((folder / "record.json").read_bytes())
    values = {f"{k}/{name}": v for k, p in enumerate(finished.run.profiles) for name, v in asdict(p).items()}
    np.savez(tmp_path / "profiles.npz", **{key: v for key, v in values.items() if not key.endswith("/outputs")})
    old = RunFolder(tmp_path).read().profiles
    assert [(p.layer, p.rank) for p in old] == [(p.layer, p.rank) for p in finished.run.profiles]
    assert [profile.outputs for profile in old] == [0, 0]
    assert np.isnan(capacity(old).network_share).all()


def test_a_profile_is_made_with_the_number_of_outputs():
    weight = torch.ones(5, 3)
    assert layer_profile("fc", 1, 2, 10, Spectrum(torch.ones(3), torch.eye(3)), weight, weight).outputs == 5
