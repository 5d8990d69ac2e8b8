"""The projected form: ΔW trained with a projected gradient is, under SGD, what the factored form makes of V."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from nesskit import (
    NESS,
    FixedRank,
    FrobeniusThreshold,
    Limits,
    NESSSettings,
    NetworkSettings,
    SoftFilter,
    TrainingSettings,
    build_model,
    collect_moments,
    fit,
    load_stream,
)
from nesskit.adaptation import projected
from nesskit.adaptation.adapt import adapt, adaptable_layers, adapted_layers, merge
from nesskit.adaptation.layers import NESSConv2d, NESSLinear, ProjectedConv2d, ProjectedLinear
from nesskit.adaptation.weights import known_kind
from nesskit.errors import AdaptationError
from nesskit.methods.base import Method
from nesskit.runs.events import EpochFinished, TaskFinished
from nesskit.training.optim import SAM

STEPS = 200


def split(d, occupied):
    """Orthonormal M (d, occupied) and U (d, d - occupied) that together are all directions."""
    directions = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q
    return directions[:, :occupied], directions[:, occupied:]


def pair(layer, occupied=3, augmented=False):
    """The same layer in both forms: (projected, factored)."""
    M, U = split(layer.weight[0].numel() + augmented, occupied)
    one, other = copy.deepcopy(layer), copy.deepcopy(layer)
    if isinstance(layer, nn.Linear):
        return ProjectedLinear.from_layer(one, M), NESSLinear.from_layer(other, U)
    return ProjectedConv2d.from_layer(one, M), NESSConv2d.from_layer(other, U)


def check_gradients(layer, x, augmented, trusting):
    """Outputs are those of W + ΔW (1 - M Mᵀ), and so ∂L/∂ΔW is the plain layer's gradient times 1 - M Mᵀ.

    A layer that trusts ΔW to lie outside of M already gives the same for such a ΔW.
    """
    d = layer.weight[0].numel()
    adapted, _ = pair(layer, augmented=augmented)
    M = adapted.occupied
    outside = torch.eye(d + augmented, dtype=M.dtype) - M @ M.T
    adapted.trusting = trusting
    nn.init.normal_(adapted.update)
    if trusting:
        adapted.remove_round_off()
    update = adapted.update.detach() @ outside
    plain = copy.deepcopy(layer).requires_grad_()
    with torch.no_grad():
        plain.weight += update[:, :d].view_as(layer.weight)
        if augmented:
            plain.bias += update[:, d]
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()

    output, expected = adapted(ours), plain(theirs)
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-12)
    direction = torch.randn_like(expected)
    output.backward(direction)
    expected.backward(direction)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-12, rtol=1e-12)
    gradient = plain.weight.grad.flatten(1)
    if augmented:
        gradient = torch.cat([gradient, plain.bias.grad.unsqueeze(1)], dim=1)
    torch.testing.assert_close(adapted.update.grad, gradient @ outside, atol=1e-11, rtol=1e-12)
    assert [name for name, p in adapted.named_parameters() if p.requires_grad] == ["update"]


@pytest.mark.parametrize("trusting", [False, True])
@pytest.mark.parametrize(("bias", "augmented"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("shape", [(8,), (3, 8), (50, 8), (2, 2, 8), (2, 5, 3, 8)], ids=str)
def test_gradients_of_a_linear_layer(shape, bias, augmented, trusting):
    """With fewer inputs than outputs the inputs are projected, with more the gradient."""
    layer = nn.Linear(8, 5, bias=bias, dtype=torch.float64)
    check_gradients(layer, torch.randn(shape, dtype=torch.float64), augmented, trusting)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_gradients_of_a_convolution(convolution):
    layer, x = convolution
    for augmented in {False, layer.bias is not None}:
        for trusting in (False, True):
            check_gradients(layer, x, augmented, trusting)


def test_gradients_are_those_of_finite_differences():
    """Along free directions, where the projection takes nothing away: W = Z Uᵀ."""
    M, U = split(6, 2)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    Z = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, Z: projected.linear(x, Z @ U.T, M), (x, Z))
    assert torch.autograd.gradcheck(lambda x, Z: F.linear(x, projected.outside(Z @ U.T, M)), (x, Z))


# ---- many steps: the two forms are one


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "Nesterov, fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, fused=True),
    "decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.05),
    "SAM": lambda p: SAM(p, torch.optim.SGD, rho=0.1, lr=0.05, momentum=0.9, weight_decay=0.05),
}
LAYERS = {  # the layer, an input, and whether its bias learns
    "linear": (lambda: nn.Linear(8, 12, bias=False), (10, 8), False),
    "linear, many inputs": (lambda: nn.Linear(8, 5), (40, 8), False),
    "linear, bias": (lambda: nn.Linear(8, 12), (10, 8), True),
    "convolution": (lambda: nn.Conv2d(2, 4, 2, bias=False), (3, 2, 5, 5), False),
    "grouped convolution, bias": (lambda: nn.Conv2d(4, 4, 2, groups=2, padding=1), (3, 4, 5, 5), True),
}


def train(layer, make_optimizer, x, seed=1):
    optimizer = make_optimizer([layer.trained])
    generator = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        inputs = torch.randn(x, generator=generator, dtype=torch.float64).to(layer.trained.dtype)
        target = torch.sin(3 * inputs.flatten()[0])

        def closure(inputs=inputs, target=target):
            optimizer.zero_grad()
            loss = F.mse_loss(layer(inputs).tanh().mean(dim=0), target)
            loss.backward()
            return loss

        optimizer.step(closure)
    return layer.update_matrix().detach()


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize(("make_layer", "x", "augmented"), LAYERS.values(), ids=LAYERS)
def test_both_forms_learn_the_same_under_sgd(make_layer, x, augmented, make_optimizer, dtype, tolerance):
    one, other = pair(make_layer().to(dtype), augmented=augmented)
    one.trusting = True
    ours, theirs = train(one, make_optimizer, x), train(other, make_optimizer, x)
    assert theirs.norm() > 0.05
    assert (ours - theirs).norm() < tolerance * theirs.norm()
    one.remove_round_off()
    assert (one.update @ one.occupied).norm() < 0.1 * tolerance * theirs.norm()


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_under_adam_they_do_not_but_what_counts_stays_outside():
    one, other = pair(nn.Linear(8, 12))
    adam = {"lr": 0.01}
    ours = train(one, lambda p: torch.optim.Adam(p, **adam), (10, 8))
    theirs = train(other, lambda p: torch.optim.Adam(p, **adam), (10, 8))
    assert (ours - theirs).norm() > 0.1 * theirs.norm()
    assert (one.update @ one.occupied).norm() > 0.01 * ours.norm()  # the parameter itself does not stay outside
    assert (ours @ one.occupied).norm() < 1e-6 * ours.norm()


@pytest.mark.parametrize("rows", [3, 50])
def test_in_mixed_precision_the_projection_is_made_in_full_precision(rows):
    """In bfloat16 it would leave 1e-3 of what is to be removed."""
    adapted, _ = pair(nn.Linear(8, 12), occupied=3)
    x = torch.randn(rows, 8)
    with torch.autocast("cpu", torch.bfloat16):
        loss = adapted(x).square().sum()
    loss.backward()
    assert adapted.update.grad.dtype == torch.float32
    assert (adapted.update.grad @ adapted.occupied).norm() < 1e-5 * adapted.update.grad.norm()


# ---- adapt and merge


def network():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))


def occupied_directions(model, count=2):
    return {
        name: split(known_kind(layer).dimension(layer), count)[0] for name, layer in adaptable_layers(model).items()
    }


def test_some_layers_are_factored_and_others_projected_and_merging_leaves_nothing_of_it():
    model = network().double().eval()
    modules, keys = list(model.modules()), list(model.state_dict())
    before, x = copy.deepcopy(model.state_dict()), torch.randn(8, 2, 4, 4, dtype=torch.float64)
    original = model(x)
    adapt(model, {"4": split(16, 2)[1]}, {"0": split(18, 2)[0]})
    assert [type(layer) for layer in adapted_layers(model).values()] == [ProjectedConv2d, NESSLinear]
    assert [layer.rank for layer in adapted_layers(model).values()] == [16, 14]
    assert "rank=16 of 18" in repr(model)
    assert torch.equal(model(x), original)  # the update starts at zero
    for layer in adapted_layers(model).values():
        nn.init.normal_(layer.trained)
    adapted = model(x)
    assert (adapted - original).abs().max() > 0.1
    merge(model)
    torch.testing.assert_close(model(x), adapted, atol=1e-12, rtol=1e-12)
    assert list(model.modules()) == modules
    assert list(model.state_dict()) == keys
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name not in ("0.weight", "4.weight")), name
    assert all(p.requires_grad for p in model.parameters())


def test_merging_an_update_of_zero_changes_no_bit():
    model = network()
    model[4].weight.data[0, 0] = -0.0
    before = copy.deepcopy(model.state_dict())
    adapt(model, {}, occupied_directions(model))
    merge(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model[4].weight[0, 0].signbit()


def test_a_layer_whose_directions_are_all_free_learns_like_a_plain_one():
    layer = nn.Linear(8, 5, bias=False, dtype=torch.float64)
    check_gradients_of = ProjectedLinear.from_layer(copy.deepcopy(layer), torch.zeros(8, 0))
    x = torch.randn(3, 8, dtype=torch.float64)
    check_gradients_of(x).square().sum().backward()
    layer(x).square().sum().backward()
    torch.testing.assert_close(check_gradients_of.update.grad, layer.weight.grad)


@pytest.mark.parametrize(
    ("bases", "occupied"),
    [({"4": torch.eye(16)}, {"4": torch.eye(16)[:, :2]}), ({"0": torch.eye(18)}, {"4": torch.zeros(7, 2)})],
    ids=["twice", "wrong shape"],
)
def test_a_refusal_leaves_every_layer_alone(bases, occupied):
    model = network()
    modules = list(model.modules())
    with pytest.raises(AdaptationError):
        adapt(model, bases, occupied)
    assert list(model.modules()) == modules
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(8, 5), lambda: nn.Conv2d(4, 6, 3, groups=2)], ids=["linear", "conv"]
)
def test_old_outputs_do_not_move(make, augment):
    """The first inputs of each layer span less than half of its directions, and training goes on elsewhere."""
    model = nn.Sequential(make()).double()
    linear = isinstance(model[0], nn.Linear)
    old = torch.randn(30, 2, dtype=torch.float64) @ torch.randn(2, 8, dtype=torch.float64)
    if not linear:
        old = torch.randn(20, 1, 6, 6, dtype=torch.float64).expand(-1, 4, -1, -1)
    moment = collect_moments(model, [old], augment_bias=augment)["0"]
    spectrum = moment.spectrum()
    occupied = int((spectrum.singular_values > 1e-6 * spectrum.singular_values[0]).sum())
    assert 0 < 2 * occupied <= len(spectrum) + 2
    before, new = model(old), torch.randn_like(old)
    new_before = model(new)
    adapt(model, {}, {"0": spectrum.directions[:, :occupied]})
    optimizer = torch.optim.SGD([model[0].trained], lr=0.1, momentum=0.9)
    for _ in range(50):
        optimizer.zero_grad()
        (model(new) - 1).square().mean().backward()
        optimizer.step()
    merge(model)
    torch.testing.assert_close(model(old), before, atol=1e-12, rtol=0)
    assert (model(new) - new_before).abs().max() > 0.1


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("training", [True, False])
def test_an_adapted_transformer_equals_the_merged_one(training, padded):
    """Also on torch's fused path, which reads weights instead of calling layers, and with nested tensors."""
    block = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=12, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(block, num_layers=2).double().train(training)
    x = torch.randn(4, 5, 8, dtype=torch.float64)
    padding = torch.arange(5) >= torch.tensor([[2], [5], [3], [5]]) if padded else None
    adapt(model, {}, occupied_directions(model))
    for layer in adapted_layers(model).values():
        nn.init.normal_(layer.update)
    with torch.set_grad_enabled(training):
        output = model(x, src_key_padding_mask=padding)
        merge(model)
        torch.testing.assert_close(output, model(x, src_key_padding_mask=padding), atol=1e-12, rtol=0)


