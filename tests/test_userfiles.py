"""Methods, filters and streams from a user's own file: ``path.py:Name`` wherever a name stands."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import nesskit
from nesskit import configure, load_stream
from nesskit.errors import SettingsError, UserFileError
from nesskit.experiments.running import execute, run_folder
from nesskit.methods import make_method
from nesskit.settings import RunSettings
from nesskit.spectra.filters import parse_filter
from nesskit.userfiles import checksum, parse_reference

ROOT = Path(__file__).parent.parent
EXAMPLES = ("examples/own_method.py", "examples/own_filter.py", "examples/own_stream.py")
METHOD, FILTER, STREAM = "own_method.py:Anchor", "own_filter.py:Steep:0.02", "own_stream.py:shifted_digits"
SHORT = {"epochs": 1, "network_widths": (8,)}


@pytest.fixture(autouse=True)
def where_the_examples_are(tmp_path, monkeypatch):
    """Copies of the examples in the current folder, which a test may change."""
    for name in EXAMPLES:
        (tmp_path / Path(name).name).write_bytes((ROOT / name).read_bytes())
    monkeypatch.chdir(tmp_path)


def change(path):
    Path(path).write_text(Path(path).read_text() + "\n# changed\n")


def command(*arguments):
    done = subprocess.run([sys.executable, "-m", "nesskit", *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_reference_is_told_from_a_name():
    assert parse_reference("ness") is None
    assert parse_reference("frobenius:0.03") is None
    assert parse_reference("my/file.py:Name") == ("my/file.py", "Name", ())
    assert parse_reference("my/file.py:Name:0.1:frobenius") == ("my/file.py", "Name", ("0.1", "frobenius"))


def test_a_filter_is_written_as_it_is_read():
    rule = parse_filter(FILTER)
    assert (rule.tau, rule.power) == (0.02, 6.0)
    assert str(rule) == "own_filter.py:Steep:0.02:6"
    assert parse_filter(str(rule)) == rule
    assert parse_filter("own_filter.py:Steep:0.02:2").power == 2.0  # a number beyond the first is a number too
    assert configure("split-digits", filter=FILTER).options.filter == rule


def test_the_command_line_takes_all_three_and_the_methods_settings_are_flags(tmp_path):
    files = [STREAM, "--method", METHOD, "--strength", "0.5", "--epochs", "1", "--network.widths", "8", "--json"]
    code, out, error = command("run", *files)
    assert code == 0, error
    summary = json.loads(out.splitlines()[-1])
    record = json.loads((Path(summary["run_dir"]) / "record.json").read_text())
    assert len(record["tasks"]) == 5
    assert record["config"]["options"] == {"strength": 0.5}
    assert record["config"]["files"] == {name: checksum(name) for name in ("own_method.py", "own_stream.py")}
    assert record["data"]["own_stream.py"] == checksum("own_stream.py")
    assert summary["run_dir"].startswith("runs/own_stream-shifted_digits/own_method-Anchor/0-")
    filtered = command("run", "split-digits", "--filter", FILTER, "--epochs", "1", "--network.widths", "8")
    assert filtered[0] == 0, filtered[2]


def test_python_takes_all_three():
    settings = configure(STREAM, METHOD, strength=0.5, **SHORT)
    run = nesskit.run(STREAM, method=METHOD, strength=0.5, progress=False, **SHORT)
    assert run.finished
    assert run.config == settings.to_dict()
    assert nesskit.run(STREAM, filter=FILTER, progress=False, **SHORT).config["files"].keys() == {
        "own_filter.py",
        "own_stream.py",
    }
    assert nesskit.load_stream(STREAM).name == STREAM


def test_a_changed_file_begins_a_new_run_and_the_old_one_stays():
    first = nesskit.run("split-digits", method=METHOD, progress=False, **SHORT)
    assert nesskit.run("split-digits", method=METHOD, progress=False, **SHORT).folder == first.folder
    change("own_method.py")
    second = nesskit.run("split-digits", method=METHOD, progress=False, **SHORT)
    assert second.folder != first.folder
    assert nesskit.load_run(first.folder).config["files"] != nesskit.load_run(second.folder).config["files"]


@pytest.mark.parametrize("changes", [{"method": METHOD}, {"filter": FILTER}])
def test_settings_of_a_file_that_has_changed_are_refused(changes):
    settings = configure("split-digits", **changes)
    values = json.loads(json.dumps(settings.to_dict()))
    assert RunSettings.from_dict(values) == settings
    path = next(iter(settings.files))
    change(path)
    with pytest.raises(UserFileError, match=f"{path} has changed since"):
        RunSettings.from_dict(values)


def test_a_change_is_executed_in_the_same_process():
    assert make_method(METHOD).settings.strength == 0.05
    path = Path("own_method.py")
    path.write_text(path.read_text().replace("strength: float = 0.05", "strength: float = 7.0"))
    assert make_method(METHOD).settings.strength == 7.0


def test_settings_reach_a_process_that_has_not_loaded_the_file():
    """What an executor sends is plain values; the class of the settings is found there again."""
    settings = configure(STREAM, METHOD, strength=0.5)
    code = "import pickle, sys; s = pickle.load(sys.stdin.buffer); print(type(s.options).__name__, s.options.strength)"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(settings), capture_output=True, check=True)
    assert done.stdout.decode().split() == ["AnchorSettings", "0.5"]


def test_a_child_process_takes_them_alike():
    from nesskit.widgets.process import RunProcess

    settings = configure(STREAM, METHOD, **SHORT)
    process = RunProcess(settings, device="cpu")
    process.wait(120)
    assert nesskit.load_run(run_folder(settings)).finished
    assert execute(settings, device="cpu").folder == run_folder(settings)


def test_ordinary_runs_say_nothing_of_files():
    assert "files" not in configure("split-digits").to_dict()


BROKEN = "import nesskit\nthis is no Python\n"
FAILING = "import a_module_that_nobody_has\n"
OTHERS = """
import nesskit
class NoMethod: ...
class NoDataclass(nesskit.Filter): ...
class Unfinished(nesskit.Method):
    settings_type = int
