"""A student's notebook in a real kernel: Run All with nothing solved, and the tests that a student sees at mistakes.

Whole notebooks are run: the first one every day, all others in ``make test-all``.
"""

import ast
import copy

import nbformat
import pytest
from nbclient import NotebookClient
from test_exercises import mistakes_of

from course.guards import HIDDEN
from course.levels import answer_cells, grade_id, graded_cells
from course.links import COLAB, in_order
from course.release import student_version

COURSE = in_order()
pytestmark = pytest.mark.timeout(1200)
run_each = pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem, marks=[pytest.mark.every] * (path != COURSE[0])) for path in COURSE]
)


def run(notebook, path):
    """Every cell, from the folder of the notebook; an error ends it, but where a cell may fail."""
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, kernel_name="python3", timeout=600, resources=resources).execute()
    return notebook


def name_of(cell):
    """``01.1`` for answer-01-1 and test-01-1."""
    return grade_id(cell).partition("-")[2].replace("-", ".")


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


@run_each
def test_a_notebook_with_nothing_solved_runs_to_its_end(path):
    notebook = run(student_version(path), path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [cell.id for cell in code if any(output.output_type == "error" for output in cell.outputs)]
    for cell in graded_cells(notebook):
        (sentence,) = printed(cell).splitlines()
        assert sentence.startswith(f"Exercise {name_of(cell)} is not solved yet: ")


def beside_mistakes(path):
    """The notebook with hidden tests removed, and before each answer the mistake and what a student sees at it."""
    notebook, mistakes, cells = nbformat.read(path, as_version=4), mistakes_of(path), []
    for cell in notebook.cells:
        if grade_id(cell).startswith("test"):
            cell.source = HIDDEN.sub("", cell.source)
    for answer, test in zip(answer_cells(notebook), graded_cells(notebook), strict=True):
        wrong, seen = copy.deepcopy(answer), copy.deepcopy(test)
        wrong.source, seen.metadata = mistakes[grade_id(answer)]["source"], {"tags": ["raises-exception"]}
        wrong.metadata, wrong.id, seen.id = {}, f"wrong-{name_of(answer)}", f"seen-{name_of(answer)}"
        cells.append((answer, [wrong, seen]))
    for answer, extra in cells:
        place = notebook.cells.index(answer)
        notebook.cells[place:place] = extra
    return notebook


@run_each
def test_the_tests_that_students_see_catch_the_typical_mistake_and_name_it(path):
    notebook = run(beside_mistakes(path), path)
    for answer, mistake in mistakes_of(path).items():
        number = answer.partition("-")[2].replace("-", ".")
        (seen,) = [cell for cell in notebook.cells if cell.id == f"seen-{number}"]
        raised = [output for output in seen.outputs if output.output_type == "error"]
        assert [error.ename for error in raised] == ["AssertionError"], f"{number}: the mistake passes"
        assert mistake["message"] in raised[0].evalue, number
    for cell in graded_cells(notebook):
        assert printed(cell) == f"Exercise {name_of(cell)} passed\n"


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_hidden_tests_begin_by_refusing_a_missing_answer(path):
    for cell in graded_cells(nbformat.read(path, as_version=4)):
        assert HIDDEN.findall(cell.source)[0].startswith("assert exercise.answered, ")


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_no_part_of_the_story_needs_an_answer(path):
    answers = set()
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type != "code" or cell.id == COLAB:
            continue
        tree = ast.parse(cell.source)
        if not cell.metadata.get("nbgrader"):
            assert not answers & {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}, cell.id
        elif cell.metadata.nbgrader.solution:
            answers |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert answers
