import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations, prune

from nesskit.adaptation.adapt import adapt, adaptable_layers, adapted_layers, merge
from nesskit.adaptation.capture import collect_moments
from nesskit.adaptation.layers import NESSConv2d, NESSLinear
from nesskit.adaptation.weights import known_kind
from nesskit.errors import AdaptationError
from nesskit.spectra.filters import RelativeThreshold

EXACTLY_NULL = RelativeThreshold(1e-6)


def random_basis(d, r):
    return torch.linalg.qr(torch.randn(d, r, dtype=torch.float64))[0]


def random_bases(model, rank=2):
    return {
        name: random_basis(known_kind(layer).dimension(layer), rank) for name, layer in adaptable_layers(model).items()
    }


def null_bases(moments):
    """For every layer the directions in which its inputs vanish; each test wants some, but not all."""
    spectra = {name: moment.spectrum() for name, moment in moments.items()}
    ranks = {name: EXACTLY_NULL.null_rank(spectrum) for name, spectrum in spectra.items()}
    assert all(0 < rank < len(spectra[name]) for name, rank in ranks.items()), ranks
    return {name: spectrum.null_basis(ranks[name]) for name, spectrum in spectra.items()}


def randomise_coefficients(model):
    for layer in adapted_layers(model).values():
        nn.init.normal_(layer.coefficients)


def flat(layer):
    """The weight as a matrix (d_out, d), its bias as one more column if there is one."""
    matrix = layer.weight.flatten(1)
    return matrix if layer.bias is None else torch.cat([matrix, layer.bias.unsqueeze(1)], dim=1)


def check_against_plain(layer, plain_forward, x, augmented):
    """Outputs and gradients equal those of the plain layer with W + ΔW for a weight.

    The independent truth: ∂L/∂V = Uᵀ (∂L/∂W)ᵀ, with the bias as one more column of W if the basis is augmented.
    """
    d = layer.weight[0].numel()
    wrapper = (NESSLinear if isinstance(layer, nn.Linear) else NESSConv2d).from_layer(
        layer, random_basis(d + augmented, 3)
    )
    basis, coefficients = wrapper.basis, nn.init.normal_(wrapper.coefficients)
    delta = coefficients.detach().T @ basis.T
    weight = (layer.weight + delta[:, :d].view_as(layer.weight)).detach().requires_grad_()
    bias = None if layer.bias is None else (layer.bias + (delta[:, d] if augmented else 0)).detach().requires_grad_()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()

    output, expected = wrapper(ours), plain_forward(theirs, weight, bias)
    torch.testing.assert_close(output, expected, atol=1e-12, rtol=1e-12)

    direction = torch.randn_like(expected)
    output.backward(direction)
    expected.backward(direction)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-12, rtol=1e-12)
    gradient = weight.grad.flatten(1)
    if augmented:
        gradient = torch.cat([gradient, bias.grad.unsqueeze(1)], dim=1)
    torch.testing.assert_close(coefficients.grad, basis.T @ gradient.T, atol=1e-11, rtol=1e-12)


@pytest.mark.parametrize(("bias", "augmented"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 3, 8), (2, 1, 3, 8)], ids=str)
def test_linear_equals_the_plain_layer_with_the_updated_weight(shape, bias, augmented):
    layer = nn.Linear(8, 4, bias=bias, dtype=torch.float64)
    check_against_plain(layer, F.linear, torch.randn(shape, dtype=torch.float64), augmented)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_convolution_equals_the_plain_layer_with_the_updated_kernel(convolution):
    layer, x = convolution
    options = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def plain(x, weight, bias):
        if layer.padding_mode == "zeros":
            return F.conv2d(x, weight, bias, *options)
        clone = copy.deepcopy(layer)  # F.conv2d knows no other padding than zeros
        return torch.func.functional_call(clone, {"weight": weight, "bias": bias}, (x,))

    for augmented in {False, layer.bias is not None}:
        check_against_plain(layer, plain, x, augmented)


@pytest.mark.parametrize("layer", [nn.Linear(6, 3), nn.Conv2d(4, 6, 3, groups=2)], ids=["linear", "convolution"])
def test_a_new_ness_layer_changes_nothing_and_trains_its_coefficients_only(layer):
    d = layer.weight[0].numel()
    wrapper = (NESSLinear if isinstance(layer, nn.Linear) else NESSConv2d).from_layer(layer, random_basis(d, 2))
    x = torch.randn(2, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 4, 5, 5)
    assert torch.equal(wrapper(x), layer(x))
    assert [name for name, p in wrapper.named_parameters() if p.requires_grad] == ["coefficients"]
    assert wrapper.coefficients.dtype == wrapper.basis.dtype == torch.float32
    assert wrapper.delta_weight().shape == layer.weight.shape
    assert "rank=2 of" in repr(wrapper)


