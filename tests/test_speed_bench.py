"""speed/bench.py: one line of JSON a call, whatever a topic does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TINY = """
def measure(quick=False):
    print("hello")
    return {"quick": quick, "ratio": 1.5}
"""
BENCH = Path(__file__).parents[1] / "speed" / "bench.py"


def bench(folder, topics, *more):
    command = [sys.executable, str(BENCH), "--folder", str(folder), "--topics", topics]
    command += ["--log", str(folder / "log.jsonl"), *more]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.every
def test_every_call_appends_a_line_with_machine_versions_commit_and_figures(tmp_path):
    (tmp_path / "tiny.py").write_text(TINY)
    for quick in ([], ["--quick"]):
        done = bench(tmp_path, "tiny", *quick)
        assert done.returncode == 0, done.stderr
        assert "hello" in done.stdout
    first, second = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert (first["quick"], second["quick"]) == (False, True)
    assert first["topics"]["tiny"]["figures"] == {"quick": False, "ratio": 1.5}
    assert first["topics"]["tiny"]["peak_bytes"] > 1e6
    assert first["machine"]["cores"] >= 1
    assert first["environment"]["torch"].startswith("2.")
    assert first["environment"]["commit"]
    assert str(Path.home()) not in json.dumps(first)


def test_a_topic_that_fails_is_in_the_line_and_the_others_go_on(tmp_path):
    (tmp_path / "broken.py").write_text("def measure(quick=False):\n    raise ValueError('no such thing')\n")
    (tmp_path / "tiny.py").write_text(TINY)
    done = bench(tmp_path, "broken,tiny")
    assert done.returncode == 1
    assert "failed: broken" in done.stdout
    topics = json.loads((tmp_path / "log.jsonl").read_text())["topics"]
    assert topics["broken"] == {"failed": "ValueError: no such thing"}
    assert topics["tiny"]["figures"]["ratio"] == 1.5


def test_an_unknown_topic_is_refused_before_anything_runs(tmp_path):
    done = bench(tmp_path, "nothing")
    assert done.returncode == 2
    assert "there is no topic 'nothing'" in done.stderr
    assert not (tmp_path / "log.jsonl").exists()
