"""Every exercise of the course, graded for real: right, left empty, typically mistaken, raising, killing the kernel.

Copies are handed in by students of these names, and graded in one go a notebook; in ``make test-all``. What grading is,
``test_grade.py`` tries every day on a small notebook; that the solutions run, nbval does.
"""

import re
import tomllib
from pathlib import Path

import nbformat
import pytest
from marks import feedback_of, points_of, read_marks
from sandboxes import SANDBOX

from course.grade import grade
from course.guards import HIDDEN
from course.levels import answer_cells, grade_id, graded_cells, levels
from course.release import student_version

MISTAKES = Path(__file__).parent / "mistakes"
REGION = re.compile(r"( *)### BEGIN SOLUTION.*### END SOLUTION", re.DOTALL)
TRACEBACK = "Traceback (most recent call last)"

pytestmark = pytest.mark.timeout(3600)  # the first test of a notebook waits for all its copies


def mistakes_of(path):
    """{grade_id of the answer: {"source": …, "message": …}}."""
    file = MISTAKES / f"{path.stem[:2]}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def first_of_its_level(path):
    """Where answers raise and kill, too: what that does is a matter of grading, not of the notebook."""
    return path == next(notebooks[0] for notebooks in levels().values() if path in notebooks)


def parameters(values=lambda path: [()]):
    """(path, …) of every notebook; in make test-all."""
    paths = [path for notebooks in levels().values() for path in notebooks]
    return [
        pytest.param(
            path,
            *value,
            id="-".join([path.stem, *value]),
            marks=pytest.mark.every,
        )
        for path in paths
        for value in values(path)
    ]


NOTEBOOKS = parameters()
FIRST_NOTEBOOKS = [value for value in NOTEBOOKS if first_of_its_level(value.values[0])]
NOTEBOOKS_AND_MISTAKES = parameters(lambda path: [(name,) for name in mistakes_of(path)])


def with_answers(path, change):
    """The notebook with every answer replaced by ``change(index, cell)``."""
    notebook = nbformat.read(path, as_version=4)
    for index, cell in enumerate(answer_cells(notebook)):
        cell.source = change(index, cell)
    return notebook


def body(cell, statement):
    """The answer with ``statement`` in place of the solution."""
    return REGION.sub(lambda found: f"{found[1]}{statement}", cell.source)


def copies(path):
    """(student, notebook) of everything that is handed in."""
    mistakes = mistakes_of(path)
    yield "right", nbformat.read(path, as_version=4)
    yield "empty", student_version(path)
    if first_of_its_level(path):
        yield "raising", with_answers(path, lambda _, cell: body(cell, f"raise OSError('{grade_id(cell)} is broken')"))
        yield (
            "killing",
            with_answers(path, lambda i, cell: cell.source if i else body(cell, "__import__('os')._exit(1)")),
        )
    for name, mistake in mistakes.items():
        wrong = with_answers(
            path, lambda _, cell, name=name, new=mistake["source"]: new if grade_id(cell) == name else cell.source
        )
        yield f"wrong {name[-1]}", wrong


class Outcome:
    """What grading all copies gave."""

    def __init__(self, table):
        self.folder, self.marks = table.parent, read_marks(table)

    def points(self, student, path):
        row = self.marks[student, path.stem]
        assert row["note"] == ""
        return points_of(row)

    def page(self, student, path):
        return self.folder / "feedback" / student / path.parent.name / f"{path.stem}.html"

    def tracebacks(self, student, path):
        return self.page(student, path).read_text(encoding="utf-8").count(TRACEBACK)


@pytest.fixture(scope="module")
def outcomes():
    """What was graded already, by notebook."""
    return {}


@pytest.fixture
def graded(path, outcomes, tmp_path_factory):
    """All copies of the notebook ``path``."""
    if path not in outcomes:
        folder, level = tmp_path_factory.mktemp("exercises"), path.parent.name
        (folder / "source" / level).mkdir(parents=True)
        (folder / "source" / level / path.name).write_bytes(path.read_bytes())
        for student, notebook in copies(path):
            copy = folder / "submitted" / student / level / path.name
            copy.parent.mkdir(parents=True)
            nbformat.write(notebook, copy)
        outcomes[path] = Outcome(grade(folder / "submitted", folder / "grades", folder / "source", sandbox=SANDBOX))
    return outcomes[path]


def full(path):
    """The points of the exercises, and the names of their tests."""
    cells = graded_cells(nbformat.read(path, as_version=4))
    return [cell.metadata.nbgrader.points for cell in cells], [grade_id(cell) for cell in cells]


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_right_answers_get_all_points(path, graded):
    assert graded.points("right", path) == full(path)[0]
    assert graded.tracebacks("right", path) == 0


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_an_empty_copy_is_asked_for_answers_by_visible_tests_and_refused_by_hidden_ones(path, graded):
    points, names = full(path)
    assert graded.points("empty", path) == [0] * len(points)
    assert graded.tracebacks("empty", path) == len(points)  # and the story goes on
    for cell in graded_cells(nbformat.read(path, as_version=4)):
        text = feedback_of(graded.page("empty", path), grade_id(cell))
        exercise = grade_id(cell).partition("-")[2].replace("-", ".")
        assert f"Exercise {exercise} is not solved yet: " in text
        *_, raised = text.split(TRACEBACK)
        assert "AssertionError: there is no answer yet" in raised
        visible, both = (cell.source[:found].count("\n") for found in HIDDEN.search(cell.source).span())
        assert visible < int(re.search(r"Cell In\[\d+\], line (\d+)", raised)[1]) <= both
    assert len(names) == len(points)


@pytest.mark.parametrize("path", FIRST_NOTEBOOKS)
def test_an_exception_costs_the_exercise_and_is_shown(path, graded):
    points, names = full(path)
    assert graded.points("raising", path) == [0] * len(points)
    assert graded.tracebacks("raising", path) == len(points)
    for name in names:
        assert f"{name.replace('test', 'answer')} is broken" in feedback_of(graded.page("raising", path), name)


@pytest.mark.parametrize("path", FIRST_NOTEBOOKS)
def test_a_killed_kernel_costs_one_exercise(path, graded):
    points, names = full(path)
    assert graded.points("killing", path) == [0, *points[1:]]
    assert graded.tracebacks("killing", path) == 0
    assert "The kernel died" in feedback_of(graded.page("killing", path), names[0])


@pytest.mark.parametrize(("path", "answer"), NOTEBOOKS_AND_MISTAKES)
def test_a_typical_mistake_costs_its_exercise_and_is_named(path, answer, graded):
    points, names = full(path)
    student, test = f"wrong {answer[-1]}", answer.replace("answer", "test")
    expected = [0 if name == test else value for name, value in zip(names, points, strict=True)]
    assert graded.points(student, path) == expected
    assert graded.tracebacks(student, path) == 1
    text = feedback_of(graded.page(student, path), test)
    *_, raised = text.split(TRACEBACK)  # the source of the test holds the message, too
    assert mistakes_of(path)[answer]["message"] in raised.rpartition("AssertionError: ")[2]


@pytest.mark.parametrize("path", [value.values[0] for value in NOTEBOOKS], ids=lambda path: path.stem)
def test_every_exercise_has_its_mistake(path):
    answers = [grade_id(cell) for cell in answer_cells(nbformat.read(path, as_version=4))]
    assert list(mistakes_of(path)) == answers


def test_every_mistake_has_its_exercise():
    numbers = {path.stem[:2] for notebooks in levels().values() for path in notebooks}
    assert {path.stem for path in MISTAKES.glob("*.toml")} <= numbers
