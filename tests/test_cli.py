"""The command line as a person or a script uses it."""

import contextlib
import csv
import json
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from nesskit.cli import main
from nesskit.experiments.benchmarks import BENCHMARKS

SHORT = ["--epochs", "1", "--network.widths", "16"]


@pytest.fixture
def nesskit(capsys):
    """Runs a command in this process, where it ends well: what it printed, as ``out`` and ``err``."""

    def run(*arguments):
        with contextlib.suppress(SystemExit):  # --help ends in one
            main(list(map(str, arguments)))
        return capsys.readouterr()

    return run


def unwrapped(text):
    """The words of a text that was broken into the lines of a box."""
    return " ".join(text.replace("│", " ").split())


def failing(capsys, *arguments):
    """What a person sees when a command fails in this process: the exit message and stderr."""
    with pytest.raises(SystemExit) as caught:
        main(list(map(str, arguments)))
    assert caught.value.code not in (0, None)
    output = capsys.readouterr()
    return f"{caught.value.code} {output.out} {output.err}"


def test_help_names_every_command(nesskit):
    text = nesskit("--help").out
    assert all(f"• {command}" in text for command in ("run", "compare", "sweep", "report", "list", "demo"))


def test_help_of_run_shows_the_settings_of_that_benchmark_and_method(nesskit):
    text = unwrapped(nesskit("run", "split-digits", "--method", "ness", "--help").out)
    from nesskit.experiments.configure import configure

    assert f"(default: {configure('split-digits').options.filter})" in text
    assert "--filter" not in nesskit("run", "split-digits", "--method", "finetune", "--help").out


def test_every_field_of_the_training_settings_is_a_flag(nesskit):
    import dataclasses

    from nesskit import TrainingSettings

    text = nesskit("run", "--help").out
    assert all(f"--{f.name.replace('_', '-')}" in text for f in dataclasses.fields(TrainingSettings))


def test_list_names_benchmarks_methods_and_filters(nesskit):
    text = nesskit("list").out
    assert all(name in text for name in (*BENCHMARKS, "ness", "finetune", "joint", "frobenius", "nuclear", "soft"))


