"""Many runs at once: a pool of processes, a real Dask cluster, and runs that fail beside others."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas
import pytest

import nesskit
from nesskit.errors import NesskitError, SettingsError
from nesskit.experiments.configure import configure
from nesskit.experiments.executors import open_executor
from nesskit.experiments.running import execute_all
from nesskit.runs.comparison import Comparison
from nesskit.settings import METHOD_SETTINGS

SHORT = {"epochs": 2, "network_widths": (16,)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What runs one after another in this process come to."""
    return nesskit.compare(
        "split-digits", ["finetune", "ness"], [0, 1], runs=tmp_path_factory.mktemp("runs"), progress=False, **SHORT
    )


def matrices(comparison):
    return {(label, s): run.accuracy for label, runs in comparison.groups.items() for s, run in runs.items()}


def assert_equal(one, other):
    ours, theirs = matrices(one), matrices(other)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[key], theirs[key], equal_nan=True) for key in ours)


def test_processes_give_the_same_numbers(alone, tmp_path):
    with open_executor("processes:2") as executor:
        beside = nesskit.compare(
            "split-digits", ["finetune", "ness"], [0, 1], runs=tmp_path, executor=executor, **SHORT
        )
    assert_equal(beside, alone)
    assert len(list(tmp_path.glob("split-digits/*/*/record.json"))) == 4


@pytest.fixture(scope="module")
def scheduler(tmp_path_factory):
    """host:port of a real scheduler with two workers, in processes of their own."""
    pytest.importorskip("distributed", reason="Dask is not installed: pip install 'nesskit[cluster]'")
    folder = tmp_path_factory.mktemp("dask")
    file, log = folder / "scheduler.json", (folder / "log").open("w")
    quiet = {"stdout": log, "stderr": log, "cwd": folder}
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", "--nthreads", "2", "--no-dashboard"]
    processes = [subprocess.Popen([*scheduler, "--no-dashboard", "--scheduler-file", file], **quiet)]
    try:
        for _ in range(2):
            processes.append(subprocess.Popen([*worker, "--scheduler-file", file], **quiet))
        deadline = time.monotonic() + 60
        while not file.exists() or not file.read_text():
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield json.loads(file.read_text())["address"].removeprefix("tcp://")
    finally:
        for process in reversed(processes):
            process.send_signal(signal.SIGINT)
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        log.close()


@pytest.mark.every
def test_a_dask_cluster_gives_the_same_numbers(alone, scheduler, tmp_path):
    with open_executor(f"dask://{scheduler}") as executor:
        beside = nesskit.compare(
            "split-digits", ["finetune", "ness"], [0, 1], runs=tmp_path, executor=executor, **SHORT
        )
    assert_equal(beside, alone)


def test_a_failed_run_is_reported_and_the_others_go_on(tmp_path):
    good = [configure("split-digits", method, seed=0, **SHORT) for method in ("finetune", "gpm")]
    bad = configure("split-digits", "ness", seed=3, lr=1e30, **SHORT)
    with open_executor("processes:1") as executor:
        for runner in (None, executor):
            ended, failed = execute_all([good[0], bad, good[1]], tmp_path / str(runner), executor=runner)
            comparison = Comparison.of(ended, failed)
            assert [run.config["method"] for run in ended] == ["finetune", "gpm"]
            assert [(f.method, f.seed) for f in comparison.failures] == [("ness", 3)]
            assert "the loss is not finite" in comparison.failures[0].reason
            header, rows = comparison.table()
            assert rows[-1][header.index("seeds")] == "0, 1 failed"
            frame = comparison.to_frame()
            assert list(frame["status"])[:2] == ["finished", "finished"]
            assert frame["status"][2].startswith("failed: the loss is not finite")
            assert "ness" in nesskit.write_report(comparison, tmp_path / "page.html").read_text().lower()
            assert "NESS, seed 3, failed: the loss is not finite" in (tmp_path / "page.html").read_text()


def test_a_killed_worker_is_a_failure_too(tmp_path):
    with open_executor("processes:1") as executor:
        pid = executor.submit(os.getpid).result()
        order = executor.submit(time.sleep, 60)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Exception, match="terminated abruptly"):
            order.result(30)
        ended, failed = execute_all([configure("split-digits", **SHORT)], tmp_path, executor=executor)
    assert not ended
    assert "BrokenProcessPool" in failed[0].reason


def test_nothing_but_failures_is_an_error_that_says_the_first(tmp_path):
    bad = configure("split-digits", "ness", seed=3, lr=1e30, **SHORT)
    with pytest.raises(NesskitError, match=r"no run to compare: the first of 1 failures was: the loss is not finite"):
        Comparison.of(*execute_all([bad], tmp_path))


def test_the_frame_and_the_file_hold_every_run(alone, tmp_path):
    frame = alone.to_frame()
    assert list(zip(frame["method"], frame["seed"], strict=True)) == list(matrices(alone))
    assert frame["average_accuracy"].tolist() == [run.average_accuracy for run in alone.runs]
    assert (frame[frame["method"] == "ness"]["memory"] > 0).all()
    read = pandas.read_csv(alone.write_csv(tmp_path / "runs.csv"))
    pandas.testing.assert_frame_equal(read, frame)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("slurm:4", "no executor is called 'slurm:4': write processes:4"),
        ("processes:none", "write processes:4"),
        ("processes:0", "write processes:4"),
        ("dask://127.0.0.1:9", "no Dask scheduler answers at 127.0.0.1:9"),
    ],
)
def test_another_address_is_refused_in_one_sentence(address, message):
    with pytest.raises(SettingsError, match=message), open_executor(address):
        pass


@pytest.mark.every
def test_the_command_compares_all_methods_in_processes(tmp_path):
    command = ["compare", "split-digits", "--methods", "all", "--seeds", "0", "--epochs", "1", "--runs", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "nesskit", *command, "--executor", "processes:2"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    frame = pandas.read_csv(tmp_path / "split-digits" / "comparison" / "comparison.csv")
    assert sorted(frame["method"]) == sorted(METHOD_SETTINGS)
    assert all(f"{method}, seed 0: ACC" in done.stdout for method in METHOD_SETTINGS)
