"""A course of one small notebook, whose kernels start fast: what release, grading and guards are tried on."""

from textwrap import dedent

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from course.execute import METADATA

LEVEL, NAME = "1_first", "01_small"
HEADER = """\
# 01. Small

Two small exercises.

| | |
| --- | --- |
| **Goals** | to double and to sum |
| **You need** | nothing |
| **Time** | 5 minutes |
| **Data** | none |
| **Offline** | runs as it is |
"""
DOUBLE = '''\
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    factor_of_two = 2
    return factor_of_two * x
    ### END SOLUTION
'''
DOUBLE_TEST = """\
assert double(0) == 0, "nothing twice is nothing"
### BEGIN HIDDEN TESTS
assert double(3) == 6, "did you square instead of doubling?"
### END HIDDEN TESTS
print("Exercise 01.1 passed")
"""
TOTAL = '''\
def total(values):
    """The sum of values."""
    ### BEGIN SOLUTION
    start_value = 0
    return sum(values, start_value)
    ### END SOLUTION
'''
TOTAL_TEST = """\
assert total([1]) == 1, "one value is its own sum"
### BEGIN HIDDEN TESTS
assert total([1, 2, 4]) == 7, "did you forget the last value?"
### END HIDDEN TESTS
print("Exercise 01.2 passed")
"""


def answer(name, source):
    nbgrader = {"grade": False, "locked": False, "solution": True, "task": False}
    metadata = {"nbgrader": {"schema_version": 3, "grade_id": f"answer-01-{name}", **nbgrader}}
    return new_code_cell(dedent(source), id=f"answer-{name}", metadata=metadata)


def check(name, source, points):
    nbgrader = {"grade": True, "locked": True, "solution": False, "task": False, "points": points}
    metadata = {"nbgrader": {"schema_version": 3, "grade_id": f"test-01-{name}", **nbgrader}}
    outputs = [new_output("stream", name="stdout", text=f"Exercise 01.{name} passed\n")]
    return new_code_cell(dedent(source), id=f"test-{name}", metadata=metadata, outputs=outputs)


def small_notebook():
    """Executed, as it would be committed."""
    cells = [
        new_markdown_cell(HEADER, id="intro"),
        new_code_cell("import math", id="imports"),
        new_markdown_cell("## Doubling\n\n### Exercise 01.1 — double (2 points)", id="double"),
        answer(1, DOUBLE),
        check(1, DOUBLE_TEST, 2),
        new_code_cell("print(math.floor(2.5))", id="story"),
        new_markdown_cell("### Exercise 01.2 — total (3 points)", id="total"),
        answer(2, TOTAL),
        check(2, TOTAL_TEST, 3),
        new_markdown_cell("## Summary\n\nDone.\n\n## References\n\nNone.", id="end"),
    ]
    for count, code in enumerate((cell for cell in cells if cell.cell_type == "code"), 1):
        code.execution_count = count
    cells[5].outputs = [new_output("stream", name="stdout", text="2\n")]
    return new_notebook(cells=cells, metadata=nbformat.from_dict(METADATA))


def write_course(folder, notebook=None):
    """The folder of the levels."""
    path = folder / "notebooks" / LEVEL / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(notebook or small_notebook(), path)
    return path.parents[1]


def cell(notebook, grade_id):
    (found,) = [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade_id") == grade_id]
    return found
