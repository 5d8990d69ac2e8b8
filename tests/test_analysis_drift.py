"""Drift through depth: the split of every layer's change, and what kept moments miss."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from nesskit import adapt, collect_inputs, collect_moments, feature_drift, output_drift
from nesskit.errors import AdaptationError, NesskitError, SpectrumError
from nesskit.spectra.filters import FixedRank, FrobeniusThreshold
from nesskit.spectra.moment import Moment


def network():
    return nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", groups=2),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 4, 2, stride=2, bias=False),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(36, 10),
        nn.ReLU(),
        nn.Linear(10, 3, bias=False),
    )


def changed(model, names=None, scale=0.1):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if names is None or name in names:
                parameter += scale * torch.randn_like(parameter)
    return other


def batches(count=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(5, 4, 6, 6, generator=generator) for _ in range(count)]


def outputs_of(model, name, data):
    """(all outputs of one layer), in float64, by a hook of the test's own."""
    found = []
    model = copy.deepcopy(model).double().eval()
    model.get_submodule(name).register_forward_hook(lambda _, __, output: found.append(output.clone()))
    with torch.no_grad():
        for x in data:
            model(x.double())
    return torch.cat(found)


def test_the_total_is_how_far_the_outputs_of_every_layer_moved():
    before, data = network(), batches()
    after = changed(before)
    drift = output_drift(before, after, data)
    assert [layer.layer for layer in drift.layers] == ["0", "3", "6", "8"]
    for layer in drift.layers:
        old, new = outputs_of(before, layer.layer, data), outputs_of(after, layer.layer, data)
        assert layer.total == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-5)
        assert sum(layer.shares) == pytest.approx(1)
    old, new = outputs_of(before, "8", data), outputs_of(after, "8", data)
    assert drift.features == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-4)


def test_the_three_parts_of_a_linear_layer_by_hand():
    before = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    after = copy.deepcopy(before)
    with torch.no_grad():
        before[0].weight.copy_(torch.eye(2))
        after[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        before[1].weight.copy_(torch.tensor([[4.0, 3.0]]))
        after[1].weight.copy_(torch.tensor([[5.0, 2.0]]))
    drift = output_drift(before, after, [torch.tensor([[0.0, 1.0]])])
    first, second = drift.layers
    # Layer 1: (0, 1) → (0, 3). Layer 2: 3 → 6; own ΔW x = -1, upstream W Δx = 6, cross ΔW Δx = -2.
    assert (first.own, first.upstream, first.cross, first.total) == (2, 0, 0, 2)
    assert first.shares == (1, 0, 0)
    assert (second.own, second.upstream, second.cross, second.total) == pytest.approx((1 / 3, 2, 2 / 3, 1))
    assert second.shares == pytest.approx((-1 / 3, 2, -2 / 3))
    assert drift.features == pytest.approx(1)


def test_a_layer_is_charged_with_its_own_change_only():
    before, data = network(), batches()
    drift = {d.layer: d for d in output_drift(before, changed(before, ["3.weight"]), data).layers}
    assert drift["0"].total == 0
    assert np.isnan(drift["0"].shares).all()
    assert drift["3"].shares == (1, 0, 0)
    assert drift["3"].total == drift["3"].own > 0
    for name in ("6", "8"):
        assert drift[name].own == drift[name].cross == 0
        assert drift[name].shares == (0, 1, 0)


def test_a_change_of_the_bias_or_of_batchnorm_counts_where_it_happens():
    before, data = network(), batches()
    bias = {d.layer: d for d in output_drift(before, changed(before, ["6.bias"]), data).layers}
    assert bias["6"].shares == (1, 0, 0)
    old, new = outputs_of(before, "6", data), outputs_of(changed(before, []), "6", data)
    assert torch.equal(old, new)
    norm = {d.layer: d for d in output_drift(before, changed(before, ["1.weight"]), data).layers}
    assert norm["0"].total == 0
    assert norm["3"].shares == (0, 1, 0)


def test_the_own_part_is_the_interference_of_the_layers_update():
    before, data = network(), batches()
    after = changed(before)
    moment = collect_moments(before, data)["6"]
    update = (after[6].weight - before[6].weight).detach()
    rows = collect_inputs(before, data, "6")
    assert moment.count == len(rows)
    bias = (after[6].bias - before[6].bias).detach()
    own = (rows @ update.T + bias).norm() / outputs_of(before, "6", data).norm()
    drift = output_drift(before, after, data, layers=["6"])
    assert drift.layers[0].own == pytest.approx(float(own), rel=1e-5)


def test_models_come_back_as_they_were():
    before = network().train()
    before[1].eval()
    after = changed(before)
    state = copy.deepcopy(before.state_dict())
    output_drift(before, after, batches())
    assert [module.training for module in before] == [True, False] + [True] * 7
    assert all(torch.equal(value, state[name]) for name, value in before.state_dict().items())
    assert not any(module._forward_pre_hooks for module in before.modules())


def test_batches_may_be_tuples_and_dicts():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x, scale):
            return scale * self.layer(input=x)

    before = Model()
    after, x = changed(before), torch.randn(4, 3)
    as_tuple = output_drift(before, after, [(x, 2.0)])
    assert output_drift(before, after, [{"x": x, "scale": 2.0}]) == as_tuple
    assert as_tuple.features == pytest.approx(as_tuple.layers[0].total)


