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


# Test files that start processes, kernels or a browser, or train for many seconds: not in make test-quick.
SLOW = {
    *("browser", "course", "test_cli", "test_dist", "test_distributed", "test_executors", "test_explorer"),
    *("test_methods_contract", "test_monitor", "test_networks", "test_plots_notebook", "test_process", "test_readme"),
    *("test_records", "test_run_panel", "test_scale", "test_setup", "test_speed_bench", "test_speed_whole_run"),
    *("test_subspace", "test_sweeps", "test_userfiles", "test_cifar100", "test_step_projection"),
    *("test_state_between_runs", "test_run_identity", "test_layers_projected", "test_report", "test_gpu_study"),
    *("test_graphs", "test_protocol", "test_cuda", "test_encoder", "test_sentences", "test_site"),
}


# Files of few slow tests that share little: one by one to whichever worker is free.
ONE_BY_ONE = {
    *("test_run_panel.py", "test_executors.py", "test_process.py", "test_explorer.py", "test_distributed.py"),
    *("test_networks.py", "test_methods_contract.py", "test_userfiles.py", "test_readme.py", "test_setup.py"),
    *("test_graphs.py", "test_protocol.py"),
}


def together(test):
    """What is run on the worker that runs ``test``: its file, one notebook's exercises, or the test alone."""
    file, _, name = test.partition("::")
    if file.endswith("test_exercises.py"):
        return f"{file}::{name.partition('[')[2][:2]}"
    return test if file.rpartition("/")[2] in ONE_BY_ONE else file


def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return together(nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(items):
    for item in items:
        if SLOW & {item.path.stem, item.path.parent.name}:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=CONVOLUTIONS)
def convolution(request):
    """A float64 convolution with one set of options, and an input for it."""
    options = {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2)} | CONVOLUTIONS[request.param]
    x = torch.randn(3, 4, 7, 6, dtype=torch.float64)
    return nn.Conv2d(**options, dtype=torch.float64), x[0] if request.param == "unbatched" else x


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The folder with the site, built once."""
    from course.site import build

    folder = tmp_path_factory.mktemp("built") / "site"
    build(folder)
    return folder
