"""What is released: the source distribution is the whole project, and the wheel does without the checkout."""

import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import nesskit

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.every, pytest.mark.timeout(600)]


def python(*arguments, cwd, path=None, status=0):
    """What a Python that finds packages in ``path`` before those of the environment prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONPATH": str(path)} if path else {}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The folder with the two files that ``make dist`` makes."""
    folder = tmp_path_factory.mktemp("dist")
    python("-m", "build", "--no-isolation", "--outdir", folder, cwd=ROOT)
    return folder


@pytest.fixture(scope="module")
def installed(released, tmp_path_factory):
    """A folder with the wheel alone; what it needs comes from the environment."""
    folder = tmp_path_factory.mktemp("installed")
    (wheel,) = released.glob("*.whl")
    python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", folder, wheel, cwd=folder)
    return folder


def test_both_bear_the_version_of_the_package(released):
    names = {path.name for path in released.iterdir()}
    assert names == {f"nesskit-{nesskit.__version__}.tar.gz", f"nesskit-{nesskit.__version__}-py3-none-any.whl"}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only a checkout knows which files are the project's")
def test_the_source_distribution_holds_the_whole_project(released):
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tarfile.open(next(released.glob("*.tar.gz"))) as archive:
        held = {str(Path(*Path(name).parts[1:])) for name in archive.getnames()}
    assert set(tracked.splitlines()) - held == set()
    assert not [name for name in held if "__pycache__" in name or name.startswith((".venv", "data/cache", "runs"))]


def test_the_wheel_holds_the_library_alone(installed):
    version = f"nesskit-{nesskit.__version__}.dist-info"
    assert {path.name for path in installed.iterdir()} == {"bin", "nesskit", version}
    shipped, here = (
        {path.relative_to(root) for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        for root in (installed / "nesskit", ROOT / "nesskit")
    )
    assert shipped == here


def test_the_installed_demo_runs_in_an_empty_folder(installed, tmp_path):
    where = python("-c", "import nesskit; print(nesskit.__file__)", cwd=tmp_path, path=installed)
    assert Path(where.strip()) == installed / "nesskit" / "__init__.py"
    told = python("-m", "nesskit", "demo", cwd=tmp_path, path=installed)
    assert all(f"{method}, seed 0: new run" in told for method in ("finetune", "ness", "joint"))
    assert {"report.html", "demo.png"} <= {path.name for path in (tmp_path / "runs" / "demo").iterdir()}
    assert "<svg" in (tmp_path / "runs" / "demo" / "report.html").read_text(encoding="utf-8")


def test_type_checkers_see_the_types_of_the_installed_library(installed, tmp_path):
    (tmp_path / "mine.py").write_text(
        'from nesskit import nothing, load_run\nacc: str = load_run("x").average_accuracy\n'
    )
    told = python("-m", "mypy", "--strict", "mine.py", cwd=tmp_path, path=installed, status=1).splitlines()
    assert told[0] == 'mine.py:1: error: Module "nesskit" has no attribute "nothing"  [attr-defined]'
    assert told[1].startswith('mine.py:2: error: Incompatible types in assignment (expression has type "float"')
    assert told[2].startswith("Found 2 errors")