def test_a_ness_layer_shows_the_updated_weight_and_bias():
    layer = nn.Linear(6, 3, dtype=torch.float64)
    wrapper = NESSLinear.from_layer(layer, random_basis(7, 2))
    nn.init.normal_(wrapper.coefficients)
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(F.linear(x, wrapper.weight, wrapper.bias), wrapper(x))
    assert (wrapper.in_features, wrapper.out_features) == (6, 3)
    assert NESSLinear.from_layer(nn.Linear(6, 3, bias=False), random_basis(6, 2)).bias is None


@pytest.mark.parametrize("shape", [(5, 2), (8, 2), (6, 7), (6,), (7, 2)])
def test_a_basis_that_does_not_fit_is_refused(shape):
    with pytest.raises(AdaptationError, match=r"must be \(6, r\)"):
        NESSLinear.from_layer(nn.Linear(6, 3, bias=False), torch.zeros(shape))


# ---- the guarantee: what lies in an exact null space leaves old outputs alone


@pytest.mark.parametrize("augment", [False, True])
def test_old_outputs_of_a_linear_layer_do_not_move(augment):
    model = nn.Sequential(nn.Linear(8, 5, dtype=torch.float64))
    x = torch.randn(30, 4, dtype=torch.float64) @ torch.randn(4, 8, dtype=torch.float64)
    x[:, 0] = 2.0  # a constant input: with the bias, a direction that is null as well
    check_old_outputs_stay(model, x, augment)


CONVOLUTIONS = {
    "plain": {},
    "padding": {"padding": 1},
    "stride and circular padding": {"stride": 2, "padding": (1, 2), "padding_mode": "circular"},
    "groups": {"groups": 2, "padding": "same"},
    "groups, dilation, reflect": {"groups": 2, "padding": (2, 1), "dilation": (2, 1), "padding_mode": "reflect"},
}


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("options", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_old_outputs_of_a_convolution_do_not_move(options, augment):
    model = nn.Sequential(nn.Conv2d(4, 6, 3, **options, dtype=torch.float64))
    check_old_outputs_stay(model, torch.randn(20, 2, 6, 6, dtype=torch.float64).repeat_interleave(2, dim=1), augment)


def check_old_outputs_stay(model, x, augment):
    new = torch.randn_like(x)
    before, before_on_new = model(x), model(new)
    adapt(model, null_bases(collect_moments(model, [x], augment_bias=augment)))
    randomise_coefficients(model)
    assert model[0].augmented == augment
    torch.testing.assert_close(model(x), before, atol=1e-12, rtol=0)
    merge(model)
    torch.testing.assert_close(model(x), before, atol=1e-12, rtol=0)
    assert (model(new) - before_on_new).abs().max() > 0.1


def test_with_a_constant_input_the_bias_learns_and_old_outputs_still_do_not_move():
    model = nn.Sequential(nn.Linear(3, 2, dtype=torch.float64))
    x = torch.randn(30, 3, dtype=torch.float64)
    x[:, 0] = 2.0
    old, bias = model(x), model[0].bias.detach().clone()
    adapt(model, null_bases(collect_moments(model, [x], augment_bias=True)))
    randomise_coefficients(model)
    merge(model)
    assert (model[0].bias - bias).abs().min() > 1e-3
    torch.testing.assert_close(model(x), old, atol=1e-12, rtol=0)


# ---- adapt and merge


def small_network():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 3)
    )


def snapshot(model):
    """Everything that a refusal or a merge must leave as it was: module objects, tensors and their flags."""
    modules = list(model.named_modules(remove_duplicate=False))
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return modules, tensors, {name: p.requires_grad for name, p in model.named_parameters()}


def assert_untouched(model, before, except_for=()):
    modules, tensors, flags = before
    for (name, module), (old_name, old_module) in zip(
        model.named_modules(remove_duplicate=False), modules, strict=True
    ):
        assert name == old_name
        assert module is old_module
    assert list(model.state_dict()) == list(tensors)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tensors[name]) != (name in except_for), name
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_merging_keeps_modules_keys_flags_and_outputs(dtype, tolerance):
    model = small_network().to(dtype).eval()
    model[5].weight.requires_grad_(False)
    before = snapshot(model)
    x = torch.randn(8, 2, 4, 4, dtype=dtype)
    original = model(x)

    adapt(model, random_bases(model))
    assert [type(module) for module in model[::4]] == [NESSConv2d, NESSLinear]
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == ["0.coefficients", "4.coefficients"]  # what was frozen before is left alone
    randomise_coefficients(model)
    adapted = model(x)
    assert (adapted - original).abs().max() > 0.1

    assert merge(model) is model
    assert_untouched(model, before, except_for={"0.weight", "4.weight"})
    torch.testing.assert_close(model(x), adapted, atol=tolerance, rtol=tolerance)