def test_a_run_prints_plain_lines_and_json_last(tmp_path):
    """In a process of its own, where nobody has loaded what a notebook's kernel has."""
    command = [sys.executable, "-m", "nesskit", "run", "split-digits", *SHORT, "--runs", str(tmp_path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert set(summary) >= {"average_accuracy", "backward_transfer", "accuracy", "seconds", "run_dir"}
    assert len(summary["accuracy"]) == 5
    assert "task 5 of 5" in done.stderr
    assert "\r" not in done.stderr
    assert (Path(summary["run_dir"]) / "record.json").exists()


def test_the_same_command_goes_on_or_shows_the_run_and_says_so(nesskit, tmp_path):
    command = ["run", "split-digits", *SHORT, "--runs", tmp_path]
    assert "stopped after 2 tasks" in nesskit(*command, "--limit-tasks", 2).out
    assert "task 3 of 5" not in nesskit(*command, "--limit-tasks", 2).out
    assert "going on after 2 of 5 tasks" in nesskit(*command).out
    assert "finished before, nothing to compute" in nesskit(*command).out


def test_joint_training_on_fewer_tasks_is_a_run_of_its_own(nesskit, tmp_path):
    command = ["run", "split-digits", *SHORT, "--method", "joint", "--runs", tmp_path, "--json"]
    few, all_tasks = (json.loads(nesskit(*command, *extra).out) for extra in (["--limit-tasks", 2], []))
    assert few["run_dir"] != all_tasks["run_dir"]
    assert len(few["accuracy"]) == 2


def test_a_terminal_sees_a_progress_bar(tmp_path):
    """A real terminal (pty) on stderr."""
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    command = [sys.executable, "-m", "nesskit", "run", "split-digits", *SHORT, "--runs", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, text=True) as process:
        os.close(terminal)
        printed = process.stdout.read()
    shown = ""
    with contextlib.suppress(OSError):  # Linux reports the end of a closed terminal as an error
        while chunk := os.read(controller, 10_000):
            shown += chunk.decode(errors="replace")
    os.close(controller)
    assert "epoch" in shown
    assert "5/5" in shown
    assert "task 5 of 5" not in printed


def test_compare_writes_a_table_a_csv_and_a_report(nesskit, tmp_path):
    text = nesskit(
        "compare", "split-digits", "--methods", "finetune,ness", "--seeds", "1,2", "--epochs", 1, "--runs", tmp_path
    ).out
    assert "ACC - finetune" in text
    assert "±" in text
    rows = list(csv.DictReader((tmp_path / "split-digits" / "comparison" / "comparison.csv").open()))
    assert [(row["method"], row["seed"]) for row in rows] == [
        ("finetune", "1"), ("finetune", "2"), ("ness", "1"), ("ness", "2")
    ]  # fmt: skip
    runs = {json.loads(p.read_text())["config"]["seed"] for p in tmp_path.glob("split-digits/*/*/record.json")}
    assert runs == {1, 2}
    assert (tmp_path / "split-digits" / "comparison" / "report.html").stat().st_size > 10_000


def test_report_of_a_run(nesskit, tmp_path):
    summary = json.loads(nesskit("run", "split-digits", *SHORT, "--runs", tmp_path, "--json").out)
    nesskit("report", summary["run_dir"], "--output", tmp_path / "page.html")
    assert "split-digits" in (tmp_path / "page.html").read_text()


def test_sweep_marks_the_best_threshold_on_validation_data(nesskit, tmp_path):
    text = nesskit("sweep", "split-digits", "--grid", "0.01,0.3", "--seeds", "1", "--runs", tmp_path).out
    assert text.count(" best") == 1
    rows = list(csv.DictReader((tmp_path / "split-digits" / "sweep-frobenius.csv").open()))
    assert [row["filter"] for row in rows] == ["frobenius:0.01", "frobenius:0.3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "permuted-digit"], "unknown benchmark 'permuted-digit': did you mean 'permuted-digits'?"),
        (["run", "split-digits", "--method", "nes"], "unknown method 'nes': did you mean 'ness'?"),
        (["run", "split-digits", "--preset", "defualt"], "did you mean 'default'?"),
        (["run", "split-digits", "--filter", "nuclea:0.1"], "did you mean 'nuclear'?"),
        (["run", "split-digits", "--filter", "nuclear:0"], "eps must be a finite number above 0, got 0.0"),
        (["run", "split-digits", "--filter", "nuclear:-1"], "eps must be a finite number above 0"),
        (["run", "split-digits", "--filter", "nuclear"], "needs a value for eps, for example nuclear:0.01"),
        (["run", "split-digits", "--epochs", "0"], "epochs must be at least 1, got 0"),
        (["run", "split-digits", "--epoch", "3"], "--epochs"),
        (["run", "split-digits", "--lr-patience", "3"], "validation_share"),
        (["run", "split-digits", "--device", "gpu"], "use cpu, or auto"),
        (["run", "split-digits", "--limit-tasks", "0"], "--limit-tasks must be above 0"),
        (["compare", "split-digits", "--methods", "ness,ewcc"], "unknown method 'ewcc'"),
        (["compare", "split-digits", "--seeds", "one"], "seeds must be whole numbers"),
        (["sweep", "split-digits", "--grid", "1:2"], "neither low:high:count"),
        (["report", "nowhere"], "no run lies in nowhere"),
    ],
)
def test_a_mistake_is_answered_in_words_that_name_it(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    said = unwrapped(failing(capsys, *arguments))
    assert message in said
    assert "Traceback" not in said
    assert list(tmp_path.glob("runs/*/*/*/record.json")) == []


def test_a_warning_is_a_line_and_not_a_trace_of_code(nesskit, tmp_path):
    command = ["run", "split-digits", *SHORT, "--filter", "rank:0", "--runs", tmp_path, "--limit-tasks", "2"]
    said = nesskit(*command).err
    assert "nesskit: warning: task 2: rank:0 frees no direction in any layer" in said
    assert ".py" not in said


def test_fetch_says_that_the_digits_need_no_download(nesskit):
    assert "needs no download" in nesskit("fetch", "split-digits").out


def test_missing_data_is_answered_with_the_three_ways_to_get_it(tmp_path):
    """An empty mirror that lists the file: nothing is looked for on the internet, and nothing is made up."""
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  cifar-100-binary.tar.gz\n")
    environment = {**os.environ, "NESSKIT_MIRROR": str(tmp_path), "NESSKIT_CACHE": str(tmp_path / "cache")}
    for command in (["fetch", "split-cifar100"], ["run", "split-cifar100", "--runs", str(tmp_path / "runs")]):
        done = subprocess.run(
            [sys.executable, "-m", "nesskit", *command], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 1
        assert done.stderr.startswith("nesskit: split-cifar100 needs the file 'cifar-100-binary.tar.gz'")
        assert "Three ways to get it" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("arguments", ["list", "run permuted-digits --help"])
def test_a_reader_that_has_seen_enough_ends_a_command_quietly(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "nesskit", *arguments.split()]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
