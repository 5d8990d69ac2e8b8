"""What must hold on a GPU: skipped without one. The study on a GPU checks the same, on machines without pytest."""

import pytest
import torch

from studies.gpu.essentials import ESSENTIALS, checked

# On the CPU the rehearsal in test_gpu_study.py checks them as well.
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.every),
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("essential", ESSENTIALS, ids=lambda essential: essential.__name__)
def test_what_must_hold_on_a_gpu_holds(essential, device):
    found = essential(torch.device(device))
    assert found.holds, found


def test_an_essential_that_does_not_hold_or_raises_is_a_failure():
    def raises(device):
        raise RuntimeError("device-side assert")

    assert checked(raises, "cpu") == {
        "holds": False, "value": None, "limit": None, "what": "RuntimeError: device-side assert"
    }  # fmt: skip
