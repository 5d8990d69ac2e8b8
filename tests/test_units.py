"""Which units a network has: gates switch off what they say, and a unit that is off may be changed at will."""

import pytest
import torch
from small_tasks import stream, training
from torch import nn

from nesskit import NetworkSettings, TaskModel, build_model, fit
from nesskit.errors import TrainingError
from nesskit.methods.hat import free_shares
from nesskit.networks.units import Units, chain, gated, units_of
from nesskit.streams.base import Examples, Task, TaskStream

SHAPES = {"mlp": (3, 4, 4), "convnet": (3, 8, 8), "alexnet": (3, 32, 32), "resnet18": (3, 16, 16)}


def network(name, norm="batch"):
    empty = Examples(torch.zeros(0, *SHAPES[name]), torch.zeros(0, dtype=torch.int64))
    one = Examples(torch.zeros(1, *SHAPES[name]), torch.zeros(1, dtype=torch.int64))
    tasks = TaskStream("one", (Task("one", ("a", "b"), one, empty, one),))
    backbone = build_model(tasks, NetworkSettings(name, widths=(12, 10, 8), norm=norm)).backbone
    return backbone, torch.randn(6, *SHAPES[name])


def switches(backbone, share=0.5):
    """Gates that are 0 or 1."""
    return {units.name: (torch.rand(len(units.weight(backbone))) < share).float() for units in units_of(backbone)}


def answers(backbone, gates, x):
    with torch.no_grad(), gated(backbone, units_of(backbone), gates):
        return backbone(x)


@pytest.mark.parametrize("norm", ["batch", "running"])
@pytest.mark.parametrize("name", SHAPES)
def test_what_gates_leave_free_can_be_anything(name, norm):
    """The promise of HAT, for every parameter of every network, through residual additions and flattenings too."""
    backbone, x = network(name, norm)
    backbone.eval()
    gates = switches(backbone)
    before, plain = answers(backbone, gates, x), backbone(x).detach()
    shares = free_shares(backbone, units_of(backbone), gates)
    assert shares.keys() == dict(backbone.named_parameters()).keys()
    with torch.no_grad():
        for key, parameter in backbone.named_parameters():
            assert 0.2 < shares[key].expand_as(parameter).mean() < 0.9  # some of it is free, some is not
            parameter += torch.randn_like(parameter) * shares[key]
    assert torch.equal(answers(backbone, gates, x), before)
    assert not torch.allclose(backbone(x), plain)  # although the network has become another one


@pytest.mark.parametrize("name", SHAPES)
def test_open_gates_leave_a_network_as_it_is_and_closed_ones_nothing_of_it(name):
    backbone, x = network(name)
    backbone.eval()
    plain = backbone(x).detach()
    for value, expected in ((1.0, plain), (0.0, torch.zeros_like(plain))):
        gates = {key: torch.full_like(gate, value) for key, gate in switches(backbone).items()}
        assert torch.equal(answers(backbone, gates, x), expected)
    assert torch.equal(backbone(x), plain)  # outside nothing is gated


@pytest.mark.parametrize("name", SHAPES)
def test_every_single_gate_is_felt(name):
    backbone, x = network(name)
    backbone.eval()
    everything = {key: torch.ones_like(gate) for key, gate in switches(backbone).items()}
    for key, gate in everything.items():
        closed = gate.clone()
        closed[: len(gate) // 2] = 0
        assert not torch.equal(answers(backbone, {**everything, key: closed}, x), backbone(x)), key


def test_the_units_of_alexnet():
    backbone, _ = network("alexnet")
    units = units_of(backbone)
    assert [len(each.weight(backbone)) for each in units] == [64, 128, 256, 2048, 2048]
    assert units[0] == Units(("stages.0", "stages.1"), ("stages.4",), ("stages.5",))  # gated where it was pooled
    assert units[2].feed == ("stages.16",)


def test_the_stream_of_a_resnet_is_one_row_of_units_a_width():
    backbone, _ = network("resnet18")
    units = {each.name: each for each in units_of(backbone)}
    assert len(units) == 8 + 4  # within each block, and four widths
    assert units["stem"].gated_at == ("norm", "blocks.0", "blocks.1")
    assert units["stem"].feed == ("blocks.0.conv1", "blocks.1.conv1", "blocks.2.conv1", "blocks.2.shortcut.0")
    widest = units["blocks.6.conv2"]
    assert widest.made_by == (
        *("blocks.6.conv2", "blocks.6.norm2", "blocks.6.shortcut.0", "blocks.6.shortcut.1"),
        *("blocks.7.conv2", "blocks.7.norm2"),
    )


def test_a_chain_is_understood_as_it_is():
    layers = nn.Sequential(
        nn.Flatten(),
        nn.Linear(8, 6),
        nn.Sequential(nn.BatchNorm1d(6), nn.Tanh()),
        nn.Dropout(0.1),
        nn.Linear(6, 5),
    )
    assert units_of(layers) == (Units(("1", "2.0"), ("3",), ("4",)), Units(("4",), ("4",)))
    flattened = nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(12, 2))
    assert units_of(flattened) == (Units(("0",), ("1",), ("4",)), Units(("4",), ("4",)))
    assert chain(nn.ModuleList([nn.Linear(2, 2)]), "own.") == (Units(("own.0",), ("own.0",)),)


shared = nn.ReLU()
MIXED = {
    "a norm over units": [nn.Linear(4, 4), nn.LayerNorm(4)],
    "a norm of the inputs": [nn.BatchNorm1d(4), nn.Linear(4, 4)],
    "groups": [nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1, groups=2)],
    "a softmax": [nn.Linear(4, 4), nn.Softmax(1)],
    "an activation after flattening": [nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Sigmoid()],
    "another width": [nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(6, 4)],
    "a flattened sequence": [nn.Linear(4, 4), nn.Flatten(), nn.Linear(8, 4)],
    "pooling over units": [nn.Linear(4, 4), nn.MaxPool1d(2)],
    "another norm": [nn.Linear(4, 4), nn.InstanceNorm1d(4)],
    "one module twice": [nn.Linear(4, 4), shared, nn.Linear(4, 4), shared],
    "a parametrised weight": [torch.nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))],
    "a parameter of all units": [nn.Linear(4, 4), nn.PReLU()],
}


@pytest.mark.parametrize("what", MIXED)
def test_a_chain_that_mixes_units_is_refused(what):
    with pytest.raises(
        TrainingError, match=r"units of the network Sequential cannot be gated: it has a .*Those of mlp"
    ):
        units_of(nn.Sequential(*MIXED[what]))


class Own(nn.Module):
    """A user's network."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.second(self.first(x).relu()).relu()


class Said(Own):
    def units(self):
        yield Units(("first",), ("first",), ("second",))
        yield Units(("second",), ("second",))


class HalfSaid(Own):
    def units(self):
        yield Units(("first",), ("first",), ("second",))


def test_a_network_of_the_users_own_says_its_units(tmp_path):
    assert fit(TaskModel(Said(), 4, [3] * 2), stream(2), "hat", training(epochs=1)).finished
    with pytest.raises(TrainingError, match=r"network Own cannot be gated: it does not say.*mlp, alexnet, resnet18"):
        fit(TaskModel(Own(), 4, [3] * 2), stream(2), "hat", training(), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()  # before anything is written
    with pytest.raises(TrainingError, match=r"HalfSaid cannot be gated: it has a parameter, 'second\.weight'"):
        fit(TaskModel(HalfSaid(), 4, [3] * 2), stream(2), "hat", training())
