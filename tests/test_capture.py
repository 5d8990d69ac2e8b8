import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from nesskit.adaptation import patches
from nesskit.adaptation.capture import collect_moments, layer_inputs
from nesskit.errors import AdaptationError, SpectrumError
from nesskit.spectra.moment import Moment


def all_rows(layer, x, augment=False):
    pieces = list(layer_inputs(layer, x, augment))
    return torch.cat([rows for rows, _ in pieces]), sum(count for _, count in pieces)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_patches_times_the_flattened_weight_are_the_convolutions_output(convolution):
    layer, x = convolution
    rows, count = all_rows(layer, x)
    output = layer(x) if x.ndim == 4 else layer(x).unsqueeze(0)
    n, outputs, height, width = output.shape
    assert count == n * height * width
    assert rows.shape == (count * layer.groups, layer.weight[0].numel())

    by_group = rows.view(n, height * width, layer.groups, -1)
    weight = layer.weight.view(layer.groups, outputs // layer.groups, -1)
    ours = torch.einsum("npgd,god->ngop", by_group, weight).reshape(output.shape)
    if layer.bias is not None:
        ours += layer.bias.view(-1, 1, 1)
    torch.testing.assert_close(ours, output, atol=1e-12, rtol=0)


@pytest.mark.parametrize("augment", [False, True])
def test_moment_of_a_convolution_is_the_sum_over_explicit_patches(augment):
    layer = nn.Conv2d(4, 2, (2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1), groups=2, dtype=torch.float64)
    x = torch.randn(2, 4, 4, 5, dtype=torch.float64)
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), (1, 1), (0, 0)])
    expected = np.zeros((12 + augment, 12 + augment))
    positions = list(itertools.product(range(2), range(4), range(2)))  # sample, row, column of the output
    for (n, i, j), group in itertools.product(positions, range(2)):
        patch = [
            padded[n, 2 * group + channel, i + 2 * k, 2 * j + m]
            for channel, k, m in itertools.product(range(2), range(2), range(3))
        ]
        expected += np.outer(patch + [1] * augment, patch + [1] * augment)
    moment = collect_moments(nn.Sequential(layer), [x], augment_bias=augment)["0"]
    np.testing.assert_allclose(moment.matrix, expected, atol=1e-12)
    assert moment.count == len(positions) == 2 * layer(x)[0, 0].numel()


@pytest.mark.parametrize("values", [1, 500, 2000])
def test_the_patch_buffer_bounds_memory_and_changes_nothing(monkeypatch, values):
    layer = nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float64)
    x = torch.randn(6, 2, 5, 5, dtype=torch.float64)
    whole, _ = all_rows(layer, x)
    monkeypatch.setattr(patches, "BUFFER_VALUES", values)
    pieces = [rows for rows, _ in layer_inputs(layer, x)]
    one_sample = 25 * 18
    assert max(rows.numel() for rows in pieces) <= max(values, one_sample)
    assert len(pieces) > 1
    assert torch.equal(torch.cat(pieces), whole)


LINEAR_INPUTS = {"vectors": (7, 4), "sequences": (3, 5, 4), "one vector": (4,)}


@pytest.mark.parametrize("shape", LINEAR_INPUTS.values(), ids=LINEAR_INPUTS)
def test_a_linear_layer_counts_every_position_of_every_sample(shape):
    x = torch.randn(shape, dtype=torch.float64)
    moment = collect_moments(nn.Sequential(nn.Linear(4, 2).double()), [x])["0"]
    flat = x.numpy().reshape(-1, 4)
    np.testing.assert_allclose(moment.matrix, flat.T @ flat, atol=1e-12)
    assert moment.count == math.prod(shape[:-1])


def network():
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, bias=False), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 4, 2, groups=4)),
        *(nn.Flatten(), nn.Linear(36, 5), nn.Linear(5, 3, bias=False)),
    )


def test_one_pass_sees_every_layer_and_batches_add_up():
    model = network()
    x = torch.randn(6, 2, 6, 6)
    moments = collect_moments(model, [x[:4], x[4:]])
    assert {name: (m.dimension, m.count) for name, m in moments.items()} == {
        "0": (18, 6 * 16),
        "3": (4, 6 * 9),
        "5": (36, 6),
        "6": (5, 6),
    }
    layer_input = model.eval()[:6](x).double()
    torch.testing.assert_close(moments["6"].matrix, layer_input.T @ layer_input, rtol=1e-5, atol=1e-6)


