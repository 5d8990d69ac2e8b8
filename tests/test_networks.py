"""The networks: their sizes, what NESS finds in them, and what BatchNorm does to a test accuracy."""

import numpy as np
import pytest
import torch
from torch import nn

from nesskit import (
    NESS,
    Examples,
    FrobeniusThreshold,
    NESSSettings,
    NetworkSettings,
    Task,
    TaskStream,
    TrainingSettings,
    adapt,
    build_model,
    collect_moments,
    fit,
)
from nesskit.errors import SettingsError
from nesskit.runs.events import TaskFinished


def images(count, size=32, classes=3, seed=0):
    """Random uint8 images whose brightness tells their class, in random order."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(classes, (count,), generator=generator)
    x = torch.randint(0, 120, (count, 3, size, size), generator=generator) + 40 * y.view(-1, 1, 1, 1)
    return Examples(x.to(torch.uint8), y)


def stream(tasks=1, count=96, size=32):
    names = ("dark", "grey", "bright")
    parts = [[images(n, size, seed=10 * t + k) for k, n in enumerate((count, 0, count))] for t in range(tasks)]
    return TaskStream("images", [Task(f"task {t}", names, *part) for t, part in enumerate(parts)])


def weights(module):
    return {n: p for n, p in module.named_parameters() if p.ndim > 1}


def test_alexnet_has_the_size_that_the_paper_states():
    backbone = build_model(stream(), NetworkSettings("alexnet")).backbone
    assert sum(p.numel() for p in weights(backbone).values()) == 6_499_328
    assert [p[0].numel() for p in weights(backbone).values()] == [48, 576, 512, 1024, 2048]
    assert backbone.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 2048)


@pytest.mark.parametrize(("size", "stride", "features"), [(32, 1, 640), (84, 2, 1440)])
def test_resnet_leaves_the_features_that_the_paper_states(size, stride, features):
    model = build_model(stream(count=3, size=size), NetworkSettings("resnet18", stem_stride=stride))
    assert model.heads[0].in_features == features
    assert len([m for m in model.backbone.modules() if isinstance(m, nn.Conv2d)]) == 20


SMALL = NetworkSettings("convnet", widths=(16, 32, 64, 128))  # of split-cifar100-16


def test_convnet_has_the_layers_that_its_widths_say():
    backbone = build_model(stream(size=16), SMALL).backbone
    assert [tuple(p.shape) for p in weights(backbone).values()] == [
        (16, 3, 3, 3), (32, 16, 3, 3), (64, 32, 3, 3), (128, 64 * 2 * 2),
    ]  # fmt: skip
    assert backbone.eval()(torch.zeros(2, 3, 16, 16)).shape == (2, 128)


@pytest.mark.parametrize("size", [16, 32, 40])
def test_convnet_has_the_same_weights_for_images_of_any_size(size):
    """Its convolutions leave 2 × 2, 4 × 4 or 5 × 5 pixels, of which the linear layer sees 2 × 2 averages."""
    backbone = build_model(stream(size=size, count=4), SMALL).backbone
    backbone.load_state_dict(build_model(stream(size=16, count=4), SMALL).backbone.state_dict())
    seen = []
    pooling = next(m for m in backbone.modules() if isinstance(m, nn.AdaptiveAvgPool2d))
    pooling.register_forward_hook(lambda module, inputs, output: seen.extend([inputs[0], output]))
    assert backbone(torch.randn(4, 3, size, size)).shape == (4, 128)
    before, after = (tensor.detach().numpy() for tensor in seen)
    left, half = size // 8, -(-size // 16)
    assert before.shape == (4, 64, left, left)
    corners = [[before[..., rows, columns].mean((2, 3)) for columns in ends(left, half)] for rows in ends(left, half)]
    np.testing.assert_allclose(after, np.moveaxis(np.array(corners), (0, 1), (2, 3)), rtol=1e-5, atol=1e-6)


def ends(length, half):
    """The first and the last ``half`` of ``length`` pixels."""
    return slice(0, half), slice(length - half, length)


@pytest.mark.parametrize(
    ("widths", "size", "message"),
    [
        ((16, 32, 64, 128), 15, "takes images of 16 × 16 pixels at least, got 15 × 15"),
        ((16,), 16, "two widths at least"),
    ],
)
def test_a_convnet_that_does_not_fit_the_images_is_refused(widths, size, message):
    with pytest.raises(SettingsError, match=message):
        build_model(stream(size=size, count=4), NetworkSettings("convnet", widths=widths))


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "convnet"])
def test_the_networks_have_no_biases(name):
    model = build_model(stream(), NetworkSettings(name))
    assert all(m.bias is None for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))


def test_every_layer_of_a_network_can_be_adapted_and_counts_its_positions():
    model = build_model(stream(count=4), NetworkSettings("resnet18"))
    moments = collect_moments(model.backbone, [torch.randn(4, 3, 32, 32)])
    assert len(moments) == 20
    assert moments["stem"].count == 4 * 32 * 32
    assert moments["blocks.7.conv2"].count == 4 * 4 * 4
    adapt(model.backbone, {name: moment.spectrum().null_basis(2) for name, moment in moments.items()})


@pytest.mark.parametrize("name", ["alexnet", pytest.param("resnet18", marks=pytest.mark.every), "convnet"])
@pytest.mark.parametrize("norm", ["batch", "running"])
def test_ness_trains_the_networks(name, norm):
    settings = TrainingSettings(epochs=1, lr=0.01, batch_size=32)
    two = stream(tasks=2)
    model = build_model(two, NetworkSettings(name, widths=(16, 32, 64), norm=norm))
    run = fit(model, two, NESS(NESSSettings(FrobeniusThreshold(0.05))), settings)
    assert run.finished
    assert any(p.update_energy.sum() > 0 for p in run.profiles)


@pytest.mark.parametrize("norm", ["batch", "running"])
def test_batchnorm_stops_after_the_first_task(norm):
    two, seen = stream(tasks=2), []
    model = build_model(two, NetworkSettings("alexnet", norm=norm))
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def remember(event):
        if isinstance(event, TaskFinished):
            tensors = [t for m in norms for t in (m.weight, m.bias, m.running_mean, m.running_var) if t is not None]
            seen.append([t.detach().clone() for t in tensors])

    settings = TrainingSettings(epochs=1, lr=0.01, batch_size=32)
    fit(model, two, NESS(NESSSettings(FrobeniusThreshold(0.05))), settings, listeners=[remember])
    assert all(torch.equal(one, two) for one, two in zip(*seen, strict=True))
    assert (seen[0][0] != 1).any()  # in task 1 they did move


@pytest.mark.parametrize(("norm", "depends"), [("batch", True), ("running", False)])
def test_the_batchnorm_trap(norm, depends):
    """With batch statistics an answer depends on the other images of the batch; with running ones it does not."""
    one = stream(count=240)
    model = build_model(one, NetworkSettings("alexnet", norm=norm))
    fit(model, one, "finetune", TrainingSettings(epochs=3, lr=0.01, batch_size=32))
    model.eval()
    test = one[0].test
    order = test.y.argsort(stable=True)

    @torch.no_grad()
    def accuracy(x, y):
        x = one[0].normalise(x)
        answers = torch.cat([model(part, 0).argmax(1) for part in x.split(40)])
        return 100 * float((answers == y).float().mean())

    shuffled, sorted_by_class = accuracy(*test), accuracy(test.x[order], test.y[order])
    if depends:
        assert shuffled > 80
        assert sorted_by_class < shuffled - 25
    else:
        assert sorted_by_class == pytest.approx(shuffled, abs=1)


def test_a_grey_image_becomes_three_channels_where_it_is_normalised():
    from nesskit import Normalisation

    x = torch.full((2, 1, 32, 32), 51, dtype=torch.uint8)
    examples = Examples(x, torch.tensor([0, 1]))
    task = Task("grey", ("a", "b"), examples, examples, examples, Normalisation((0.1,) * 3, (0.5,) * 3))
    assert task.input_shape == (3, 32, 32)
    torch.testing.assert_close(task.normalise(x), torch.full((2, 3, 32, 32), 0.2))


def test_mixed_precision_trains_and_keeps_float32_weights():
    one = stream()
    model = build_model(one, NetworkSettings("alexnet"))
    run = fit(model, one, "ness", TrainingSettings(epochs=1, lr=0.01, precision="bfloat16"))
    assert run.finished
    assert {p.dtype for p in model.parameters()} == {torch.float32}
