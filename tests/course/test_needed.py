"""What grading leaves out of a notebook: hand-worked examples, and that no name is missing afterwards."""

import ast
import builtins

import nbformat
import pytest

from course.levels import grade_id
from course.links import COLAB, in_order
from course.needed import Flow, needed

EXAMPLES = {
    "a cell that gives nothing": (["x = 1", "print(2)", "assert x"], [2], ["x = 1", "", "assert x"]),
    "what gives what is needed": (["a = 1\nb = 2", "c = b", "assert c"], [2], ["b = 2", "c = b", "assert c"]),
    "a value that is replaced": (["x = 1", "x = 2", "assert x"], [2], ["", "x = 2", "assert x"]),
    "a value that may be replaced": (
        ["x = 1", "if True:\n    x = 2", "assert x"],
        [2],
        ["x = 1", "if True:\n    x = 2", "assert x"],
    ),
    "a value that a function looks up later": (
        ["x = 1", "def f():\n    return x", "x = 2", "assert f()"],
        [3],
        ["x = 1", "def f():\n    return x", "x = 2", "assert f()"],
    ),
    "names of a function's own": (["x = 1", "def f(x):\n    return x", "assert f(3)"], [2], ["", None, None]),
    "changed by an index": (["x = [1]", "x[0] = 2", "assert x"], [2], ["x = [1]", "x[0] = 2", "assert x"]),
    "changed by a method": (["x = []", "x.append(1)", "assert x"], [2], ["x = []", "x.append(1)", "assert x"]),
    "changed by a function": (["x = []", "fill(x)", "assert x"], [2], ["x = []", "fill(x)", "assert x"]),
    "changed in a loop": (
        ["x = [1]\ny = 2\nfor one in x:\n    one.grow()\nfor one in [y]:\n    print(one)", "assert x"],
        [1],
        ["x = [1]\nfor one in x:\n    one.grow()", "assert x"],
    ),
    "a seed": (
        ["import random\nrandom.seed(0)\nx = 1\ny = 2", "assert x"],
        [1],
        ["import random\nrandom.seed(0)\nx = 1", "assert x"],
    ),
    "a function with a decorator": (
        ["import functools\n@functools.cache\ndef f():\n    return 1", "assert f()"],
        [1],
        ["import functools\n@functools.cache\ndef f():\n    return 1", "assert f()"],
    ),
    "magic": (["%matplotlib inline", "x = 1", "assert True"], [2], ["%matplotlib inline", "", "assert True"]),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_is_needed(name):
    cells, exercises, expected = EXAMPLES[name]
    expected = [cell if wanted is None else wanted for cell, wanted in zip(cells, expected, strict=True)]
    assert needed(cells, exercises) == expected


@pytest.mark.parametrize("path", in_order(), ids=lambda path: path.stem)
def test_no_name_of_an_exercise_is_missing(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code" and cell.id != COLAB]
    sources = [cell.source for cell in cells]
    exercises = [place for place, cell in enumerate(cells) if grade_id(cell)]
    have = set(dir(builtins))
    kept = needed(sources, exercises)
    for source in kept:
        flow = Flow(ast.parse(source).body, set())
        assert flow.used - flow.late - flow.given <= have, source
        have |= flow.given
    assert [kept[place] for place in exercises] == [sources[place] for place in exercises]
    assert sum(map(len, kept)) < sum(map(len, sources))
