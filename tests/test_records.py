"""Runs on disk: whole after a kill, a full disk or a rival process, and never overwritten if they are not ours."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from nesskit import Run, fit, load_run, load_stream, run
from nesskit.errors import RunFolderError
from nesskit.runs.environment import current_commit
from nesskit.runs.folder import RunFolder

SETTINGS = {"method": "ness", "epochs": 4, "network_widths": (32, 24)}
PROGRAM = """
import sys, nesskit
nesskit.run("split-digits", runs=sys.argv[1], progress=False, limits=nesskit.Limits(checkpoint_epochs=1),
            method="ness", epochs=4, network_widths=(32, 24))
"""

HOLDER = """
import sys, time
from nesskit.runs.folder import RunFolder
with RunFolder(sys.argv[1]).locked():
    print("in", flush=True)
    time.sleep(60)
"""


def digits(folder, **options):
    return run("split-digits", runs=folder, progress=False, **{**SETTINGS, **options})


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return digits(tmp_path_factory.mktemp("runs"))


def test_a_run_lies_where_it_is_said_to(finished):
    assert finished.folder.parts[-3:-1] == ("split-digits", "ness")
    assert finished.folder.name.startswith("0-")
    assert {p.name for p in finished.folder.iterdir()} >= {
        "record.json",
        "profiles.npz",
        "checkpoint.pt",
        "events.jsonl",
    }


def test_a_record_holds_settings_environment_and_results(finished):
    record = json.loads((finished.folder / "record.json").read_text())
    assert record["config"]["training"]["epochs"] == 4
    assert record["config"]["options"]["filter"].startswith("frobenius:")
    assert set(record["environment"]) >= {"nesskit", "torch", "numpy", "python", "device", "threads", "commit"}
    assert len(next(iter(record["data"].values()))) == 64
    assert record["accuracy"][0][1] is None
    assert record["average_accuracy"] == pytest.approx(finished.average_accuracy)


def test_a_loaded_run_is_the_run(finished):
    loaded = load_run(finished.folder)
    assert np.array_equal(loaded.accuracy, finished.accuracy, equal_nan=True)
    assert loaded.history == finished.history
    for one, other in zip(loaded.profiles, finished.profiles, strict=True):
        assert (one.layer, one.task, one.rank) == (other.layer, other.task, other.rank)
        assert np.array_equal(one.sigma_squared, other.sigma_squared)


def test_the_same_command_again_computes_nothing(finished):
    before = {p.name: p.stat().st_mtime_ns for p in finished.folder.iterdir()}
    again = digits(finished.folder.parents[2])
    assert np.array_equal(again.accuracy, finished.accuracy, equal_nan=True)
    assert {p.name: p.stat().st_mtime_ns for p in finished.folder.iterdir()} == before


def test_other_settings_get_another_folder(finished):
    assert digits(finished.folder.parents[2], epochs=1).folder != finished.folder


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.2, 0.5])
def test_a_killed_run_goes_on_to_the_same_matrix(finished, tmp_path, delay):
    """A real process, killed at several moments after it began to write."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)])
    record = tmp_path / "split-digits" / "ness" / finished.folder.name / "record.json"
    deadline = time.monotonic() + 60
    while not record.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = digits(tmp_path)
    assert resumed.finished
    assert np.array_equal(resumed.accuracy, finished.accuracy, equal_nan=True)
    assert resumed.history == finished.history


def test_a_run_is_called_finished_only_when_it_is(tmp_path):
    """What is on disk at every event: a run that is killed after a task must not pass for a whole one."""
    from nesskit.experiments.running import configure, execute
    from nesskit.runs.events import TaskFinished

    seen = []

    def look(event):
        if isinstance(event, TaskFinished):
            (record,) = tmp_path.glob("*/*/*/record.json")
            values = json.loads(record.read_text())
            seen.append((values["status"], sum(row[0] is not None for row in values["accuracy"])))

    execute(configure("split-digits", **SETTINGS), tmp_path, listeners=[look])
    assert seen == [("running", tasks) for tasks in range(1, 6)]


