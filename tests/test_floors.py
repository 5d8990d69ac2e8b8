"""The house of DESIGN.md, Section 1: a module imports only from the floors below it."""

import ast
from pathlib import Path

import pytest

import nesskit

ROOT = Path(nesskit.__file__).parent
MODULES = {
    ".".join(("nesskit", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

# A folder stands for all of its modules. Every module has a floor; `nesskit/__init__.py` may import anything.
HELPERS = {"errors", "userfiles", "seeds", "spectrum", "filters", "settings"}
FLOORS = [
    {*HELPERS, "streams", "networks"},
    {"layers", "capture", "patches", "metrics", "optim", "events", "projections", "projected"},
    {"methods", "records"},
    {"training", "benchmarks", "hyperparameters", "comparison", "progress", "results", "sweeps"},
    {"experiments", "executors", "analysis"},
    {"plots", "report", "tables"},
    {"cli", "widgets", "__main__"},
]
NEIGHBOURS = {
    ("capture", "layers"),
    ("capture", "patches"),
    ("layers", "projected"),
    ("layers", "projections"),
    ("sweeps", "comparison"),
    ("benchmarks", "hyperparameters"),
    ("report", "plots"),
    ("__main__", "cli"),
}  # imports on one floor beside those of the helpers


def unit(module):
    """The part of the house that a module belongs to: its folder, or itself."""
    return module.split(".")[1]


def floor(module):
    floors = [number for number, units in enumerate(FLOORS) if unit(module) in units]
    assert len(floors) == 1, f"{module} has no floor: decide where it belongs (DESIGN.md, Section 1), add it to FLOORS"
    return floors[0]


def imports_of(module, path, known):
    """Every module of nesskit that is imported anywhere in the file, within functions and for type checking too."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name != "nesskit"}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nesskit":
            found.add(f"nesskit.{node.attr}")  # what `import nesskit` alone was for
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            found |= {f"{source}.{alias.name}" for alias in node.names}
    ours = {name for name in found if name.startswith("nesskit.")} - {"nesskit.__version__"}
    return sorted({name if name in known else name.rpartition(".")[0] for name in ours})


def may_import(module, path, target):
    if target == "nesskit":
        return False  # whoever imports the roof imports everything
    if unit(target) == unit(module) or floor(target) < floor(module):
        return True
    on_one_floor = floor(target) == floor(module)
    return on_one_floor and (
        unit(target) in HELPERS or path.name == "__init__.py" or (unit(module), unit(target)) in NEIGHBOURS
    )


def violations(modules):
    return [
        f"{module} → {target}"
        for module, path in modules.items()
        if module != "nesskit"
        for target in imports_of(module, path, modules)
        if not may_import(module, path, target)
    ]


def test_every_module_has_a_floor():
    for module in MODULES.keys() - {"nesskit"}:
        floor(module)


def test_modules_import_from_lower_floors_only():
    assert violations(MODULES) == []


@pytest.mark.parametrize(
    ("module", "line", "target"),
    [
        ("nesskit.layers", "from nesskit.training import fit", "nesskit.training"),
        ("nesskit.layers", "from nesskit import capture", "nesskit.capture"),
        ("nesskit.layers", "def f():\n    import nesskit.optim", "nesskit.optim"),
        ("nesskit.spectrum", "from nesskit.streams.base import Task", "nesskit.streams.base"),
        ("nesskit.methods.ness", "from ..training import fit", "nesskit.training"),
        ("nesskit.methods.ness", "from .. import records", "nesskit.records"),
        ("nesskit.cli", "from nesskit import run", "nesskit"),
        ("nesskit.cli", "import nesskit\nnesskit.run()", "nesskit"),
    ],
)
def test_an_import_from_the_wrong_floor_is_found(tmp_path, module, line, target):
    path = tmp_path / "module.py"
    path.write_text(line)
    others = dict.fromkeys(MODULES.keys() - {module}, tmp_path / "empty.py")
    (tmp_path / "empty.py").write_text("")
    assert violations({**others, module: path}) == [f"{module} → {target}"]


def test_a_module_without_a_floor_is_found():
    with pytest.raises(AssertionError, match=r"nesskit\.attic has no floor: decide where it belongs"):
        floor("nesskit.attic")
