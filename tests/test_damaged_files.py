"""Every file that is read is verified, and every reader survives a torn line: a damaged run is one sentence."""

import json
import random
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch

import nesskit
from nesskit import Limits, load_run, write_report
from nesskit.errors import NesskitError, RunFolderError
from nesskit.runs.events import TaskStarted
from nesskit.runs.folder import RunFolder
from nesskit.runs.results import load_results, record_run
from nesskit.widgets.process import EventFollower

FLIPS = 120


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A run of two tasks out of five, with everything that a run leaves."""
    folder = tmp_path_factory.mktemp("runs")
    run = nesskit.run(
        "split-digits", runs=folder, progress=False, epochs=2, network_widths=(16,), limits=Limits(tasks=2)
    )
    return run.folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy to be damaged."""
    for path in original.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return RunFolder(tmp_path)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def same_profile(one, other):
    """Up to the digits of float32."""
    pairs = [(getattr(one, field.name), getattr(other, field.name)) for field in fields(other)]
    return all(np.allclose(a, b, rtol=1e-6) if isinstance(b, np.ndarray) else a == b for a, b in pairs)


def refused(read):
    """The one sentence with which a damaged file is refused."""
    with pytest.raises(RunFolderError) as caught:
        read()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_no_flipped_bit_gives_another_checkpoint(folder):
    path = folder.path / "checkpoint.pt"
    whole, content, rng = folder.read_checkpoint(), path.read_bytes(), random.Random(1)
    found = 0
    for _ in range(FLIPS):
        place = rng.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :])
        try:
            state = folder.read_checkpoint()
        except RunFolderError:
            found += 1
        else:
            assert same(whole, state)  # a byte that means nothing
    assert found > 0.9 * FLIPS


@pytest.mark.parametrize("keep", [0, 1, 100, -1, -100])
def test_a_checkpoint_that_was_cut_off_is_refused(folder, keep):
    path = folder.path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:keep])
    before = files(folder)
    assert "checkpoint.pt cannot be read" in refused(folder.read_checkpoint)
    assert files(folder) == before


@pytest.mark.parametrize("content", [torch.zeros(3), [1, 2], {"model": {}}, {"stages_done": 1}])
def test_a_file_of_torch_that_is_no_checkpoint_is_refused(folder, content):
    torch.save(content, folder.path / "checkpoint.pt")
    assert "checkpoint.pt is no checkpoint of a run: it has no" in refused(folder.read_checkpoint)


EDITS = {
    "status": ["done", "finished", 3, None],
    "status_reason": [None, 3],
    "config": [None, [], {}, {"method": "ness"}, {"method": 3, "seed": 0, "training": {"epochs": 1}}],
    "environment": [None, [], {"torch": []}],
    "data": [None, {"x": 3}],
    "tasks": [None, [], "abc", [1, 2, 3, 4, 5]],
    "accuracy": [None, 3, [], [[1.0]], [[999.0] * 5] * 5, [["a"] * 5] * 5, [[-1.0] * 5] * 5, [[True] * 5] * 5],
    "valid_accuracy": [None, [[50.0] * 5] * 4, [[10**400] * 5] * 5],
    "history": [None, {}, [3], [{}], [{"task": 0}]],
    "memory": [None, {"moments": -1}, {"moments": "large"}],
    "seconds": [None, -1, "long", 10**400],
    "average_accuracy": [12.3, "high"],
    "backward_transfer": [99.0],
    "format": [3, "two", None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in EDITS.items() for value in values])
def test_an_edited_record_is_refused_by_the_field(folder, name, value):
    path = folder.path / "record.json"
    record = json.loads(path.read_text())
    record[name] = value
    path.write_text(json.dumps(record))
    before = files(folder)
    if name == "format" and value != 3:
        folder.read()  # of no consequence for what is read
        return
    text = refused(folder.read)
    assert f"'{name}" in text or "format 3 is newer" in text or f"{name}" in text
    assert "left untouched" in text
    assert files(folder) == before


@pytest.mark.parametrize(
    "name", [name for name in EDITS if name not in ("average_accuracy", "backward_transfer", "format")]
)
def test_a_record_without_a_field_is_refused(folder, name):
    path = folder.path / "record.json"
    record = json.loads(path.read_text())
    del record[name]
    path.write_text(json.dumps(record))
    assert f"'{name}' is missing" in refused(folder.read)


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "3", "[]", "NaN", '{"format": Infinity}', "[" * 100_000, "\x00", '{"format": 1e999}', "{}"],
)
def test_what_is_no_record_is_refused(folder, text):
    (folder.path / "record.json").write_text(text)
    assert "its record" in refused(folder.read)


def test_an_epoch_of_the_history_is_checked(folder):
    path = folder.path / "record.json"
    record = json.loads(path.read_text())
    record["history"][1]["task"] = 7
    path.write_text(json.dumps(record))
    assert "'history[1].task' must be a number below 5, and is 7" in refused(folder.read)


