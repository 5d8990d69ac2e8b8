"""Moments of a data-parallel run: two real processes, each with a share of the data, against one with all of it."""

import subprocess
import sys

import pytest
import torch

from nesskit import build_model, collect_moments, load_stream
from nesskit.spectra.moment import Moment

RANK = """
import sys
import torch
from nesskit import build_model, collect_moments, load_stream, merge_moments
from nesskit.errors import SpectrumError

rank, folder, case = int(sys.argv[1]), sys.argv[2], sys.argv[3]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
stream = load_stream("permuted-digits", seed=0)
model = build_model(stream, seed=0)
x = stream[0].normalise(stream[0].train.x)
share = (x[:300], x[300:])[rank]  # of unequal size
layers = ["layers.0"] if case == "other layers" and rank == 1 else None
moments = collect_moments(model.backbone, share.split(128), layers)
before = {name: moment.matrix.clone() for name, moment in moments.items()}
try:
    merged = merge_moments(moments)
except SpectrumError as error:
    print(error)
    sys.exit(3)
finally:
    torch.distributed.destroy_process_group()
assert all(torch.equal(moments[name].matrix, before[name]) for name in before)
torch.save({name: moment.state_dict() for name, moment in merged.items()}, f"{folder}/{rank}.pt")
"""


def run_ranks(folder, case):
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(folder), case], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        said = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], said


def test_two_ranks_with_unequal_shares_have_the_moments_of_one_process(tmp_path):
    codes, said = run_ranks(tmp_path, "equal")
    assert codes == [0, 0], said
    stream = load_stream("permuted-digits", seed=0)
    model = build_model(stream, seed=0)
    alone = collect_moments(model.backbone, [stream[0].normalise(stream[0].train.x)])
    for rank in (0, 1):
        merged = {n: Moment.from_state_dict(s) for n, s in torch.load(tmp_path / f"{rank}.pt").items()}
        assert list(merged) == list(alone)
        for name, moment in alone.items():
            assert merged[name].count == moment.count
            torch.testing.assert_close(merged[name].matrix, moment.matrix, rtol=1e-6, atol=1e-6)


@pytest.mark.every
def test_ranks_with_other_layers_are_told_on_every_rank(tmp_path):
    codes, said = run_ranks(tmp_path, "other layers")
    for rank in (0, 1):
        assert codes[rank] == 3
        assert "rank 1 has moments of other layers than rank 0" in said[rank]