def one_argument(seed): ...
def no_stream(seed, validation_share):
    return [1, 2]
number = 3
"""


@pytest.mark.parametrize(
    ("use", "text", "message"),
    [
        (make_method, "missing.py:Name", "missing.py cannot be read: No such file"),
        (make_method, "own_method.py", "'own_method.py' should say what to take from the file, as path.py:Name"),
        (make_method, "own_method.py:Ankor", "own_method.py has no 'Ankor'"),
        (make_method, "broken.py:Name", "broken.py fails to import: SyntaxError"),
        (make_method, "failing.py:Name", "failing.py fails to import: ModuleNotFoundError: No module named 'a_module"),
        (make_method, "others.py:NoMethod", "'NoMethod' in others.py is no method: it must be a class derived from"),
        (make_method, "others.py:Unfinished", "'Unfinished' in others.py is no method"),
        (make_method, "own_filter.py:Steep", "'Steep' in own_filter.py is no method"),
        (parse_filter, "others.py:number", "'number' in others.py is no filter: it must be a dataclass derived from"),
        (parse_filter, "others.py:NoDataclass", "'NoDataclass' in others.py is no filter"),
        (parse_filter, "own_filter.py:Steep", "needs a value for tau, for example own_filter.py:Steep:0.01"),
        (parse_filter, "own_filter.py:Steep:a", "'a' is not a number; write for example own_filter.py:Steep:0.01"),
        (parse_filter, "own_filter.py:Steep:1:2:3", "has too many values"),
        (load_stream, "others.py:one_argument", "'one_argument' in others.py is no stream: it must be a function of"),
        (load_stream, "own_filter.py:Steep", "'Steep' in own_filter.py is no stream"),
        (load_stream, "others.py:no_stream", "others.py:no_stream must return a TaskStream, but returned a list"),
        (configure, "others.py:number", "'number' in others.py is no stream"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(use, text, message):
    for name, source in (("broken.py", BROKEN), ("failing.py", FAILING), ("others.py", OTHERS)):
        Path(name).write_text(source)
    with pytest.raises((UserFileError, SettingsError)) as caught:
        use(text)
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_the_command_line_prints_that_sentence():
    code, _, error = command("run", "split-digits", "--method", "own_method.py:Ankor")
    assert code == 1
    assert error.strip() == "nesskit: own_method.py has no 'Ankor'"


def test_help_loads_neither_torch_nor_any_file():
    code = "import sys; sys.argv = ['nesskit', '--help']\ntry:\n  from nesskit.cli import main; main()\n"
    code += "except SystemExit: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