def test_layers_called_more_than_once_add_up():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return self.layer(self.layer(x))

    before = Twice()
    after, data = changed(before), [torch.randn(4, 3)]
    old, new = outputs_of(before, "layer", data), outputs_of(after, "layer", data)
    found = output_drift(before, after, data).layers[0]
    assert found.total == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-5)


def test_what_cannot_be_compared_is_refused():
    model, data = network(), batches(1)
    with pytest.raises(NesskitError, match=r"the same model: keep copy\.deepcopy\(model\)"):
        output_drift(model, model, data)
    with pytest.raises(NesskitError, match="share the layer '0'"):
        output_drift(model, nn.Sequential(*model), data)
    with pytest.raises(NesskitError, match="no partner for 0, 3, 6, 8, fc"):
        output_drift(model, nn.ModuleDict({"fc": nn.Linear(2, 2)}), data)
    other = copy.deepcopy(model)
    other[6] = nn.Linear(36, 11)
    with pytest.raises(NesskitError, match="layer '6' has another shape"):
        output_drift(model, other, data)
    with pytest.raises(NesskitError, match="layer '0' was never run"):
        output_drift(model, copy.deepcopy(model), [])
    with pytest.raises(
        AdaptationError, match="'1' is no layer of the model that can be adapted; its layers are 0, 3, 6, 8"
    ):
        output_drift(model, copy.deepcopy(model), data, layers=["1"])
    with pytest.raises(AdaptationError, match="no layer of this model can be adapted"):
        output_drift(nn.ReLU(), nn.ReLU(), data)
    adapted = copy.deepcopy(model)
    adapt(adapted, {"8": torch.eye(10)[:, :2]})
    with pytest.raises(AdaptationError, match="merge"):
        output_drift(model, adapted, data)


def test_a_model_without_a_tensor_or_with_other_calls_is_refused():
    class Model(nn.Module):
        def __init__(self, calls):
            super().__init__()
            self.layer, self.calls = nn.Linear(3, 3), calls

        def forward(self, x):
            for _ in range(self.calls):
                x = self.layer(x)
            return x if self.calls else (x,)

    x = torch.randn(2, 3)
    with pytest.raises(NesskitError, match="puts out a tuple"):
        output_drift(Model(0), Model(0), [x])
    with pytest.raises(NesskitError, match="called more often"):
        output_drift(Model(1), Model(2), [x])


# --- inputs of a layer