# ---- the method: which form, equal runs, no drift, resuming

HALF = NetworkSettings(widths=(48, 32))


class Factored(NESS):
    """NESS without the choice."""

    def begin_run(self, training):
        pass


@pytest.fixture(scope="module")
def stream():
    return load_stream("permuted-digits", seed=0).first(3)


def learn(stream, method, training, **options):
    model = build_model(stream, HALF, seed=0)
    run = fit(model, stream, method, training, **options)
    return model, run


def forms(stream, settings, training):
    """Layer types by name while the last task is trained."""
    found = {}
    model = build_model(stream, HALF, seed=0)

    def look(event):
        if isinstance(event, EpochFinished) and event.task == len(stream) - 1:
            found.update({name: type(layer) for name, layer in adapted_layers(model.backbone).items()})

    fit(model, stream, NESS(settings), training, listeners=[look])
    return found


SHORT = TrainingSettings(epochs=1)
MOSTLY_FREE = NESSSettings(filter=FixedRank(30))  # of 64 and 48 directions


@pytest.mark.parametrize(
    ("settings", "training", "expected"),
    [
        (MOSTLY_FREE, SHORT, [NESSLinear, ProjectedLinear]),
        (MOSTLY_FREE, TrainingSettings(epochs=1, optimizer="sam"), [NESSLinear, ProjectedLinear]),
        (MOSTLY_FREE, TrainingSettings(epochs=1, optimizer="adam", lr=0.001), [NESSLinear, NESSLinear]),
        (MOSTLY_FREE, TrainingSettings(epochs=1, precision="bfloat16"), [NESSLinear, NESSLinear]),
        (NESSSettings(filter=FixedRank(30), stability=1.0), SHORT, [NESSLinear, NESSLinear]),
        (NESSSettings(filter=SoftFilter(0.1, "frobenius")), SHORT, [NESSLinear, NESSLinear]),
    ],
    ids=["SGD", "SAM", "Adam", "half precision", "cap", "soft filter"],
)
def test_the_projected_form_is_taken_where_it_is_exact_and_more_than_half_is_free(stream, settings, training, expected):
    assert list(forms(stream.first(2), settings, training).values()) == expected


