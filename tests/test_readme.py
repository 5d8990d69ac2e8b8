"""The README holds what it says: its Python runs, its commands exist, its figures are those of the recorded results."""

import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from nesskit.experiments.remarks import preset_of
from nesskit.plots import display_name
from nesskit.report.results_table import published, split_whole
from nesskit.runs.comparison import Comparison, Estimate, count_text, size_text
from nesskit.runs.metrics import learning_accuracy
from nesskit.runs.results import load_results
from nesskit.settings import METHOD_SETTINGS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def in_a_folder_with_the_examples(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_examples_run(capsys):
    space = {}
    without_extra = find_spec("transformers") is None
    for block in blocks("python"):
        if not (without_extra and "minilm" in block):
            exec(block, space)
    printed = capsys.readouterr().out
    assert re.search(r"ACC 9\d\.\d %, BWT -[01]\.\d %", printed)
    assert re.search(r"\d+ of 128 directions are still free", printed)
    assert type(space["model"].backbone.layers[0]).__name__ == "Linear"  # merged again


def test_the_filter_is_the_one_among_the_examples():
    shown = next(block for block in blocks("python") if "class Steep" in block)
    assert shown in (ROOT / "examples" / "own_filter.py").read_text(encoding="utf-8")


def test_the_first_python_example_is_short():
    assert len([line for line in blocks("python")[0].splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize("command", re.findall(r"^nesskit (\S+)", "".join(blocks("sh")), re.MULTILINE))
def test_every_command_exists(command):
    from nesskit.cli import _commands

    assert command in _commands([])


def test_the_flags_of_the_run_commands_exist(capsys):
    from nesskit.cli import main

    for line in re.findall(r"^nesskit (run .*?)(?:  #|$)", "".join(blocks("sh")), re.MULTILINE):
        words = shlex.split(line)
        with pytest.raises(SystemExit) as caught:
            main([*words, "--help"])
        assert caught.value.code == 0
        shown = capsys.readouterr().out
        assert all(word in shown for word in words if word.startswith("--"))


def test_the_figures_are_those_of_the_recorded_runs():
    benchmarks = ("permuted-digits", "split-digits", "rotated-digits")
    recorded = [Comparison.of(load_results(name)).rows() for name in benchmarks]
    assert all(row.seeds == (0, 1, 2, 3, 4) for rows in recorded for row in rows)
    by_label = [{row.label: row for row in rows} for rows in recorded]
    for method in METHOD_SETTINGS:
        rows = [labelled[method] for labelled in by_label]
        cells = [f"{row.average_accuracy} / {row.backward_transfer}" for row in rows]
        cells += [count_text(rows[0].private_numbers.mean)]
        cells += [f"{rows[0].seconds.mean:.1f}", size_text(rows[0].memory.mean) if rows[0].memory.mean else "nothing"]
        assert f"| {display_name(method)} | {' | '.join(cells)} |" in README


def test_the_whole_runs_on_cifar100_are_those_recorded():
    whole, _ = split_whole(load_results("split-cifar100", profiles=False))
    runs = [run for run in whole if (run.config["method"], preset_of(run)) == ("ness", "nesskit-sgdm")]
    assert [run.config["seed"] for run in runs] == [1, 2, 3, 4, 37]
    (line,) = [line for line in published("split-cifar100") if line.label == "NESS, SGDm"]
    (acc, acc_std), (bwt, bwt_std) = line.accuracy, line.transfer
    accuracy = Estimate.of([run.average_accuracy for run in runs])
    transfer = Estimate.of([run.backward_transfer for run in runs])
    assert f"| published | {acc:.2f} ± {acc_std:.2f} | {bwt:.2f} ± {bwt_std:.2f} |" in README
    assert f"| nesskit | {accuracy} | {transfer} | `nesskit-sgdm` |" in README
    assert f"| {(accuracy.mean - acc) / acc_std:.1f} | {(transfer.mean - bwt) / bwt_std:.1f} | |" in README
    text = " ".join(README.split())
    assert f"{Estimate.of([run.seconds for run in runs]).mean:.0f} seconds each" in text
    learned = Estimate.of([learning_accuracy(run.accuracy) for run in runs]).mean
    assert f"{acc - 0.9 * bwt - learned:.2f} of the {acc - accuracy.mean:.2f} points" in text
    assert f"(± {((accuracy.std**2 + acc_std**2) / 5) ** 0.5:.2f})" in text
