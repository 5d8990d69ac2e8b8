"""The stopwatch of speed/whole_run.py; what the run costs is measured by the script itself."""

import importlib.util
import time
from pathlib import Path

import pytest
import torch

from nesskit.spectra.spectrum import Spectrum


@pytest.fixture(scope="module")
def whole_run():
    path = Path(__file__).parents[1] / "speed" / "whole_run.py"
    spec = importlib.util.spec_from_file_location("whole_run", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_parts_inside_parts_count_for_themselves_and_all_add_up(whole_run, monkeypatch):
    clock = iter([0, 1, 3, 6, 10, 15])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    watch = whole_run.Stopwatch()
    inner = watch.timing("inner", lambda: "result")
    outer = watch.timing("outer", inner)
    assert outer() == "result"
    watch.stop()
    assert dict(watch.seconds) == {"rest": 1 + 5, "outer": 2 + 4, "inner": 3}


def test_what_is_timed_exists_works_and_is_given_back(whole_run):
    before = {place: getattr(*place) for places in whole_run.PARTS.values() for place in places}
    with whole_run.parts_timed() as watch:
        assert Spectrum.of(torch.eye(3)).singular_values.tolist() == [1, 1, 1]
    assert set(watch.seconds) == {"rest", "eigen"}
    assert {place: getattr(*place) for place in before} == before
