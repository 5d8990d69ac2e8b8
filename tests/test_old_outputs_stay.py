"""The guarantee, for every kind of layer, form, optimizer and precision: what is learned in an exact null space of old
inputs leaves old outputs where they were, after adapt, 20 steps and merge. `python tests/test_old_outputs_stay.py`
prints the table of docs/old_outputs.md.
"""

import copy

import pytest
import torch
from torch import nn

import nesskit
from nesskit.training.optim import SAM

STEPS = 20


class Conv1D(nn.Module):
    """The linear layer of GPT-2, as `transformers` has it: its weight is (inputs, outputs)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) * 0.1), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)[0]


def pairs(*shape, axis):
    """Inputs (30, …) of which each value stands twice along ``axis``: half of all directions are never used.

    Exactly so in any precision, which a span of fewer vectors would not be once it is rounded to bfloat16.
    """
    half = [size // 2 if number == axis else size for number, size in enumerate(shape, start=1)]
    return lambda: torch.randn(30, *half).repeat_interleave(2, dim=axis)


def tokens(low, high):
    return lambda: torch.randint(low, high, (30, 5))


# kind → (module, old inputs, new inputs)
KINDS = {
    "Linear": (lambda: nn.Linear(8, 6), pairs(8, axis=1), lambda: torch.randn(30, 8)),
    "Linear on sequences": (lambda: nn.Linear(8, 6), pairs(4, 8, axis=2), lambda: torch.randn(30, 4, 8)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1, groups=2), pairs(4, 9, axis=1), lambda: torch.randn(30, 4, 9)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2), pairs(4, 6, 6, axis=1), lambda: torch.randn(30, 4, 6, 6)),
    "Conv3d": (lambda: nn.Conv3d(4, 4, 2, dilation=2), pairs(4, 4, 4, 4, axis=1), lambda: torch.randn(30, 4, 4, 4, 4)),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
        pairs(4, 4, 4, axis=1),
        lambda: torch.randn(30, 4, 4, 4),
    ),
    "MultiheadAttention": (Attention, pairs(4, 8, axis=2), lambda: torch.randn(30, 4, 8)),
    "Conv1D of transformers": (lambda: Conv1D(6, 8), pairs(4, 8, axis=2), lambda: torch.randn(30, 4, 8)),
    "Embedding": (lambda: nn.Embedding(12, 6), tokens(0, 6), tokens(4, 12)),
}
OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "weight decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "SAM": lambda p: SAM(p, torch.optim.SGD, rho=0.05, lr=0.05, momentum=0.9),
}
PRECISIONS = {torch.float32: 1e-5, torch.float64: 1e-5, torch.bfloat16: 1e-2}


def exactly_null(moment):
    """U and M: the directions that old inputs never had, and the others."""
    spectrum = moment.spectrum()
    count = int((spectrum.singular_values > 1e-6 * spectrum.singular_values[0]).sum())
    return spectrum.directions[:, count:], spectrum.directions[:, :count]


def learn(kind, form, optimizer, dtype):
    """How far old outputs moved and how far new ones did, each as a share of the largest old output."""
    torch.manual_seed(0)
    make, make_old, make_new = KINDS[kind]
    model = nn.Sequential(make()).to(dtype)
    old, new = (x.to(dtype) if x.is_floating_point() else x for x in (make_old(), make_new()))
    before, before_on_new = outputs(model, old), outputs(model, new)
    spaces = {name: exactly_null(moment) for name, moment in nesskit.collect_moments(model, [old]).items()}
    if form == "factored":
        nesskit.adapt(model, {name: U for name, (U, _) in spaces.items()})
    else:
        nesskit.adapt(model, {}, {name: M for name, (_, M) in spaces.items()})
    optimizer = OPTIMIZERS[optimizer]([p for p in model.parameters() if p.requires_grad])
    for _ in range(STEPS):

        def closure():
            optimizer.zero_grad()
            loss = (model(new) - 1).square().mean()
            loss.backward()
            return loss

        optimizer.step(closure)
    nesskit.merge(model)
    size = float(before.abs().max())
    moved = float((outputs(model, old) - before).abs().max()) / size
    return moved, float((outputs(model, new) - before_on_new).abs().max()) / size


@torch.no_grad()
def outputs(model, x):
    """What the model's function is, apart from round-off: half precision of the arithmetic would hide half of it."""
    exact = copy.deepcopy(model).double()
    return exact(x.double() if x.is_floating_point() else x)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("form", ["factored", "projected"])
@pytest.mark.parametrize("kind", KINDS)
def test_old_outputs_stay_and_new_ones_move(kind, form, optimizer, dtype):
    moved, learned = learn(kind, form, optimizer, dtype)
    assert moved <= PRECISIONS[dtype]
    assert learned > max(0.01, 5 * moved)


def table():
    """Markdown: the largest move of old outputs over both forms and all optimizers, and the smallest of new ones."""
    lines = [
        "| kind of layer | " + " | ".join(str(dtype).removeprefix("torch.") for dtype in PRECISIONS) + " |",
        "| --- |" + " --- |" * len(PRECISIONS),
    ]
    for kind in KINDS:
        cells = []
        for dtype in PRECISIONS:
            results = [learn(kind, form, name, dtype) for form in ("factored", "projected") for name in OPTIMIZERS]
            old, new = max(moved for moved, _ in results), min(learned for _, learned in results)
            cells.append(f"{old:.0e} (new: {new:.2f})")
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