def test_merging_an_update_of_zero_changes_no_bit():
    model = small_network()
    model[4].weight.data[0, 0] = -0.0
    before = snapshot(model)
    adapt(model, random_bases(model))
    merge(model)
    assert_untouched(model, before)
    assert model[4].weight.data[0, 0].signbit()


def test_a_rank_of_zero_learns_nothing_and_merges():
    model = small_network().eval()
    before = snapshot(model)
    adapt(model, {"4": torch.zeros(16, 0)})
    model(torch.randn(8, 2, 4, 4)).sum().backward()
    merge(model)
    assert_untouched(model, before)


def test_a_module_under_two_names_is_replaced_in_both_and_its_inputs_are_pooled():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4, dtype=torch.float64)
            self.blocks = nn.ModuleList([nn.Tanh(), self.first])

        def forward(self, x):
            return self.blocks[1](self.blocks[0](self.first(x)))

    model = Twice()
    before = snapshot(model)
    x = torch.randn(7, 4, dtype=torch.float64)
    seen = torch.cat([x, model.first(x).tanh()])
    moments = collect_moments(model, [x])
    assert list(moments) == ["first"]
    assert moments["first"].count == 14
    torch.testing.assert_close(moments["first"].matrix, seen.T @ seen)

    adapt(model, {"blocks.1": random_basis(4, 2)})
    assert model.first is model.blocks[1]
    assert isinstance(model.first, NESSLinear)
    randomise_coefficients(model)
    adapted = model(x)
    merge(model)
    torch.testing.assert_close(model(x), adapted)
    assert_untouched(model, before, except_for={"first.weight", "blocks.1.weight"})


# ---- what cannot be adapted is refused by name


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but old models have it
        return nn.utils.weight_norm(layer)


def with_tied_weights():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5))
    model[1].weight = model[0].weight
    return model


def with_tied_biases():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].bias = model[0].bias
    return model


def adapted_already():
    model = nn.Sequential(nn.Linear(4, 4))
    adapt(model, {"0": torch.eye(4)})
    return model


class Scaled(nn.Linear):
    def forward(self, x):
        return F.linear(x, 2 * self.weight, self.bias)


