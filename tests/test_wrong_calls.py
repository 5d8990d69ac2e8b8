"""Wrong calls, on the command line and in Python: one sentence that names the thing, and nothing written."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import nesskit
from nesskit import Examples, Limits, Task, TaskModel, TaskStream, TrainingSettings
from nesskit.cli import main
from nesskit.errors import NesskitError

COMMANDS = """
run
run nope
run nope.py:stream
run {file}:stream
run split-digits extra
run split-digits --method nes
run split-digits --method nope.py:X
run split-digits --preset defualt
run split-digits --seed -1
run split-digits --seed 99999999999999999999999
run split-digits --seed 1.5
run split-digits --lr
run split-digits --lr 0
run split-digits --lr one
run split-digits --lr 1e300
run split-digits --batch-size 0
run split-digits --batch-size 1e30
run split-digits --batch-size 10000000000000000000000
run split-digits --evaluation-batch-size 0
run split-digits --epochs 1e9
run split-digits --momentum nan
run split-digits --momentum 1
run split-digits --weight-decay inf
run split-digits --lr-factor 2
run split-digits --lr-patience 3
run split-digits --sam-rho 0
run split-digits --optimizer adamw
run split-digits --precision float16
run split-digits --network.name foo
run split-digits --network.name resnet18
run split-digits --network.name alexnet
run split-digits --network.widths
run split-digits --network.widths 0
run split-digits --network.widths 99999999999
run split-digits --runs ''
run split-digits --runs /dev/null/x
run split-digits --runs {file}
run split-digits --device cuda:7
run split-digits --device ''
run split-digits --limit-tasks 0
run split-digits --limit-tasks -1
run split-digits --max-minutes nan
run split-digits --max-minutes -1
run split-digits --max-minutes 0
run split-digits --filter ''
run split-digits --filter :
run split-digits --filter nuclear
run split-digits --filter nuclear:-1
run split-digits --filter frobenius:nan
run split-digits --filter rank:-1
run split-digits --filter rank:99999
run split-digits --validation-share 1
run split-digits --validation-share -0.1
compare split-digits --methods '' --seeds 0
compare split-digits --methods ness,ewcc --seeds 0
compare split-digits --seeds ''
compare split-digits --seeds ,
compare split-digits --seeds one
compare split-digits --seeds -1
compare split-digits --seeds 99999999999999999999999999
compare split-digits --executor '' --seeds 0
compare split-digits --executor threads:2 --seeds 0
compare split-digits --executor processes:2x --seeds 0
compare split-digits --executor processes:99999999999 --seeds 0
compare split-digits --executor dask:// --seeds 0
compare split-digits --executor dask://127.0.0.1:9 --seeds 0
sweep split-digits --grid 0.1:1:99999999999 --seeds 0
sweep split-digits --grid '' --seeds 0
sweep split-digits --grid 1:0.1:3 --seeds 0
sweep split-digits --grid 0.1:1:1 --seeds 0
sweep split-digits --grid nan,0.1 --seeds 0
sweep split-digits --grid 0.1:inf:3 --seeds 0
sweep split-digits --grid 0.1,0.2 --seeds ''
sweep split-digits --grid 0.1,0.2 --filter nope
sweep split-digits --grid 0.1,0.2 --filter ''
sweep split-digits --grid 0.1,0.2 --validation-share 0
sweep split-digits --grid 0.1,0.2 --validation-share 2
sweep split-digits --grid 0.1,0.2 --output {folder}/x.png
table
table nope
table split-digits --results nowhere
table split-digits --results {file}
record
record nowhere
record {folder}
record {file}
report
report nowhere
report {folder}
report {file}
report ''
fetch
fetch nope
fetch ''
list extra
demo --runs /dev/null/x
nope
""".strip().splitlines()


@pytest.mark.parametrize("line", COMMANDS)
def test_a_wrong_command_is_one_sentence_and_writes_nothing(line, tmp_path, monkeypatch, capsys):
    given, here = tmp_path / "given", tmp_path / "here"
    (given / "folder").mkdir(parents=True)
    (given / "file").write_text("no run")
    here.mkdir()
    monkeypatch.chdir(here)
    places = {"file": str(given / "file"), "folder": str(given / "folder")}
    words = [word.format(**places) if word != "''" else "" for word in line.split()]
    with pytest.raises(SystemExit) as caught:
        main(words)
    printed = capsys.readouterr()
    code = caught.value.code
    said = f"{code if isinstance(code, str) else ''} {printed.out} {printed.err}"
    assert code not in (0, None)
    assert "Traceback" not in said
    assert said.strip()
    assert list(here.rglob("*")) == []
    assert (given / "file").read_text() == "no run"
    assert list((given / "folder").iterdir()) == []


def tasks(width=6, count=2, classes=2):
    parts = [Examples(torch.rand(12, width), torch.arange(12) % classes)] * 3
    return TaskStream("own", [Task(f"t{i}", tuple("ab"), *parts) for i in range(count)])


def model(width=6, heads=(2, 2)):
    return TaskModel(nn.Sequential(nn.Linear(width, 8), nn.ReLU()), 8, heads)


def other_width():
    return TaskStream("own", [*tasks(), *tasks(7, 1)])


def tokens():
    parts = [Examples(torch.randint(9, (12, 6)), torch.arange(12) % 2)] * 3
    return TaskStream("own", [Task("t", ("a", "b"), *parts)])


HUGE = 10**400
SHORT = TrainingSettings(epochs=1)
CALLS = {
    "benchmark": lambda: nesskit.run(None),
    "method": lambda: nesskit.run("split-digits", method=None),
    "method of a class": lambda: nesskit.run("split-digits", method=nesskit.NESS),
    "preset": lambda: nesskit.run("split-digits", preset=-1),
    "seed": lambda: nesskit.run("split-digits", seed="1"),
    "huge seed": lambda: nesskit.run("split-digits", seed=HUGE),
    "huge rate": lambda: nesskit.run("split-digits", lr=HUGE),
    "huge epochs": lambda: nesskit.run("split-digits", epochs=HUGE),
    "epochs true": lambda: nesskit.run("split-digits", epochs=True),
    "unknown setting": lambda: nesskit.run("split-digits", epoch=1),
    "widths": lambda: nesskit.run("split-digits", network_widths=("a",)),
    "width": lambda: nesskit.run("split-digits", network_widths=8),
    "filter": lambda: nesskit.run("split-digits", filter=0.1),
    "runs": lambda: nesskit.run("split-digits", runs=None),
    "empty runs": lambda: nesskit.run("split-digits", runs=""),
    "device": lambda: nesskit.run("split-digits", device="gpu"),
    "limits": lambda: nesskit.run("split-digits", limits=3, epochs=1),
    "no tasks": lambda: Limits(tasks=0),
    "no minutes": lambda: Limits(minutes=float("nan")),
    "no checkpoints": lambda: Limits(checkpoint_epochs=0),
    "compare methods": lambda: nesskit.compare("split-digits", [], [0]),
    "compare no seeds": lambda: nesskit.compare("split-digits", ["ness"], []),
    "compare seeds": lambda: nesskit.compare("split-digits", ["ness"], 3),
    "compare executor": lambda: nesskit.compare("split-digits", ["ness"], [0], executor="threads:2"),
    "sweep filters": lambda: nesskit.sweep("split-digits", [0.1], [0]),
    "sweep seeds": lambda: nesskit.sweep("split-digits", [nesskit.FrobeniusThreshold(0.1)], []),
    "stream": lambda: nesskit.load_stream("split-digit"),
    "stream of a number": lambda: nesskit.load_stream(3),
    "share": lambda: nesskit.load_stream("split-digits", validation_share=2),
    "stream's seed": lambda: nesskit.load_stream("split-digits", seed=-1),
    "run folder": lambda: nesskit.load_run("nowhere"),
    "no run folder": lambda: nesskit.load_run(None),
    "report of nothing": lambda: nesskit.write_report([], "page.html"),
    "fit a plain model": lambda: nesskit.fit(nn.Linear(6, 2), tasks(), "ness"),
    "fit fewer heads": lambda: nesskit.fit(model(heads=(2,)), tasks(), "ness"),
    "fit a list": lambda: nesskit.fit(model(), list(tasks()), "ness"),
    "fit no method": lambda: nesskit.fit(model(), tasks(), None),
    "fit an unknown method": lambda: nesskit.fit(model(), tasks(), "nes"),
    "fit with a dict": lambda: nesskit.fit(model(), tasks(), "ness", {"epochs": 1}),
    "fit a seed": lambda: nesskit.fit(model(), tasks(), "ness", SHORT, seed="x"),
    "fit a device": lambda: nesskit.fit(model(), tasks(), "ness", SHORT, device="gpu"),
    "fit other inputs": lambda: nesskit.fit(model(7), tasks(), "ness", SHORT, folder="run"),
    "fit another width later": lambda: nesskit.fit(model(heads=(2, 2, 2)), other_width(), "ness", SHORT, folder="run"),
    "fit other classes": lambda: nesskit.fit(model(heads=(3, 3)), tasks(), "ness", SHORT, folder="run"),
    "fit tokens": lambda: nesskit.fit(model(heads=(2,)), tokens(), "ness", SHORT, folder="run"),
    "fit an adapted model": lambda: adapted(),
}


def adapted():
    ours = model()
    nesskit.adapt(ours.backbone, {"0": torch.eye(6)[:, :2]})
    nesskit.fit(ours, tasks(), "ness", SHORT, folder="run")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_wrong_call_is_one_sentence_and_writes_nothing(call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NesskitError) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert list(tmp_path.rglob("*")) == []


UNGUARDED = """
import nesskit
nesskit.compare("split-digits", ["ness"], [0], runs="runs", executor="processes:2", progress=False, epochs=1)
"""


def test_a_script_without_a_guard_is_told_so_instead_of_starting_itself_again_and_again(tmp_path):
    (tmp_path / "script.py").write_text(UNGUARDED)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("nesskit.errors.SettingsError: every worker process runs")
    assert "if __name__ == '__main__'" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


def test_an_executor_may_be_named(tmp_path):
    comparison = nesskit.compare(
        "split-digits",
        "finetune",
        [0],
        runs=tmp_path,
        executor="processes:1",
        progress=False,
        epochs=1,
        network_widths=(8,),
    )
    assert [run.finished for run in comparison.runs] == [True]