@pytest.mark.parametrize("bias", ["frozen", "augment"])
@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
def test_a_run_is_the_run_of_the_factored_form(stream, optimizer, bias):
    settings = NESSSettings(filter=FixedRank(40), bias=bias)
    training = TrainingSettings(epochs=3, optimizer=optimizer, weight_decay=1e-3)
    network = dataclasses.replace(HALF, bias=True)
    models, runs = [], []
    for kind in (NESS, Factored):
        model = build_model(stream, network, seed=0)
        runs.append(fit(model, stream, kind(settings), training))
        models.append(model)
    for key, tensor in models[0].state_dict().items():
        torch.testing.assert_close(tensor, models[1].state_dict()[key], atol=1e-3, rtol=0, msg=key)
    for one, other in zip(runs[0].profiles, runs[1].profiles, strict=True):
        assert (one.layer, one.rank, one.count, one.outputs) == (other.layer, other.rank, other.count, other.outputs)
        scale = other.update_energy.sum()
        assert abs(one.update_energy - other.update_energy).max() < 0.01 * scale
        assert one.update_energy[: len(one.update_energy) - one.rank].sum() < 1e-10 * scale
    assert runs[0].average_accuracy == pytest.approx(runs[1].average_accuracy, abs=0.5)


def test_weights_stay_in_the_free_directions_over_a_whole_run(stream):
    """‖(W - W_prev) M‖ is round-off: of ΔW during a task, and of the weights themselves once merged."""
    epsilon = torch.finfo(torch.float32).eps
    model = build_model(stream, HALF, seed=0)
    method = NESS(NESSSettings(filter=FrobeniusThreshold(0.05)))
    before, directions = {}, {}

    def watch(event):
        for name, layer in adapted_layers(model.backbone).items():
            if isinstance(event, EpochFinished) and isinstance(layer, ProjectedLinear):
                before[name], directions[name] = (
                    layer.frozen_weight.detach().double().clone(),
                    method.spaces[name].occupied,
                )
                update = layer.update.detach().double()
                assert (update @ directions[name]).norm() < 20 * epsilon * update.norm()
        if isinstance(event, TaskFinished):
            for name, old in before.items():
                moved = model.backbone.get_submodule(name).weight.detach().double() - old
                assert moved.norm() > 0.1
                assert (moved @ directions[name]).norm() < epsilon * old.norm()

    fit(model, stream, method, TrainingSettings(epochs=10), listeners=[watch])
    assert before


