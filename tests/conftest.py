"""What several test files share: seeded randomness and convolutions with every option of the layer."""

import os

# One thread: the networks of the tests are too small to gain from two, and a busy second core would stall both.
# Set before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from torch import nn

CONVOLUTIONS = {
    "plain": {},
    "no bias": {"bias": False},
    "stride": {"stride": (2, 1)},
    "padding": {"padding": 1},
    "padding per axis": {"padding": (2, 0)},
    "same, even kernel": {"padding": "same"},
    "same, dilated": {"padding": "same", "dilation": (2, 3), "padding_mode": "circular"},
    "valid": {"padding": "valid"},
    "reflect": {"padding": (1, 2), "padding_mode": "reflect"},
    "replicate": {"padding": (2, 1), "padding_mode": "replicate"},
    "circular": {"padding": (1, 2), "padding_mode": "circular"},
    "dilation": {"dilation": (2, 1)},
    "groups": {"groups": 2},
    "depthwise": {"groups": 4, "out_channels": 8, "bias": False},
    "all": {"groups": 2, "stride": (1, 2), "padding": (2, 1), "dilation": (1, 2), "padding_mode": "reflect"},
    "unbatched": {"stride": 2, "groups": 2},
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=CONVOLUTIONS)
def convolution(request):
    """A float64 convolution with one set of options, and an input for it."""
    options = {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2)} | CONVOLUTIONS[request.param]
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64)
    return nn.Conv2d(**options, dtype=torch.float64), x[0] if request.param == "unbatched" else x
