"""The study on a GPU, rehearsed on the CPU: one command, processes that are killed, and what is carried home."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch

from nesskit.errors import NesskitError, TrainingError
from nesskit.runs.folder import RunFolder, load_run
from nesskit.runs.record import Run
from nesskit.runs.results import record_run
from nesskit.training.graphs import SWITCH
from studies.gpu import packing, training
from studies.gpu.__main__ import main
from studies.gpu.essentials import ESSENTIALS
from studies.gpu.plan import TINY, WHOLE, folders
from studies.gpu.study import Study
from studies.gpu.words import as_markdown

ROOT = Path(__file__).parent.parent
NEEDED = ("torch", "numpy", "scikit-learn", "tqdm", "filelock")
# Python imports it when it starts, in every process: what is installed here but not needed is not found.
BARE = """
import sys

class Bare:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in MISSING else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Bare(finder) for finder in sys.meta_path]
"""


def missing_modules():
    """All modules that are installed, but for those of what the command may need, and of what that needs itself."""
    wanted, known = list(NEEDED), set()
    while wanted:
        name = wanted.pop().lower().replace("_", "-")
        if name not in known:
            known.add(name)
            with contextlib.suppress(metadata.PackageNotFoundError):  # needed on other machines only
                lines = [line for line in metadata.requires(name) or () if "extra ==" not in line]
                wanted += [re.match(r"[\w.-]+", line)[0] for line in lines]
    homes = metadata.packages_distributions()
    needed = {module for module, names in homes.items() if {n.lower().replace("_", "-") for n in names} & known}
    return homes.keys() - needed - {"nesskit"}


@pytest.fixture(autouse=True)
def _signals():
    """The command listens to SIGTERM; afterwards that is as before."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """The environment of a machine that has nothing but what the command needs."""
    folder = tmp_path_factory.mktemp("bare")
    missing = missing_modules()
    assert {"matplotlib", "pandas", "pooch", "tyro", "tabulate", "ipywidgets"} <= missing
    (folder / "sitecustomize.py").write_text(f"MISSING = {missing!r}\n{BARE}")
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def start(environment, *arguments):
    command = [sys.executable, "-m", "studies.gpu", "--tiny", *map(str, arguments)]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **output)


def finish(process, status=0):
    said = process.communicate(timeout=240)[0]
    assert process.returncode == status, said
    return said


@pytest.fixture(scope="module")
def whole(bare, tmp_path_factory):
    """The folder of a whole rehearsal."""
    folder = tmp_path_factory.mktemp("whole") / "results"
    said = finish(start(bare, "--minutes", 4, "--rows", "ness", "unknown", "--output", folder))
    assert "all done; what to bring home lies in" in said
    return folder


def summary(folder):
    return json.loads((folder / "bring-home" / "summary.json").read_text())


def results(folder, label):
    """What every seed of a row came to."""
    (row,) = (row for row in summary(folder)["rows"] if row["label"] == label)
    return {seed: run.get("average_accuracy") for seed, run in row["seeds"].items()}


def test_a_machine_with_nothing_else_does_it_all(whole):
    found = summary(whole)
    assert {name: item["holds"] for name, item in found["essentials"].items()} == {e.__name__: True for e in ESSENTIALS}
    assert {m: t["eager"] > 0 and "error" not in t for m, t in found["step_times"].items()} == dict.fromkeys(
        TINY.step_methods, True
    )
    ness, unknown, finetune = found["rows"]
    assert "unknown method 'no-such-method'" in unknown["skipped"]
    assert {run["status"] for run in finetune["seeds"].values()} == {"not begun"}
    assert {run["status"] for run in ness["seeds"].values()} == {"finished"}
    values = [run["average_accuracy"] for run in ness["seeds"].values()]
    expected = {"mean": np.mean(values), "std": np.std(values, ddof=1), "count": 2}
    assert ness["average_accuracy"] == pytest.approx(expected)


def test_what_is_brought_home_is_small_and_can_be_recorded(whole, tmp_path):
    home = whole / "bring-home"
    files = sorted(home.iterdir())
    assert [path.name for path in files] == ["runs-1.tar.gz", "summary.json", "summary.md"]
    with tarfile.open(files[0]) as archive:
        assert {Path(name).name for name in archive.getnames()} == {"record.json", "events.jsonl", "profiles.npz"}
        archive.extractall(tmp_path / "runs", filter="data")
    for folder in (tmp_path / "runs").glob("*/*/*"):
        assert record_run(load_run(folder), tmp_path / "results").is_file()
    page = (home / "summary.md").read_text()
    assert page.count("PASS") == len(ESSENTIALS)
    assert "| ness | ness | default | 1, 2 |" in page
    assert "| seed 1 not begun; seed 2 not begun |" in page


def test_what_was_brought_home_can_be_gone_on_with(whole, tmp_path):
    home = shutil.copytree(whole / "bring-home", tmp_path / "home")
    study = Study.continued(home, tmp_path / "again", TINY)
    assert study.essentials == summary(whole)["essentials"]
    assert [study.is_done(row) for row in TINY.rows if row.label != "unknown"] == [True, False]


def begun(folder, process):
    """Wait until a run has been begun in ``folder``."""
    deadline = time.monotonic() + 120
    while not list(folder.glob("runs/*/*/*/record.json")):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.every
def test_a_study_that_was_killed_goes_on_and_ends_the_same(whole, tmp_path):
    folder = tmp_path / "results"
    arguments = ["--parts", "rows", "--rows", "ness", "--processes", "1"]
    process = start(None, *arguments, "--output", folder)
    begun(folder, process)
    process.kill()  # neither it nor its processes can do anything about it
    finish(process, -signal.SIGKILL)
    assert summary(folder)["sessions"][0]["ended"] == "killed"
    main(["--tiny", *arguments, "--continue", str(folder)])
    assert results(folder, "ness") == results(whole, "ness")
    assert [session["ended"] for session in summary(folder)["sessions"]] == ["killed", "all done"]


@pytest.mark.every
def test_a_study_that_is_ended_stops_its_runs_and_packs_them(tmp_path):
    folder = tmp_path / "results"
    process = start(None, "--parts", "rows", "--rows", "finetune", "--keep-checkpoints", "--output", folder)
    begun(folder, process)
    process.terminate()
    assert "interrupted; what to bring home lies in" in finish(process, 130)
    assert summary(folder)["sessions"][0]["ended"] == "interrupted"
    statuses = {run["status"] for run in summary(folder)["rows"][2]["seeds"].values()}
    assert statuses <= {"stopped", "finished", "not begun"}
    assert (folder / "bring-home" / "runs-1.tar.gz").is_file()


def refused(*arguments):
    """The one sentence with which the command ends."""
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments)])
    assert isinstance(caught.value.code, str)
    assert "\n" not in caught.value.code
    return caught.value.code


def test_without_a_gpu_it_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "finds no GPU here: use a machine that has one" in refused("--output", tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_a_gpu_whose_memory_is_taken_is_one_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(5.5 * 2**30), 80 * 2**30))
    assert training.side_by_side(5, 2.0, torch.device("cuda")) == 2
    with pytest.raises(NesskitError, match=r"5\.5 of 80\.0 GiB of the GPU's memory are free, and a run needs about 6"):
        training.side_by_side(5, 6.0, torch.device("cuda"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes", "0"], "--minutes must be above 0.3"),
        (["--minutes", "nan"], "--minutes must be above 0.3"),
        (["--rows", "nes"], "unknown row 'nes': did you mean 'ness'"),
        (["--continue", "nowhere"], "nowhere holds no study: leave --continue out to begin one"),
        (["--data", "nowhere"], "--data nowhere is no folder"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_writes_nothing(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in refused("--tiny", *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "is of format 99, and this nesskit goes on with 1"),
        ({"plan": "whole"}, "is of a study of the plan 'whole': go on with it without --tiny"),
        (None, "is damaged"),
    ],
)
def test_another_study_is_left_as_it_is(change, message, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "results")
    path = folder / "bring-home" / "summary.json"
    path.write_text(json.dumps(summary(folder) | change) if change else path.read_text()[:100])
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert message in refused("--tiny", "--continue", folder)
    assert "holds something already: go on with --continue" in refused("--tiny", "--output", folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_step_that_cannot_be_recorded_is_taken_one_operation_at_a_time(monkeypatch):
    tried = []

    def execute(*_):
        tried.append(os.environ[SWITCH])
        if len(tried) == 1:
            raise TrainingError(f"cannot be recorded as a CUDA graph: {SWITCH}=off goes on")

    monkeypatch.setenv(SWITCH, "on")
    monkeypatch.setattr(training, "execute", execute)
    training._run(TINY.settings(TINY.rows[0])[0], "runs", "cuda", time.time() + 60)
    assert tried == ["on", "off"]


def finished_run(settings, accuracy, transfer):
    """A run with these results, as if it had been learned."""
    run = Run.new(settings.to_dict(), {"device": "cuda"}, {}, [f"task {number}" for number in range(10)])
    run.accuracy = np.where(np.tri(10) > 0, accuracy, np.nan)
    np.fill_diagonal(run.accuracy[:-1], accuracy - transfer)
    run.status = "finished"
    return run


def test_a_row_stands_beside_the_published_one(tmp_path):
    """With the figures of five whole runs, whose mean and distance were worked out by hand."""
    study, row = Study(tmp_path, WHOLE), WHOLE.rows[0]
    measured = {1: (71.02, 0.04), 2: (71.46, -0.34), 3: (71.95, -0.53), 4: (71.82, -0.17), 37: (71.43, -0.19)}
    settings = WHOLE.settings(row)
    for each in settings:
        RunFolder(folders([each], study.runs)[each.seed]).write(finished_run(each, *measured[each.seed]))
    assert study.is_done(row)
    page = as_markdown(study.values())
    line = next(line for line in page.splitlines() if line.startswith("| ness-sgdm"))
    assert "| 1, 2, 3, 4, 37 | 71.54 ± 0.37 / -0.24 ± 0.21 | 72.46 ± 0.26 / 0.03 ± 0.40 | -3.6 / -0.7 |" in line
    assert "| NaN" not in page

    stopped = RunFolder(folders(settings, study.runs)[37])
    run = stopped.read()
    run.status, run.status_reason, run.accuracy[3:] = "stopped", "stopped after 9 minutes, as asked", np.nan
    stopped.write(run)
    line = next(line for line in as_markdown(study.values()).splitlines() if line.startswith("| ness-sgdm"))
    assert "| 1, 2, 3, 4 | 71.56" in line
    assert "seed 37 stopped, 3 of 10 tasks (stopped after 9 minutes, as asked)" in line


def a_run(folder, status, checkpoint):
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(f'{{"status": "{status}"}}')
    (folder / "events.jsonl").write_bytes(os.urandom(3000))
    (folder / "checkpoint.pt").write_bytes(os.urandom(checkpoint))


def test_what_is_too_large_for_a_file_goes_into_several(monkeypatch, tmp_path):
    monkeypatch.setattr(packing, "LARGEST", 20_000)
    runs, home = tmp_path / "runs", tmp_path / "home"
    home.mkdir()
    for seed in range(4):
        a_run(runs / "benchmark" / "method" / f"{seed}-abc", "stopped" if seed == 3 else "finished", 30_000)
    left_out = packing.pack(runs, home, checkpoints=True)
    sizes = {path.name: path.stat().st_size for path in home.iterdir()}
    assert len(sizes) == packing.MOST
    assert max(sizes.values()) <= 20_000
    assert [text.split(",")[0][-5:] for text in left_out] == ["1-abc", "2-abc"]
    packing.unpack(home, tmp_path / "again")
    for path in runs.rglob("*.*"):
        same = tmp_path / "again" / path.relative_to(runs)
        if path.name == "checkpoint.pt" and path.parent.name in ("1-abc", "2-abc"):
            assert not same.exists()
        else:
            assert same.read_bytes() == path.read_bytes()

    packing.pack(runs, home)
    assert not list(home.glob("checkpoints*"))
    (home / "runs-1.tar.gz").write_bytes((home / "runs-1.tar.gz").read_bytes()[:500])
    with pytest.raises(NesskitError, match=r"an archive in .* is damaged"):
        packing.unpack(home, tmp_path / "third")
    assert not (tmp_path / "third").exists()
