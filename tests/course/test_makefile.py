"""What make says to pip, without running it."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = r"'\.\[\w+(,\w+)*\]'"


def commands(tmp_path, *arguments):
    """The lines that make would run in a checkout without an environment."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    # These tests may be run by make themselves: it would say which folder it enters, and hand its own flags on.
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    command = ["make", "-n", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def installs(lines):
    return [line for line in lines if " pip install " in line]


def test_torch_comes_first_and_everything_is_pinned(tmp_path):
    torch, rest = installs(commands(tmp_path, "setup", "TORCH_INDEX=https://wheels.example"))
    assert torch.endswith("--extra-index-url https://wheels.example torch")
    assert re.search(EXTRAS, rest)
    assert "extra-index" not in rest
    assert all("-c constraints.txt" in line for line in (torch, rest))


def test_menus_for_teachers_are_off_in_jupyterlab(tmp_path):
    (line,) = [line for line in commands(tmp_path, "setup") if "labextension" in line]
    binaries, command = line.split(" ", 1)
    assert binaries.endswith("/bin/jupyter")
    environment = {**os.environ, "JUPYTER_CONFIG_DIR": str(tmp_path / "config")}  # in place of this environment's own
    command = [sys.executable, "-m", "jupyter", *command.replace("sys_prefix", "user").split()]
    subprocess.run(command, env=environment, capture_output=True, check=True)
    command = [sys.executable, "-m", "jupyter", "labextension", "list"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    (nbgrader,) = re.findall(r"^ +@jupyter/nbgrader v.*$", done.stdout + done.stderr, re.MULTILINE)
    assert "disabled" in nbgrader
    assert "nbgrader" not in (ROOT / "course" / "student.md").read_text()  # it is not installed with the library alone


def test_a_wheelhouse_replaces_every_index(tmp_path):
    torch, rest = installs(commands(tmp_path, "setup", "WHEELHOUSE=my wheels", "TORCH_INDEX=https://wheels.example"))
    for line in (torch, rest):
        assert "--no-index --find-links 'my wheels'" in line
        assert "example" not in line


def test_a_wheelhouse_holds_what_setup_installs_and_builds_with(tmp_path):
    lines = commands(tmp_path, "wheelhouse", "TORCH_INDEX=https://w.example")
    torch, rest = [line for line in lines if " pip wheel " in line]
    assert torch.endswith("-w wheelhouse --extra-index-url https://w.example torch")
    assert "-w wheelhouse --find-links wheelhouse" in rest
    assert rest.endswith("'setuptools>=77'")
    (setup,) = [line for line in lines if " -e " in line]
    assert re.search(EXTRAS, rest)[0] == re.search(EXTRAS, setup)[0]


@pytest.mark.parametrize(("arguments", "folder"), [([], "'grades'"), (["GRADES=of may"], "'of may'")])
def test_grading_takes_folders_with_spaces(tmp_path, arguments, folder):
    lines = commands(tmp_path, "grade", "SUBMITTED=handed in", *arguments)
    assert lines[-1].endswith(f"-m course.grade --sandbox 'bubblewrap' 'handed in' {folder}")


def test_grading_without_a_sandbox_must_be_said(tmp_path):
    lines = commands(tmp_path, "grade", "SUBMITTED=in", "SANDBOX=none")
    assert lines[-1].endswith("-m course.grade --sandbox 'none' 'in' 'grades'")


@pytest.mark.parametrize(("arguments", "end"), [([], "'dist/student'"), (["SOLUTIONS=1"], "--solutions")])
def test_solutions_are_released_only_when_asked_for(tmp_path, arguments, end):
    assert commands(tmp_path, "release", *arguments)[-1].endswith(f"-m course.release {end}")


def test_notebooks_are_run_again_with_other_threads_and_instructions(tmp_path):
    lines = commands(tmp_path, "test-all")
    first, second, third = [line.split(" .venv")[0] for line in lines if "--nbval" in line]
    assert (first, second) == ("OMP_NUM_THREADS=1", "OMP_NUM_THREADS=2")
    assert third == "OMP_NUM_THREADS=1 MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default"
    assert all("--nbval-sanitize-with course/sanitize.cfg" in line for line in lines if "--nbval" in line)