@pytest.mark.parametrize("content", [b"", b"PK", b"no zip at all", "cut", "flipped"])
def test_damaged_profiles_are_refused(folder, content):
    path = folder.path / "profiles.npz"
    whole = path.read_bytes()
    if content == "cut":
        content = whole[: len(whole) // 2]
    elif content == "flipped":
        content = whole[:400] + bytes([whole[400] ^ 1]) + whole[401:]
    path.write_bytes(content)
    assert "its profiles.npz is damaged" in refused(folder.read)


def test_profiles_of_something_else_are_refused(folder):
    path = folder.path / "profiles.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    for others in ({"x": np.zeros(3)}, {"dimension": np.array([3])}, {"0/layer": np.array("a")}):
        np.savez(path, **others)
        assert "its profiles.npz is damaged" in refused(folder.read)
    for name, value in (("sigma_squared", -1.0), ("sigma_squared", np.nan), ("rank", 1000)):
        np.savez(path, **{**arrays, name: np.full_like(arrays[name], value)})
        assert "its profiles.npz is damaged: the profile of layer 'layers.0'" in refused(folder.read)


@pytest.mark.parametrize("name", ["record.json", "checkpoint.pt", "profiles.npz"])
def test_a_folder_in_place_of_a_file_is_one_sentence(folder, name):
    (folder.path / name).unlink()
    (folder.path / name).mkdir()
    refused(folder.read_checkpoint if name == "checkpoint.pt" else folder.read)


@pytest.mark.parametrize("path", ["x" * 300, "a/" * 3000 + "b"])
def test_a_path_that_the_system_refuses_is_one_sentence(path, tmp_path):
    refused(lambda: load_run(path))
    with pytest.raises(NesskitError):
        nesskit.run("split-digits", runs=tmp_path / path, progress=False, epochs=1, network_widths=(8,))
    assert list(tmp_path.iterdir()) == []


def test_a_recorded_result_is_checked_when_it_is_loaded(folder, tmp_path):
    results = tmp_path / "results"
    run = nesskit.run("split-digits", runs=tmp_path / "runs", progress=False, epochs=1, network_widths=(8,))
    run.environment["commit"] = "0123456789ab"
    path = record_run(run, results)
    assert len(load_results("split-digits", results)) == 1
    record = json.loads(path.read_text())
    for name, value in (("accuracy", [[999.0] * 5] * 5), ("history", {"task": "[0"}), ("history", 3), ("seconds", "x")):
        path.write_text(json.dumps({**record, name: value}))
        assert str(path) in refused(lambda: load_results("split-digits", results))
    path.write_text("[" * 100_000)
    assert "nested too deeply" in refused(lambda: load_results("split-digits", results))


def test_recorded_profiles_are_checked_when_they_are_loaded(tmp_path):
    run = nesskit.run("split-digits", runs=tmp_path / "runs", progress=False, epochs=1, network_widths=(8,))
    run.environment["commit"] = "0123456789ab"
    path = record_run(run, tmp_path / "results").with_suffix(".npz")
    whole, rng, found = path.read_bytes(), random.Random(0), 0
    for _ in range(FLIPS):
        place = rng.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        try:
            (loaded,) = load_results("split-digits", tmp_path / "results")
        except RunFolderError:
            found += 1
        else:
            assert all(map(same_profile, loaded.profiles, run.profiles))  # a byte that means nothing
    assert found > 0.5 * FLIPS
    for content in (b"", whole[: len(whole) // 2], b"PK"):
        path.write_bytes(content)
        assert str(path) in refused(lambda: load_results("split-digits", tmp_path / "results"))
    assert len(load_results("split-digits", tmp_path / "results", profiles=False)) == 1


def test_a_report_of_a_damaged_run_is_refused_and_nothing_written(folder, tmp_path):
    (folder.path / "record.json").write_text("{}")
    with pytest.raises(RunFolderError):
        write_report(load_run(folder.path), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


# ---- events


def test_a_torn_line_is_skipped_and_the_next_one_is_whole(folder):
    path = folder.path / "events.jsonl"
    follower = EventFollower(folder.path)
    before = len(follower.poll())
    with path.open("ab") as stream:
        stream.write(b'{"event": "EpochFin')  # killed here
    folder.append_event(TaskStarted(3, "next", 8))
    with path.open("ab") as stream:
        stream.write(b"\xff\xfe\n[3]\nnull\n")
    folder.append_event(TaskStarted(4, "after", 8))
    assert [event["name"] for event in follower.poll()] == ["next", "after"]
    assert len(EventFollower(folder.path).poll()) == before + 2


FULL = """
import resource, signal, sys
from nesskit.errors import RunFolderError
from nesskit.runs.events import TaskStarted
from nesskit.runs.folder import RunFolder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
folder = RunFolder(sys.argv[1])
try:
    for number in range(100):
        folder.append_event(TaskStarted(number, "a task with a name", 8))
except RunFolderError as error:
    print(error)
"""


def test_a_full_disk_leaves_no_half_line(tmp_path):
    """A limit on the size of files, beyond which a write ends short or fails, as on a disk that is full."""
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write {tmp_path / 'events.jsonl'}: ")
    content = (tmp_path / "events.jsonl").read_bytes()
    assert 0 < len(content) <= 1000
    assert content.endswith(b"}\n")
    RunFolder(tmp_path).append_event(TaskStarted(7, "after making room", 8))
    assert EventFollower(tmp_path).poll()[-1]["name"] == "after making room"


def test_what_a_killed_writer_left_is_cleared_by_the_next(folder):
    left = folder.path / ".checkpoint.pt.123.part"
    left.write_bytes(b"half")
    with folder.locked():
        assert not left.exists()


def test_profiles_of_an_older_version_are_read(folder):
    """Format 1: an array for each field of each profile."""
    profiles = folder.read().profiles
    arrays = {
        f"{number}/{field.name}": np.asarray(getattr(profile, field.name))
        for number, profile in enumerate(profiles)
        for field in fields(profile)
    }
    np.savez_compressed(folder.path / "profiles.npz", **arrays)
    assert len(profiles) > 0
    assert all(map(same_profile, folder.read().profiles, profiles))