def test_augmenting_adds_a_constant_input_to_layers_with_a_bias_only():
    moments = collect_moments(network(), [torch.randn(6, 2, 6, 6)], augment_bias=True)
    assert {name: m.dimension for name, m in moments.items()} == {"0": 18, "3": 5, "5": 37, "6": 5}
    # Σ 1 · 1 over all rows: one a position, and one a group of each.
    assert moments["5"].matrix[-1, -1] == moments["5"].count == 6
    assert moments["3"].matrix[-1, -1] == 4 * moments["3"].count


def test_collecting_leaves_the_model_as_it_was():
    model = network()
    model[2].eval()
    collect_moments(model, [torch.randn(2, 2, 6, 6)])
    assert [module.training for module in model] == [True, True, False, True, True, True, True]
    assert not any(module._forward_pre_hooks for module in model)
    assert all(p.grad is None for p in model.parameters())


def test_an_error_inside_the_pass_leaves_the_model_as_it_was():
    model = network()
    with pytest.raises(RuntimeError, match="2 channels"):
        collect_moments(model, [torch.randn(2, 3, 6, 6)])
    assert model.training
    assert not any(module._forward_pre_hooks for module in model)


def test_layers_can_be_chosen_by_name():
    assert list(collect_moments(network(), [torch.randn(2, 2, 6, 6)], layers=["5", "0"])) == ["5", "0"]


@pytest.mark.parametrize("name", ["1", "fc", ""])
def test_a_name_that_is_no_layer_is_an_error(name):
    with pytest.raises(
        AdaptationError, match=f"'{name}' is no layer of the model that can be adapted; its layers are 0, 3"
    ):
        collect_moments(network(), [], layers=[name])


def test_a_layer_that_is_never_called_has_seen_nothing():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    moments = collect_moments(Unused(), [torch.ones(2, 3)])
    assert (moments["used"].count, moments["unused"].count) == (2, 0)
    with pytest.raises(SpectrumError, match="no input"):
        moments["unused"].spectrum()


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 1)

    def forward(self, left, right):
        return self.fc(input=left + right)


@pytest.mark.parametrize(
    "batch",
    [(torch.ones(2, 3), torch.ones(2, 3)), {"right": torch.ones(2, 3), "left": torch.ones(2, 3)}],
    ids=["positional", "keywords"],
)
def test_batches_may_hold_several_arguments(batch):
    moment = collect_moments(Sum(), [batch])["fc"]
    assert moment.matrix.eq(8).all()
    assert moment.count == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("layers", "culprit"), [(None, "0"), (["5"], "5")])
def test_inputs_that_are_not_finite_are_an_error_that_names_the_layer(bad, layers, culprit):
    x = torch.randn(2, 2, 6, 6)
    x[1, 0, 2, 2] = bad
    with pytest.raises(SpectrumError, match=f"layer '{culprit}': the inputs hold NaN or infinite"):
        collect_moments(network(), [x], layers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_half_precision_models_are_summed_in_float64(dtype, padding_mode):
    conv = nn.Conv2d(2, 3, 3, padding=1, padding_mode=padding_mode)
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(48, 2)).to(dtype)
    x = 300 * torch.randn(2, 2, 4, 4).to(dtype)  # 300² is too much for float16
    moments = collect_moments(model, [x])
    exact = Moment(18)
    for rows, count in layer_inputs(copy.deepcopy(conv).double(), x.double()):
        exact.update(rows, count)
    torch.testing.assert_close(moments["0"].matrix, exact.matrix, rtol=1e-12, atol=0)
    assert moments["2"].matrix.dtype == torch.float64


def test_moments_on_autocast_do_not_lose_precision():
    x = torch.randn(5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        moment = collect_moments(nn.Sequential(nn.Linear(4, 2)), [x])["0"]
    torch.testing.assert_close(moment.matrix, x.double().T @ x.double(), rtol=1e-12, atol=0)


def test_only_the_first_samples_of_a_batch_count_with_every_position_of_theirs():
    """Of 6 sequences of 5 tokens the first 2: ten rows; the other layer sees all thirty."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double(), torch.randn(6, 5, 4, dtype=torch.float64)
    moments = collect_moments(model, [x], samples={"0": 2})
    rows = x[:2].reshape(10, 4)
    torch.testing.assert_close(moments["0"].matrix, rows.T @ rows)
    assert (moments["0"].count, moments["1"].count) == (10, 30)