def test_a_run_that_was_stopped_in_the_middle_of_a_task_ends_the_same(stream, tmp_path):
    training = TrainingSettings(epochs=4, weight_decay=1e-4)
    validated = load_stream("permuted-digits", seed=0, validation_share=0.1).first(2)
    whole_model, whole = learn(validated, NESS(MOSTLY_FREE), training)

    def interrupt(event):
        if isinstance(event, EpochFinished) and (event.task, event.epoch) == (1, 1):
            raise KeyboardInterrupt

    often = Limits(checkpoint_epochs=1)
    learn(validated, NESS(MOSTLY_FREE), training, folder=tmp_path, listeners=[interrupt], limits=often)
    model, run = learn(validated, NESS(MOSTLY_FREE), training, folder=tmp_path)
    assert run.finished
    assert run.accuracy.tobytes() == whole.accuracy.tobytes()
    assert all(torch.equal(tensor, model.state_dict()[key]) for key, tensor in whole_model.state_dict().items())


def test_a_checkpoint_without_the_projected_form_goes_on_in_the_factored_one(stream):
    """Older versions knew no other; a task ends in the form in which it began."""
    older = Factored(MOSTLY_FREE)
    model = build_model(stream, HALF, seed=0)
    older.moments = collect_moments(model.backbone, [stream[0].normalise(stream[0].train.x)])
    older.begin_task(model, None)
    state = older.state_dict()
    del state["projected"]
    resumed, fresh = NESS(MOSTLY_FREE), build_model(stream, HALF, seed=0)
    resumed.begin_run(SHORT)
    resumed.load_state_dict(fresh, state)
    fresh.load_state_dict(model.state_dict())
    assert [type(layer) for layer in adapted_layers(fresh.backbone).values()] == [NESSLinear, NESSLinear]


def test_every_method_is_told_how_it_will_be_trained(stream):
    class Watching(Method):
        name = "watching"

        def begin_run(self, training):
            self.training = training

    method = Watching()
    learn(stream.first(1), method, SHORT)
    assert method.training == SHORT