REFUSED = {
    "attention": (lambda: nn.Sequential(nn.MultiheadAttention(4, 2, kdim=3)), "0", "three weights instead of one"),
    "parametrised": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4))), "0", "parametrised"),
    "old weight norm": (lambda: nn.Sequential(old_weight_norm(nn.Linear(4, 4))), "0", "parametrised"),
    "spectral norm": (lambda: nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(4, 4, 3))), "0", "parametrised"),
    "pruned bias": (lambda: nn.Sequential(prune.random_unstructured(nn.Linear(4, 4), "bias", 1)), "0", "parametrised"),
    "tied weights": (with_tied_weights, "1", "tied to '0'"),
    "tied biases": (with_tied_biases, "1", "tied to '0'"),
    "own forward": (lambda: nn.Sequential(Scaled(4, 4)), "0", "Scaled"),
    "DataParallel": (lambda: nn.DataParallel(nn.Sequential(nn.Linear(4, 4))), "module.0", "DataParallel wrapper"),
    "compiled": (lambda: torch.compile(nn.Sequential(nn.Linear(4, 4))), "_orig_mod.0", "compiled"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(4)), "0", "no shape yet"),
    "unknown": (small_network, "7.fc", "no layer of that name; it has 0, 4, 5"),
    "BatchNorm": (small_network, "1", "BatchNorm2d; only Linear and Conv2d"),
    "complex": (lambda: nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64)), "0", "only real floating-point"),
    "adapted": (adapted_already, "0", "adapted already"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # importing torch's compiler
@pytest.mark.parametrize(("make", "name", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_adapted_is_refused_by_name_and_left_alone(make, name, reason):
    model = make()
    lazy = any(isinstance(p, nn.UninitializedParameter) for p in model.parameters())
    before = None if lazy else snapshot(model)
    assert name not in adaptable_layers(model)
    with pytest.raises(AdaptationError, match=f"layer '{name}' cannot be adapted: .*{reason}"):
        adapt(model, {name: torch.eye(4)[:, :2]})
    if before:
        assert_untouched(model, before)


@pytest.mark.parametrize(
    ("second", "basis"),
    [
        ("5", torch.zeros(7, 2)),
        ("1", torch.zeros(4, 2)),
        ("nowhere", torch.zeros(4, 2)),
        ("5", None),
    ],
    ids=["wrong shape", "BatchNorm", "unknown", "no tensor"],
)
def test_a_refusal_leaves_every_layer_alone(second, basis):
    model = small_network()
    before = snapshot(model)
    with pytest.raises((AdaptationError, AttributeError)):
        adapt(model, {"4": random_basis(16, 2), second: basis})
    assert_untouched(model, before)


def test_one_module_cannot_get_two_bases():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, layer)
    before = snapshot(model)
    with pytest.raises(AdaptationError, match="layer '1' cannot be adapted: it is the same module as '0'"):
        adapt(model, {"0": random_basis(4, 2), "1": random_basis(4, 2)})
    assert_untouched(model, before)


def test_a_ness_layer_alone_says_how_to_merge_it():
    wrapper = NESSLinear.from_layer(nn.Linear(4, 4), torch.eye(4))
    with pytest.raises(AdaptationError, match="merged"):
        merge(wrapper)


# ---- models nobody here wrote


class TransformerClassifier(nn.Module):
    def __init__(self):
        super().__init__()
        block = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=12, batch_first=True)
        self.encoder = nn.TransformerEncoder(block, num_layers=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x, padding=None):
        return self.head(self.encoder(x, src_key_padding_mask=padding).mean(dim=1))


@pytest.fixture
def transformer():
    return TransformerClassifier().double()


PARTS = ("self_attn", "self_attn.out_proj", "linear1", "linear2")
IN_BLOCKS = [f"encoder.layers.{block}.{part}" for block in (0, 1) for part in PARTS]


def test_moments_of_a_transformer_see_attention_and_feed_forward_layers(transformer):
    """In evaluation torch may take a fused path that calls no layer at all."""
    moments = collect_moments(transformer, [torch.randn(4, 5, 8, dtype=torch.float64)])
    assert {name: moment.count for name, moment in moments.items()} == dict.fromkeys(IN_BLOCKS, 20) | {"head": 4}


def test_moments_of_a_transformer_leave_padding_out(transformer):
    padding = torch.arange(5) >= torch.tensor([[2], [5], [3], [5]])
    batch = {"x": torch.randn(4, 5, 8, dtype=torch.float64), "padding": padding}
    moments = collect_moments(transformer, [batch])
    assert [moments[name].count for name in IN_BLOCKS] == [15] * 8
    alone = collect_moments(
        transformer, [sentence[None, real] for sentence, real in zip(batch["x"], ~padding, strict=True)]
    )
    for name in IN_BLOCKS:
        torch.testing.assert_close(moments[name].matrix, alone[name].matrix)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("padding", [None, torch.arange(5) >= torch.tensor([[2], [5], [3], [5]])], ids=["", "padding"])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_an_adapted_transformer_equals_the_merged_one(transformer, training, grad, padding):
    """Also where torch takes its fused path, which reads the weights of the layers instead of calling them."""
    transformer.train(training)
    x = torch.randn(4, 5, 8, dtype=torch.float64)

    def output():
        torch.manual_seed(1)  # the same dropout each time
        with torch.set_grad_enabled(grad):
            return transformer(x, padding)

    original = output()
    adapt(transformer, random_bases(transformer))
    randomise_coefficients(transformer)
    adapted = output()
    merge(transformer)
    assert (adapted - original).abs().max() > 0.1
    torch.testing.assert_close(output(), adapted, atol=1e-12, rtol=0)


class BasicBlock(nn.Module):
    """As in torchvision's ResNet."""

    def __init__(self, inplanes, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))
            if stride != 1
            else None
        )

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + identity)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(BasicBlock(8, 8, 1))
        self.layer2 = nn.Sequential(BasicBlock(8, 16, 2))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(self.avgpool(self.layer2(self.layer1(x))).flatten(1))


def train_coefficients(model, x, y, steps=30):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    return loss.item()


def test_a_resnet_learns_in_its_exact_null_space_without_moving_old_outputs():
    model = ResNet().double().eval()  # evaluation mode: BatchNorm's statistics are not the subject here
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    old_x = torch.randn(1, 1, 4, 4, dtype=torch.float64).expand(1, 3, 4, 4)  # one grey image leaves much room
    new_x, new_y = torch.randn(16, 3, 4, 4, dtype=torch.float64), torch.randint(4, (16,))
    before = snapshot(model)
    old_outputs, old_loss = model(old_x), F.cross_entropy(model(new_x), new_y).item()

    bases = null_bases(collect_moments(model, [old_x]))
    assert set(bases) == {
        *("conv1", "layer1.0.conv1", "layer1.0.conv2", "fc"),
        *("layer2.0.conv1", "layer2.0.conv2", "layer2.0.downsample.0"),
    }
    adapt(model, bases)
    new_loss = train_coefficients(model, new_x, new_y)
    torch.testing.assert_close(model(old_x), old_outputs, atol=1e-9, rtol=0)
    assert new_loss < 0.8 * old_loss

    merge(model)
    torch.testing.assert_close(model(old_x), old_outputs, atol=1e-9, rtol=0)
    assert_untouched(model, before, except_for={f"{name}.weight" for name in bases})