def test_two_processes_do_not_write_one_run(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "in\n"
        with pytest.raises(RunFolderError, match="another process is working on the run"):
            fit_into(tmp_path / "run")
    finally:
        process.kill()
        process.wait()
    fit_into(tmp_path / "run")  # the lock of a dead process does not stay


def fit_into(folder):
    from nesskit import NetworkSettings, TrainingSettings, build_model

    stream = load_stream("split-digits").first(1)
    model = build_model(stream, NetworkSettings(widths=(8,)))
    return fit(model, stream, "finetune", TrainingSettings(epochs=1), folder=str(folder))


def test_a_full_disk_is_one_sentence_and_loses_nothing(tmp_path):
    """The system refuses files over 30 kB: the record fits, the checkpoint does not."""
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))\n"
        "from nesskit.cli import main; main(sys.argv[1:])"
    )
    command = ["run", "split-digits", "--epochs", "2", "--runs", str(tmp_path)]
    failed = subprocess.run([sys.executable, "-c", limited, *command], capture_output=True, text=True)
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert failed.stderr.strip().splitlines()[-1].startswith("nesskit: cannot write")
    folder = next(tmp_path.glob("split-digits/ness/*"))
    assert [p.name for p in folder.iterdir() if p.name.endswith(".part")] == []
    assert load_run(folder).status in ("failed", "running")
    # With room again, the same command finishes.
    done = subprocess.run([sys.executable, "-m", "nesskit", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert load_run(folder).finished


@pytest.mark.parametrize("content", ["{", "[]", '{"format": 1}', "\x00\x01", '{"format": 99}'])
def test_a_damaged_record_is_refused_and_untouched(tmp_path, content):
    folder = digits(tmp_path).folder
    (folder / "record.json").write_text(content)
    with pytest.raises(RunFolderError, match="left untouched"):
        digits(tmp_path)
    assert (folder / "record.json").read_text() == content


def test_a_damaged_checkpoint_is_refused_and_untouched(tmp_path):
    from nesskit import Limits

    folder = digits(tmp_path, limits=Limits(tasks=1)).folder
    half = (folder / "checkpoint.pt").read_bytes()[:1000]
    (folder / "checkpoint.pt").write_bytes(half)
    with pytest.raises(RunFolderError, match=r"checkpoint\.pt cannot be read"):
        digits(tmp_path)
    assert (folder / "checkpoint.pt").read_bytes() == half


def test_a_folder_of_somebody_else_is_refused(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(RunFolderError, match="it is no run of nesskit"):
        fit_into(folder)
    assert [p.name for p in folder.iterdir()] == ["thesis.tex"]
    with pytest.raises(RunFolderError, match="no run lies in"):
        load_run(tmp_path / "missing")


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RunFolderError):
        fit_into(tmp_path / "run")
    assert (tmp_path / "run").read_text() == "a file"


def test_a_record_of_an_older_commit_says_so(tmp_path):
    folder = digits(tmp_path).folder
    record = json.loads((folder / "record.json").read_text())
    record["environment"]["commit"] = "0123456789ab"
    (folder / "record.json").write_text(json.dumps(record))
    command = [sys.executable, "-m", "nesskit", "run", "split-digits", "--epochs", "4", "--network.widths", "32", "24"]
    shown = subprocess.run([*command, "--runs", str(tmp_path)], capture_output=True, text=True)
    assert "finished before" in shown.stdout
    assert f"recorded at commit 0123456789ab, this is {current_commit()}" in shown.stdout


def test_a_record_carries_no_name_of_the_machine(finished):
    text = (finished.folder / "record.json").read_text()
    assert os.uname().nodename not in text or len(os.uname().nodename) < 4
    assert str(finished.folder.parents[2]) not in text


def test_the_summary_is_json_for_machines(finished):
    summary = json.loads(json.dumps(finished.summary(), allow_nan=False))
    assert set(summary) >= {"average_accuracy", "backward_transfer", "accuracy", "seconds", "run_dir"}
    joint = Run.new({}, {}, {}, ["a", "b"])
    joint.accuracy[-1] = [90, 80]
    assert joint.summary()["average_accuracy"] == 85
    assert joint.summary()["backward_transfer"] is None


def test_a_reader_waits_for_no_lock(finished):
    with RunFolder(finished.folder).locked():
        assert load_run(finished.folder).finished
