"""Runs in child processes: started, followed, stopped and gone on with, through real processes and files."""

import os
import subprocess
import time

import numpy as np
import pytest

from nesskit import configure, load_run, run
from nesskit.errors import RunFolderError
from nesskit.widgets.process import ChildProcess, EventFollower, RunProcess

SHORT = {"epochs": 2, "network_widths": (16,)}


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_child_does_what_the_same_call_here_would(tmp_path):
    child = RunProcess(configure("split-digits", **SHORT), tmp_path / "child")
    child.wait(60)
    here = run("split-digits", runs=tmp_path / "here", progress=False, **SHORT)
    assert np.array_equal(load_run(child.folder).accuracy, here.accuracy, equal_nan=True)


def test_a_follower_sees_every_event_once(tmp_path):
    child = RunProcess(configure("split-digits", **SHORT), tmp_path)
    follower, events = EventFollower(child.folder), []
    while child.running:
        events += follower.poll()
        time.sleep(0.01)
    events += follower.poll()
    kinds = [event["event"] for event in events]
    assert kinds[0] == "RunStarted"
    assert kinds[-1] == "RunStopped"
    assert kinds.count("EpochFinished") == 10
    assert follower.poll() == []


def test_half_a_line_waits_for_its_other_half(tmp_path):
    follower = EventFollower(tmp_path)
    assert follower.poll() == []
    (tmp_path / "events.jsonl").write_text('{"event": "A"}\n{"eve')
    assert follower.poll() == [{"event": "A"}]
    with (tmp_path / "events.jsonl").open("a") as stream:
        stream.write('nt": "B"}\n')
    assert follower.poll() == [{"event": "B"}]


def test_a_stopped_child_is_gone_and_its_run_goes_on(tmp_path):
    settings = configure("permuted-digits", epochs=300)
    child = RunProcess(settings, tmp_path)
    follower, events = EventFollower(child.folder), []
    wait_for(lambda: events.extend(follower.poll()) or any(e["event"] == "EpochFinished" for e in events))
    child.stop()
    wait_for(lambda: not child.running)
    stopped = load_run(child.folder)
    assert (stopped.status, stopped.status_reason) == ("stopped", "stopped on request")
    assert len(stopped.history) > 0
    assert not (child.folder / "stop").exists()
    again = RunProcess(settings, tmp_path)
    wait_for(lambda: len(load_run(again.folder).history) >= len(stopped.history) and again.running)
    again.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(again.pid, 0)


def test_a_child_that_fails_says_why(tmp_path):
    settings = configure("split-digits", **SHORT)
    (tmp_path / "split-digits" / "ness").mkdir(parents=True)
    (tmp_path / "split-digits" / "ness" / f"0-{settings.hash}").write_text("a file in the way")
    child = RunProcess(settings, tmp_path)
    with pytest.raises(RunFolderError):
        child.wait(60)
    assert "no run of nesskit" in child.error


def test_a_follower_of_a_folder_without_a_run_waits(tmp_path):
    assert EventFollower(tmp_path / "nothing").poll() == []


def test_the_child_needs_no_shell(tmp_path):
    """A runs folder with spaces and quotes in its name."""
    child = RunProcess(configure("split-digits", **SHORT), tmp_path / "my 'runs'")
    child.wait(60)
    assert load_run(child.folder).finished
    assert isinstance(child._process, subprocess.Popen)


def test_a_child_that_says_more_than_a_pipe_holds_still_ends():
    """A download shows its progress on stderr, which nobody reads until the child has ended."""
    child = ChildProcess("import sys; sys.stderr.write('progress\\r' * 50_000); sys.exit('nesskit: at last')", None)
    with pytest.raises(RunFolderError, match="at last"):
        child.wait(30)
