"""What `adapt` promises for models and loops that nobody here wrote: nothing old moves, or somebody is told."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils import parametrizations

import nesskit
from nesskit import AdaptationWarning, adapted_layers, collect_moments
from nesskit.errors import AdaptationError

FORMS = ["factored", "projected"]


def old_inputs(n=40):
    """Inputs that fill 5 of 16 directions."""
    return torch.randn(n, 5) @ torch.randn(5, 16)


def network():
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))


def null_space(moment):
    """U and M of a moment."""
    spectrum = moment.spectrum()
    count = int((spectrum.singular_values > 1e-6 * spectrum.singular_values[0]).sum())
    return spectrum.directions[:, count:], spectrum.directions[:, :count]


def adapt(model, old, form="factored", layers=None, **options):
    spaces = {name: null_space(moment) for name, moment in collect_moments(model, [old], layers).items()}
    if form == "factored":
        return nesskit.adapt(model, {name: U for name, (U, _) in spaces.items()}, **options)
    return nesskit.adapt(model, {}, {name: M for name, (_, M) in spaces.items()}, **options)


def train(model, optimizer=None, steps=20, new=None):
    new = torch.randn(40, 16) if new is None else new
    optimizer = optimizer or torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.05, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=False)
        (model(new) - 1).square().mean().backward()
        optimizer.step()


def randomise(model):
    with torch.no_grad():
        for layer in adapted_layers(model).values():
            layer.trained.normal_()


def assert_stays(model, old, before, tolerance=1e-4):
    size = before.abs().max()
    assert (model(old) - before).abs().max() <= tolerance * size


# ---- what is frozen stays frozen


class Conv1D(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16, 32) * 0.1)

    def forward(self, x):
        return x @ self.weight


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)

    def forward(self, x):
        return self.block(x[:, None])[:, 0]


def weight_normed(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, but old models have it
        return nn.utils.weight_norm(layer)


PARTS = {
    "LayerNorm": lambda: nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32)),
    "BatchNorm": lambda: nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32)),
    "BatchNorm without averages": lambda: nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32, momentum=None)),
    "PReLU": lambda: nn.Sequential(nn.Linear(16, 32), nn.PReLU()),
    "attention": lambda: nn.Sequential(Attention(), nn.Linear(16, 32)),
    "a layer of somebody's own": Conv1D,
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(16, 32)),
    "old weight norm": lambda: weight_normed(nn.Linear(16, 32)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(16, 32)),
    "old spectral norm": lambda: nn.utils.spectral_norm(nn.Linear(16, 32)),
    "GRU": lambda: nn.Sequential(nn.GRU(16, 32), First()),
    "bilinear": lambda: Twice(nn.Bilinear(16, 16, 32)),
}


class First(nn.Module):
    def forward(self, x):
        return x[0]


class Twice(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x, x)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
def test_what_no_projection_protects_does_not_learn(part):
    model = nn.Sequential(part(), nn.Tanh(), nn.Linear(32, 4)).eval()
    old = old_inputs()
    before = model(old).detach()
    adapt(model, old)
    model.train()
    train(model)
    nesskit.merge(model)
    model.eval()
    assert_stays(model, old, before)


def test_running_state_stands_still_and_runs_again_afterwards():
    model = nn.Sequential(
        *(nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4, track_running_stats=True), nn.BatchNorm1d(4)),
        parametrizations.spectral_norm(nn.Conv1d(4, 4, 1)),
    )
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x = torch.randn(8, 2, 9)
    adapt(model, x[:1, :, :4], layers=["0"])
    for _ in range(3):
        model.train()
        model(x).sum().backward()
    assert {n: torch.equal(b, buffers[n]) for n, b in model.named_buffers() if n in buffers} == dict.fromkeys(
        buffers, True
    )
    nesskit.merge(model)
    model.train()
    model(x)
    assert not any(torch.equal(b, buffers[n]) for n, b in model.named_buffers() if b.is_floating_point())


@pytest.mark.parametrize("how", ["the old optimizer goes on", "left-over gradients", "requires_grad_(True) on all"])
@pytest.mark.parametrize("form", FORMS)
def test_no_optimizer_moves_what_is_frozen(form, how):
    model, old = network(), old_inputs()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    train(model, optimizer, 5, old)
    before = model(old).detach()
    frozen = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapt(model, old, form)
    assert all(p.grad is None for p in model.parameters())
    if how == "the old optimizer goes on":
        optimizer.add_param_group({"params": [layer.trained for layer in adapted_layers(model).values()]})
    else:
        if how == "requires_grad_(True) on all":
            model.requires_grad_(True)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=0.01)
    train(model, optimizer)
    for name, layer in adapted_layers(model).items():
        assert torch.equal(layer.frozen_weight, frozen[f"{name}.weight"])
    nesskit.merge(model)
    assert_stays(model, old, before)


def test_merge_refuses_what_was_moved_by_hand_and_can_undo_it():
    model, old = network(), old_inputs()
    before = model(old).detach()
    adapt(model, old)
    train(model)
    with torch.no_grad():
        model[2].bias += 3.0
    with pytest.raises(AdaptationError, match=r"'2\.bias' was frozen, but has moved by 6 since adapt\(\)"):
        nesskit.merge(model)
    assert list(adapted_layers(model)) == ["0", "2"]
    nesskit.merge(model, restore=True)
    assert_stays(model, old, before)


def test_loading_something_else_excuses_nothing():
    part, old = network(), old_inputs()
    model = nn.Sequential(nn.Identity(), part)
    adapt(part, old)
    with torch.no_grad():
        part[2].bias += 3.0
    model.load_state_dict({"1.0.coefficients": part[0].coefficients}, strict=False)
    with pytest.raises(AdaptationError, match=r"'2\.bias' was frozen, but has moved"):
        nesskit.merge(part)


def test_merge_refuses_a_weight_that_was_replaced():
    model, old = network(), old_inputs()
    adapt(model, old)
    model[0].weight = nn.Parameter(model[0].frozen_weight + 1)
    with pytest.raises(AdaptationError, match=r"'0\.weight' was frozen, but has moved by 22\.6"):
        nesskit.merge(model)


def test_what_the_user_froze_is_left_alone():
    model, old = network(), old_inputs()
    model[0].requires_grad_(False)
    weight = model[0].weight.detach().clone()
    report = adapt(model, old)
    assert report.left_out == {"0": "frozen before: it stays as it is"}
    assert list(report.adapted) == ["2"]
    train(model)
    nesskit.merge(model)
    assert torch.equal(model[0].weight, weight)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["2.weight", "2.bias"]


def test_the_report_says_what_learns_what_is_frozen_and_what_was_left_out():
    model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 4), nn.Linear(4, 2))
    model[2].requires_grad_(False)
    report = adapt(model, old_inputs(), train=["3"], layers=["0", "2"])
    assert report.adapted == {"0": (11, 16)}
    assert report.trained == ["3.weight", "3.bias"]
    assert str(report).splitlines() == [
        "0         learns    11 of 16 directions free",
        "3.weight  learns    unprotected, as asked",
        "3.bias    learns    unprotected, as asked",
        "2         left out  frozen before: it stays as it is",
        "0.bias    frozen    it is no weight",
        "1.weight  frozen    no weight of a LayerNorm can be protected",
        "1.bias    frozen    no weight of a LayerNorm can be protected",
    ]
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trainable == ["0.coefficients", "3.weight", "3.bias"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [("fc", "'fc', which is to go on learning, is no parameter or module"), ("0", "its layer is to be adapted")],
)
def test_what_cannot_go_on_learning_is_refused(name, sentence):
    model = network()
    with pytest.raises(AdaptationError, match=sentence):
        nesskit.adapt(model, {"0": torch.eye(16)[:, :3]}, train=[name])
    assert not adapted_layers(model)
    assert all(p.requires_grad for p in model.parameters())


def test_a_model_is_adapted_once():
    model = network()
    nesskit.adapt(model, {"0": torch.eye(16)[:, :3]})
    with pytest.raises(AdaptationError, match=r"adapted already: merge\(model\) first"):
        nesskit.adapt(model, {"2": torch.eye(32)[:, :3]})
    with pytest.raises(AdaptationError, match=r"adapted already: merge\(model\) first"):
        nesskit.adapt(nn.Sequential(model), {"0.2": torch.eye(32)[:, :3]})


# ---- an adapted layer is the layer


class Uses(nn.Module):
    """Ways to use one weight."""

    def __init__(self, how):
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.listed = [self.layer]  # a plain list, which torch does not look into
        self.how = how

    def forward(self, x):
        layer = self.layer
        return {
            "keyword": lambda: layer(input=x),
            "called twice": lambda: layer(x) + layer(x.flip(-1)),
            "forward": lambda: layer(x) + layer.forward(x.flip(-1)),
            "functional": lambda: layer(x) + F.linear(x.flip(-1), layer.weight, layer.bias),
            "matrix product": lambda: x @ layer.weight.T,
            "weight on the left": lambda: (layer.weight @ x.T).T,
            "one row at a time": lambda: torch.stack([layer.weight @ row for row in x]),
            "in another type": lambda: F.linear(x.double(), layer.weight.double()).float(),
            "in parts": lambda: torch.cat([F.linear(x, part) for part in layer.weight.chunk(4)], dim=1),
            "in a plain list": lambda: self.listed[0](x),
            "einsum": lambda: torch.einsum("ni,oi->no", x, layer.weight),
        }[self.how]()


USES = [
    *("keyword", "called twice", "forward", "functional", "matrix product", "weight on the left"),
    *("one row at a time", "in another type", "in parts", "in a plain list", "einsum"),
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("how", USES)
def test_inputs_are_seen_wherever_the_weight_is_used(how, form):
    model, old = Uses(how), old_inputs()
    before = model(old).detach()
    twice = how in ("called twice", "forward", "functional")
    count = {"in parts": 4, "called twice": 2, "forward": 2, "functional": 2}.get(how, 1)
    moment = collect_moments(model, [old])["layer"]
    assert moment.count == count * len(old)
    U, M = null_space(moment)
    assert U.shape[1] == (6 if twice else 11)
    nesskit.adapt(model, *([{"layer": U}] if form == "factored" else [{}, {"layer": M}]))
    randomise(model)
    assert_stays(model, old, before)
    new = torch.randn(40, 16)
    adapted = model(new).detach()
    nesskit.merge(model)
    assert_stays(model, old, before)
    torch.testing.assert_close(model(new), adapted, atol=1e-4, rtol=1e-4)


def test_a_weight_that_is_used_in_another_way_is_left_out_or_refused_by_name():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.masked, self.plain = nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x):
            return self.plain(F.linear(x, self.masked.weight * torch.eye(16)))

    model, old = Scaled(), old_inputs()
    with pytest.warns(AdaptationWarning, match="'masked' is also used in 'mul', which is no product .* it is left out"):
        assert list(collect_moments(model, [old])) == ["plain"]
    with pytest.raises(AdaptationError, match="'masked' is also used in 'mul'"):
        collect_moments(model, [old], ["masked"])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["before", "after"])
@pytest.mark.parametrize("make", [lambda: nn.Linear(16, 8), lambda: nn.Conv2d(1, 8, 4)], ids=["linear", "convolution"])
def test_hooks_act_once_and_are_seen(make, kind, form):
    layer = make()
    shape = (-1, 16) if isinstance(layer, nn.Linear) else (-1, 1, 4, 4)
    model = nn.Sequential(layer)
    if kind == "before":
        layer.register_forward_pre_hook(lambda _, args: (args[0] * 2,))
    else:
        layer.register_forward_hook(lambda _, args, output: output * 3)
    old, new = old_inputs().reshape(shape), torch.randn(40, 16).reshape(shape)
    before, before_on_new = model(old).detach(), model(new).detach()
    adapt(model, old, form)
    torch.testing.assert_close(model(new), before_on_new)
    randomise(model)
    adapted = model(new).detach()
    assert_stays(model, old, before)
    nesskit.merge(model)
    torch.testing.assert_close(model(new), adapted, atol=1e-4, rtol=1e-4)
    assert model[0] is layer


def test_a_replaced_forward_runs():
    model, old = network(), old_inputs()
    plain = model[0].forward
    model[0].forward = lambda x: plain(2 * x) + 1
    before = model(old).detach()
    adapt(model, old)
    randomise(model)
    assert_stays(model, old, before)
    nesskit.merge(model)
    assert_stays(model, old, before)


@pytest.mark.parametrize("form", FORMS)
def test_attributes_and_types_are_the_layers(form):
    layer = nn.Conv2d(1, 4, 2, stride=2, padding=1)
    names = ("stride", "padding", "kernel_size", "dilation", "groups", "in_channels", "out_channels", "padding_mode")
    attributes = [getattr(layer, name) for name in names]
    model = nn.Sequential(layer)
    adapt(model, torch.ones(3, 1, 4, 4), form)
    assert model[0] is layer
    assert isinstance(layer, nn.Conv2d)
    assert [getattr(layer, name) for name in names] == attributes
    nesskit.merge(model)
    assert type(layer) is nn.Conv2d


@pytest.mark.parametrize("form", FORMS)
def test_a_model_of_one_layer_can_be_adapted(form):
    model, old = nn.Linear(16, 3), old_inputs()
    before = model(old).detach()
    adapt(model, old, form)
    randomise(model)
    assert_stays(model, old, before)
    nesskit.merge(model)
    assert_stays(model, old, before)
    assert type(model) is nn.Linear


# ---- weights that are somebody else's too


class Tied(nn.Module):
    def __init__(self, by_storage):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(16, 16, bias=False), nn.ReLU())
        self.head = nn.Linear(16, 16, bias=False)
        self.head.weight = nn.Parameter(self.body[0].weight.data.t()) if by_storage else self.body[0].weight

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize("by_storage", [True, False])
def test_a_tie_is_parted_with_a_warning(by_storage):
    model, old = Tied(by_storage), old_inputs()
    before = model(old).detach()
    part, name = (model, "body.0") if by_storage else (model.body, "0")
    moment = collect_moments(part, [old], [name])[name]
    with pytest.warns(AdaptationWarning, match=f"the weight of layer '{name}' is also that of .*: they part here"):
        nesskit.adapt(part, {name: null_space(moment)[0]})
    randomise(model)
    assert_stays(model, old, before)
    nesskit.merge(part)
    assert_stays(model, old, before)


def test_a_tie_to_another_kind_of_layer_is_refused():
    model = nn.Sequential(nn.Embedding(16, 4), nn.Linear(4, 16))
    model[1].weight = model[0].weight
    with pytest.raises(AdaptationError, match="its weight is tied to '0'"):
        nesskit.adapt(model, {"1": torch.eye(4)[:, :2]})


# ---- other ways to differentiate, compile, copy


@pytest.mark.parametrize("form", FORMS)
def test_torch_func_sees_the_protected_function(form):
    model, old = network(), old_inputs()
    adapt(model, old, form, layers=["0"])

    def loss(parameters, x):
        return torch.func.functional_call(model, parameters, (x,)).square().sum()

    gradients = torch.func.grad(loss)(dict(model.named_parameters()), torch.randn(40, 16))
    model(old).square().sum().backward()
    trained = "0.coefficients" if form == "factored" else "0.update"
    gradient = torch.func.grad(loss)(dict(model.named_parameters()), old)[trained]
    torch.testing.assert_close(gradient, adapted_layers(model)["0"].trained.grad, atol=1e-5, rtol=1e-4)
    assert gradients[trained].abs().max() > 1e-3


@pytest.mark.parametrize("case", ["SGD", "Adam", "gradient penalty", "autocast around backward"])
@pytest.mark.parametrize("form", FORMS)
def test_any_step_is_safe(form, case):
    model, old, new = network(), old_inputs(), torch.randn(40, 16)
    model[1] = nn.Tanh()
    before = model(old).detach()
    adapt(model, old, form)
    trained = [layer.trained for layer in adapted_layers(model).values()]
    optimizer = torch.optim.Adam(trained, 1e-2) if case == "Adam" else torch.optim.SGD(trained, 0.1)
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast around backward"):
            if case == "gradient penalty":
                x = new[:8].clone().requires_grad_()
                (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
                loss = (slope.norm(dim=1) - 3).square().mean()
            else:
                loss = (model(new).float() - 1).square().mean()
            loss.backward()
        optimizer.step()
    nesskit.merge(model)
    assert_stays(model, old, before)


@pytest.mark.parametrize("form", FORMS)
def test_a_copy_is_a_model_of_its_own(form):
    model, old = network(), old_inputs()
    before = model(old).detach()
    adapt(model, old, form)
    randomise(model)
    twin = copy.deepcopy(model)
    unpickled = pickle.loads(pickle.dumps(model))
    new = torch.randn(7, 16)
    for other in (twin, unpickled):
        torch.testing.assert_close(other(new), model(new))
        randomise(other)
        assert not torch.allclose(other(new), model(new))
        nesskit.merge(other)
        assert type(other[0]) is nn.Linear
        assert_stays(other, old, before)
        assert all(p.requires_grad for p in other.parameters())
    assert list(adapted_layers(model)) == ["0", "2"]


@pytest.mark.parametrize("form", FORMS)
def test_a_state_is_saved_and_loaded(form):
    model, old = network(), old_inputs()
    adapt(model, old, form)
    randomise(model)
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    other = network()
    adapt(other, old, form)
    other.load_state_dict(torch.load(io.BytesIO(stream.getvalue())))
    new = torch.randn(7, 16)
    torch.testing.assert_close(other(new), model(new))
    nesskit.merge(other)  # what was loaded counts as what is frozen
    nesskit.merge(model)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_an_adapted_model_can_be_exported(form):
    model, old = network().eval(), old_inputs()
    adapt(model, old, form)
    randomise(model)
    exported = torch.export.export(model, (old,))
    torch.testing.assert_close(exported.module()(old), model(old), atol=1e-4, rtol=1e-4)


# ---- what is given is checked, and copied


def test_a_basis_is_checked_and_copied():
    model, old = network(), old_inputs()
    before = model(old).detach()
    U, M = null_space(collect_moments(model, [old])["0"])
    for wrong in (
        torch.full((16, 3), float("nan")),
        torch.full((16, 3), float("inf")),
        torch.eye(16, dtype=torch.cfloat),
    ):
        with pytest.raises(AdaptationError, match="must hold finite real numbers"):
            nesskit.adapt(model, {"0": wrong})
    given = U.float().clone()
    nesskit.adapt(model, {"0": given})
    given.zero_()
    randomise(model)
    assert_stays(model, old, before)
    nesskit.merge(model)
    skewed = M @ torch.diag(torch.linspace(0.1, 3.0, M.shape[1], dtype=M.dtype)) @ torch.randn(M.shape[1], 8).double()
    nesskit.adapt(model, {}, {"0": skewed})  # not orthonormal, but of the same span
    assert adapted_layers(model)["0"].rank == 11
    randomise(model)
    assert_stays(model, old, before)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_layers_are_refused(dtype):
    model = nn.Sequential(nn.Linear(16, 4, dtype=dtype))
    with pytest.raises(AdaptationError, match="no layer of this model can be adapted"):
        collect_moments(model, [torch.randn(3, 16, dtype=dtype)])
    with pytest.raises(AdaptationError, match="only real floating-point weights can be"):
        nesskit.adapt(model, {"0": torch.eye(16)})


def test_moments_of_convolutions_of_every_number_of_axes_are_sums_over_explicit_patches():
    for make, shape in ((nn.Conv1d, (9,)), (nn.Conv2d, (5, 6)), (nn.Conv3d, (4, 5, 3))):
        layer = make(4, 2, 2, stride=2, padding=1, groups=2, bias=False).double()
        x = torch.randn(3, 4, *shape, dtype=torch.float64)
        moment = collect_moments(nn.Sequential(layer), [x])["0"]
        # The convolution of x with every unit weight is one coordinate of every patch of every group.
        units = torch.eye(layer.weight[0].numel(), dtype=torch.float64).view(-1, *layer.weight.shape[1:])
        conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(shape)]
        rows = [
            conv(group, units, stride=2, padding=1).flatten(2).movedim(1, 2).flatten(0, 1) for group in x.chunk(2, 1)
        ]
        rows = torch.cat(rows)
        torch.testing.assert_close(moment.matrix, rows.T @ rows)
        assert moment.count == len(rows) // 2


def test_an_embeddings_free_directions_are_the_tokens_never_seen():
    model = nn.Sequential(nn.Embedding(7, 3))
    moment = collect_moments(model, [torch.tensor([[1, 1, 4], [0, 4, 1]])])["0"]
    assert torch.equal(moment.matrix, torch.diag(torch.tensor([1.0, 3, 0, 0, 2, 0, 0], dtype=torch.float64)))
    before = model[0].weight.detach().clone()
    U, _ = null_space(moment)
    nesskit.adapt(model, {"0": U})
    randomise(model)
    nesskit.merge(model)
    moved = (model[0].weight != before).any(dim=1)
    assert moved.tolist() == [False, False, True, True, False, True, True]


# ---- batches as people have them


def test_a_loader_of_inputs_and_labels_is_taken_as_it_is():
    model, x = network(), old_inputs()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(len(x))), batch_size=16)
    moments = collect_moments(model, loader)
    torch.testing.assert_close(moments["0"].matrix, x.double().T @ x.double())
    (same,) = [{"input": x, "labels": torch.zeros(len(x))}]
    torch.testing.assert_close(collect_moments(model, [same])["0"].matrix, moments["0"].matrix)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_inputs_become_of_the_models_type(dtype):
    x = old_inputs().round()
    moment = collect_moments(network().to(dtype), [x])["0"]
    torch.testing.assert_close(moment.matrix, x.double().T @ x.double())


@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (torch.zeros(0, 16), "a batch is empty"),
        (torch.eye(16).to_sparse(), "a batch is torch.sparse_coo, .* dense tensor"),
        ({"x": torch.zeros(2, 16)}, "a batch has the keys x, of which the model takes none"),
    ],
)
def test_batches_that_cannot_be_used_are_refused_in_a_sentence(batch, sentence):
    with pytest.raises(nesskit.NesskitError, match=sentence):
        collect_moments(network(), [batch])


def test_moments_in_inference_mode_are_the_same():
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Flatten(), nn.Linear(24, 5))
    x = torch.randn(6, 2, 8)
    plain = collect_moments(model, [x])
    with torch.inference_mode():
        inside = collect_moments(model, [x])
    assert all(torch.equal(inside[name].matrix, moment.matrix) for name, moment in plain.items())
    assert not inside["0"].matrix.is_inference()