def test_collected_inputs_are_what_the_moment_sums(convolution):
    layer, x = convolution
    model = nn.Sequential(layer, nn.Identity())
    rows = collect_inputs(model, [x, 2 * x], "0", augment_bias=True)
    moment = collect_moments(model, [x, 2 * x], augment_bias=True)["0"]
    torch.testing.assert_close(rows.T @ rows, moment.matrix)
    assert len(rows) == moment.count * layer.groups


def test_inputs_are_taken_before_something_changes_them_in_place():
    class Reusing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x):
            y = x + 1
            output = self.layer(y)
            y.zero_()
            return output

    assert collect_inputs(Reusing(), [torch.ones(3, 2)], "layer").eq(2).all()


def test_inputs_of_a_layer_that_is_not_there_or_not_run():
    model = nn.ModuleDict({"used": nn.Linear(2, 2), "idle": nn.Linear(2, 2)})
    model.forward = model["used"].forward
    with pytest.raises(SpectrumError, match="layer 'idle' was never run"):
        collect_inputs(model, [torch.ones(1, 2)], "idle")
    with pytest.raises(
        AdaptationError, match="'other' is no layer of the model that can be adapted; its layers are used, idle"
    ):
        collect_inputs(model, [torch.ones(1, 2)], "other")


# --- kept moments


def moment_of(x):
    moment = Moment(np.shape(x)[1])
    moment.update(np.asarray(x, dtype=float))
    return moment


def test_moments_that_were_recomputed_with_the_same_weights_are_the_same():
    model, data = network(), batches()
    kept = collect_moments(model, data)
    for drift in feature_drift(kept, collect_moments(model, data), FrobeniusThreshold(0.1)):
        assert drift.change == pytest.approx(0, abs=1e-7)
        assert drift.rank_kept == drift.rank_now
        assert drift.energy_found == pytest.approx(drift.energy_believed, abs=1e-9)


def test_a_null_space_that_inputs_have_moved_into_by_hand():
    # Kept: inputs along e₁ only, so that e₂ is free. Today they lean: 1/4 of their energy lies in e₂.
    kept, now = moment_of([[2.0, 0.0]]), moment_of([[np.sqrt(3.0), 1.0]])
    (drift,) = feature_drift({"fc": kept}, {"fc": now}, FixedRank(1))
    assert drift.energy_believed == pytest.approx(0, abs=1e-12)
    assert drift.energy_found == pytest.approx(1 / 4)
    # C = diag(4, 0) against ((3, √3), (√3, 1)): the difference is ((1, -√3), (-√3, -1)), of norm √8; ‖C_now‖ = 4.
    assert drift.change == pytest.approx(np.sqrt(8) / 4)
    assert (drift.layer, drift.rank_kept, drift.rank_now, drift.dimension) == ("fc", 1, 1, 2)


def test_the_rank_that_the_filter_would_free_today():
    (drift,) = feature_drift({"fc": moment_of(np.eye(3)[:1])}, {"fc": moment_of(np.eye(3))}, FrobeniusThreshold(1e-3))
    assert (drift.rank_kept, drift.rank_now) == (2, 0)


def test_a_sample_of_the_old_data_can_stand_for_all_of_it():
    x = np.random.default_rng(0).standard_normal((20, 4))
    whole = feature_drift({"fc": moment_of(np.tile(x, (3, 1)))}, {"fc": moment_of(x)}, FixedRank(2))[0]
    assert whole.change == pytest.approx(0, abs=1e-9)


def test_moments_of_different_models_are_refused():
    one, rule = {"fc": moment_of(np.eye(3))}, FixedRank(1)
    with pytest.raises(NesskitError, match="no partner for conv, fc"):
        feature_drift(one, {"conv": one["fc"]}, rule)
    with pytest.raises(SpectrumError, match="layer 'fc': moments of dimension 3 and 4 belong to different models"):
        feature_drift(one, {"fc": moment_of(np.eye(4))}, rule)
    with pytest.raises(SpectrumError, match="layer 'fc' was never run"):
        feature_drift(one, {"fc": Moment(3)}, rule)
