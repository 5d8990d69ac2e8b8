"""The rooms of docs/architecture.md: a module imports only from rooms below its own."""

import ast
from pathlib import Path

import pytest

import nesskit

ROOT = Path(nesskit.__file__).parent
MODULES = {
    ".".join(("nesskit", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

# From the ground up. A room may import from every room of the floors below it; `nesskit/__init__.py` from anywhere.
FLOORS = [
    {"errors", "exercises", "seeds", "userfiles", "wholefile"},
    {"spectra"},
    {"settings", "streams", "adaptation"},
    {"networks", "runs", "analysis"},
    {"methods", "plots"},
    {"training"},
    {"experiments"},
    {"report"},
    {"widgets", "cli"},
    {"__main__"},
]
ON_THE_GROUND = {("userfiles", "errors")}  # the ground is single files, not rooms


def room(module):
    """The part of the house that a module belongs to: its folder, or itself where it stands alone."""
    return module.split(".")[1]


def floor(module):
    floors = [number for number, rooms in enumerate(FLOORS) if room(module) in rooms]
    assert len(floors) == 1, f"{module} is in no room: decide where it belongs (docs/architecture.md), add it to FLOORS"
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
    ours = {name for name in found if name.startswith("nesskit.")} - {"nesskit.__version__", "nesskit.__file__"}
    return sorted({name if name in known else name.rpartition(".")[0] for name in ours})


def may_import(module, target):
    if target == "nesskit":
        return False  # whoever imports the roof imports everything
    within = (room(module), room(target))
    return within[0] == within[1] or floor(target) < floor(module) or within in ON_THE_GROUND


def violations(modules):
    return [
        f"{module} → {target}"
        for module, path in modules.items()
        if module != "nesskit"
        for target in imports_of(module, path, modules)
        if not may_import(module, target)
    ]


def circles(modules):
    """Modules that import each other in a loop, also within one room; what a function imports when called counts."""
    imports = {module: set(imports_of(module, path, modules)) - {module} for module, path in modules.items()}

    def reached_from(module):
        seen, ahead = set(), [module]
        while ahead:
            new = imports.get(ahead.pop(), set()) - seen
            seen |= new
            ahead.extend(new)
        return seen

    return sorted(module for module in imports if module in reached_from(module))


def test_every_module_is_in_a_room():
    for module in MODULES.keys() - {"nesskit"}:
        floor(module)


def test_modules_import_from_lower_floors_only():
    assert violations(MODULES) == []


@pytest.mark.parametrize(
    ("module", "line", "target"),
    [
        ("nesskit.adaptation.layers", "from nesskit.training.fit import fit", "nesskit.training.fit"),
        ("nesskit.adaptation.layers", "from nesskit.runs import metrics", "nesskit.runs.metrics"),
        ("nesskit.adaptation.layers", "def f():\n    import nesskit.training.optim", "nesskit.training.optim"),
        ("nesskit.spectra.spectrum", "from nesskit.streams.base import Task", "nesskit.streams.base"),
        ("nesskit.methods.ness", "from ..training.fit import fit", "nesskit.training.fit"),
        ("nesskit.methods.ness", "from ..plots import looks", "nesskit.plots.looks"),
        ("nesskit.errors", "from nesskit import seeds", "nesskit.seeds"),
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


def test_a_module_without_a_room_is_found():
    with pytest.raises(AssertionError, match=r"nesskit\.attic is in no room: decide where it belongs"):
        floor("nesskit.attic")


def test_no_modules_import_each_other_in_a_circle():
    assert circles(MODULES) == []


def test_a_circle_is_found(tmp_path):
    for name, target in (("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")):
        (tmp_path / f"{name}.py").write_text(f"from nesskit.spectra import {target}")
    files = {f"nesskit.spectra.{name}": tmp_path / f"{name}.py" for name in "abcd"}
    assert circles(files) == [f"nesskit.spectra.{name}" for name in "abc"]
