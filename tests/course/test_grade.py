"""Grading with real kernels: what a student's code breaks is his own loss, and no more than that exercise."""

import csv
import shutil
import sys

import nbformat
import pytest
from marks import feedback_of, points_of, read_marks
from nbformat.v4 import new_code_cell
from sandboxes import SANDBOX
from small_course import LEVEL, NAME, cell, small_notebook, write_course

from course import CourseError, grade
from course.grade import FAILED, MISSING, UNREADABLE, restored
from course.release import student_version

pytestmark = pytest.mark.timeout(1200)  # the first test waits for all copies
SECONDS = 10
EVERY_DAY = ("perfect", "squares", "kills")  # the others: make test-all
FULL = [2, 3]
DOUBLE = "def double(x):\n    return 2 * x\n"


def answered(first, second=None):
    """The right notebook with another answer to the first exercise."""
    notebook = small_notebook()
    cell(notebook, "answer-01-1").source = first
    if second:
        cell(notebook, "answer-01-2").source = second
    return notebook


def tampered(*changes):
    """Wrong answers, and tests that were tampered with."""
    notebook = answered("def double(x):\n    return x * x\n", "def total(values):\n    return sum(values[:1])\n")
    for number, change in enumerate(changes, 1):
        change(cell(notebook, f"test-01-{number}"))
    return notebook


def without(notebook, *ids):
    notebook.cells = [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade_id") not in ids]
    return notebook


STUBBORN = """def double(x):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass
"""
WARNS = f"import warnings\n{DOUBLE.replace('return', 'warnings.warn(str(x)); return')}"
HELPER = new_code_cell("def helper(x):\n    return 2 * x\n")
# name: what is handed in, points, what the feedback says beside the first test
COPIES = {
    "perfect": (small_notebook(), FULL, "Exercise 01.1 passed"),
    "squares": (answered("def double(x):\n    return x * x\n"), [0, 3], "did you square instead of doubling?"),
    "forgets": (answered(DOUBLE, "def total(values):\n    return sum(values[:1])\n"), [2, 0], "01.1 passed"),
    "raises": (answered("def double(x):\n    raise OSError('the disk of my home')"), [0, 3], "the disk of my home"),
    "no python": (answered("def double(x: return"), [0, 3], "NameError"),
    "kills": (answered("import os\ndef double(x):\n    os._exit(1)"), [0, 3], "The kernel died while this cell ran"),
    "kills at once": (answered("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"), [0, 3], "NameError"),
    "leaves": (answered("def double(x):\n    exit()\n    return 2 * x"), [0, 3], "The kernel died"),
    "loops": (answered("def double(x):\n    while True:\n        pass"), [0, 3], "CellTimeoutError"),
    "stubborn": (answered(STUBBORN), [0, 3], "did not stop when its time was up"),
    "prints": (answered("def double(x):\n    while True:\n        print('x' * 50)"), [0, 3], "CellTimeoutError"),
    "warns": (answered(WARNS), FULL, "UserWarning"),
    "helped": (answered("double = helper"), FULL, "passed"),
    "edits and skips": (
        tampered(
            lambda test: test.update(source="print('Exercise 01.1 passed')"),
            lambda test: test.metadata.update(tags=["skip-execution"]),
        ),
        [0, 0],
        "did you square",
    ),
    "raises points": (
        tampered(
            lambda test: test.metadata.nbgrader.update(points=100),
            lambda test: test.metadata.nbgrader.update(solution=True, locked=False),
        ),
        [0, 0],
        "did you square",
    ),
    "hides and removes": (
        without(tampered(lambda test: test.update(cell_type="markdown")), "test-01-2"),
        [0, 0],
        "did you square",
    ),
    "answer moved": (without(answered(DOUBLE), "answer-01-1", "test-01-1"), [0, 3], "NameError"),
}
COPIES["helped"][0].cells.insert(1, HELPER)


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    return write_course(tmp_path_factory.mktemp("course"))


@pytest.fixture(scope="module")
def empty(course):
    return student_version(course / LEVEL / f"{NAME}.ipynb")


@pytest.fixture(scope="module")
def submitted(request, tmp_path_factory, empty):
    """What comes back: the copies that the selected tests look at, and what cannot be graded."""
    folder = tmp_path_factory.mktemp("submitted")
    wanted = {item.callspec.params.get("student") for item in request.session.items if hasattr(item, "callspec")}

    def path_of(student, name=f"{LEVEL}/{NAME}.ipynb"):
        path = folder / student / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    for student, (notebook, *_) in COPIES.items():
        if student in {"perfect", *wanted}:
            nbformat.write(notebook, path_of(student))
    nbformat.write(empty, path_of("empty"))
    path_of("unreadable").write_text('{"cells": 3}')
    path_of("misnamed", f"{LEVEL}/{NAME} (1).ipynb").write_text("{}")
    nbformat.write(small_notebook(), path_of("misplaced", f"{NAME}.ipynb"))
    path_of("linked").symlink_to(path_of("perfect"))
    path_of("[a-z]*").write_text(path_of("perfect").read_text())
    (folder / "nothing").mkdir()
    (folder / "list.txt").write_text("no student")
    return folder


@pytest.fixture(scope="module")
def said():
    """What the teacher was told."""
    lines = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grade, "say", lines.append)
        yield lines


@pytest.fixture(scope="module")
def grades(tmp_path_factory, course, submitted, said):
    target = tmp_path_factory.mktemp("grades") / "first"
    return grade.grade(submitted, target, course, seconds=SECONDS, sandbox=SANDBOX)


def feedback(grades, student, test="test-01-1"):
    return feedback_of(grades.parent / "feedback" / student / LEVEL / f"{NAME}.html", test)


@pytest.mark.parametrize(
    "student", [pytest.param(name, marks=() if name in EVERY_DAY else pytest.mark.every) for name in COPIES]
)
def test_marks_and_feedback(grades, student):
    _, points, text = COPIES[student]
    row = read_marks(grades)[student, NAME]
    assert points_of(row) == points
    assert (row["level"], row["sum"], row["max"], row["note"]) == (LEVEL, str(sum(points)), "5", "")
    assert text in feedback(grades, student)
    if points[1]:
        assert "Exercise 01.2 passed" in feedback(grades, student, "test-01-2")
    else:
        assert "did you forget the last value?" in feedback(grades, student, "test-01-2")


def test_an_empty_copy(grades):
    assert points_of(read_marks(grades)["empty", NAME]) == [0, 0]
    for test in ("test-01-1", "test-01-2"):
        assert "NotImplementedError" in feedback(grades, "empty", test)


@pytest.mark.parametrize(
    ("student", "note"),
    [
        ("unreadable", UNREADABLE),
        ("misnamed", MISSING),
        ("misplaced", MISSING),
        ("linked", MISSING),
        ("nothing", MISSING),
    ],
)
def test_what_cannot_be_graded_is_zero_and_says_why(grades, student, note):
    row = read_marks(grades)[student, NAME]
    assert points_of(row) == [0, 0]
    assert row["note"] == note
    assert not (grades.parent / "feedback" / student).exists()


def test_every_student_once_and_nobody_else(grades, submitted):
    with grades.open(newline="") as stream:
        students = [row["student"] for row in csv.DictReader(stream)]
    assert sorted(students) == sorted(path.name for path in submitted.iterdir() if path.is_dir())
    assert points_of(read_marks(grades)["[a-z]*", NAME]) == FULL


def test_the_teacher_is_told(grades, said):
    assert "perfect: 5 of 5 points" in said
    assert f"unreadable: {LEVEL}/{NAME}: {UNREADABLE}" in said
    unknown = "not graded, since the course has no such notebook"
    assert f"misnamed: {unknown}: {LEVEL}/{NAME} (1).ipynb (did you mean {LEVEL}/{NAME}.ipynb?)" in said
    assert f"misplaced: {unknown}: {NAME}.ipynb (did you mean {LEVEL}/{NAME}.ipynb?)" in said
    assert "nothing: 0 of 0 points (1 of 1 notebooks not handed in)" in said  # only what was handed in counts


@pytest.mark.every
def test_marks_are_kept_and_newcomers_graded(grades, tmp_path, course, empty, said):
    """Also what happens after an interruption: students who are done are not graded again."""
    target = tmp_path / "grades"
    shutil.copytree(grades.parent, target)
    nbformat.write(empty, _in(tmp_path / "late" / "perfect"))
    nbformat.write(small_notebook(), _in(tmp_path / "late" / "newcomer"))
    before = (target / "grades.csv").read_text()
    path = grade.grade(tmp_path / "late", target, course, seconds=SECONDS, sandbox=SANDBOX)
    assert path.read_text().startswith(before)
    assert points_of(read_marks(path)["newcomer", NAME]) == FULL
    assert points_of(read_marks(path)["perfect", NAME]) == FULL
    assert any(line.startswith("perfect: graded already, kept") for line in said)


@pytest.mark.every
def test_a_grader_that_dies_is_told_with_its_log(tmp_path, course, said):
    """Without a sandbox a student's code may end the grading process itself: only his marks are lost."""
    nbformat.write(answered("import os, signal\nos.kill(os.getppid(), signal.SIGKILL)"), _in(tmp_path / "in" / "foe"))
    nbformat.write(small_notebook(), _in(tmp_path / "in" / "friend"))
    path = grade.grade(tmp_path / "in", tmp_path / "out", course, seconds=SECONDS, sandbox="none")
    marks = read_marks(path)
    assert points_of(marks["friend", NAME]) == FULL
    assert (points_of(marks["foe", NAME]), marks["foe", NAME]["note"]) == ([0, 0], FAILED)
    assert (tmp_path / "out" / "logs" / "foe.log").is_file()
    assert f"foe: {LEVEL}/{NAME}: {FAILED}" in said


def _in(student):
    path = student / LEVEL / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    return path


@pytest.mark.every
def test_foreign_marks_are_not_touched(tmp_path, course):
    nbformat.write(small_notebook(), _in(tmp_path / "in" / "anna"))
    (tmp_path / "grades.csv").write_text("name,mark\nanna,1\n")
    with pytest.raises(CourseError, match=r"grades\.csv has other columns than this course"):
        grade.grade(tmp_path / "in", tmp_path, course, sandbox=SANDBOX)
    assert (tmp_path / "grades.csv").read_text() == "name,mark\nanna,1\n"


def test_nobody_to_grade_and_nothing_to_grade_by(tmp_path, course, monkeypatch):
    with pytest.raises(CourseError, match="no student's folder"):
        grade.grade(tmp_path, tmp_path, course, sandbox=SANDBOX)
    (tmp_path / "anna").mkdir()
    with pytest.raises(CourseError, match="no folder of a level"):
        grade.grade(tmp_path, tmp_path, tmp_path, sandbox=SANDBOX)
    monkeypatch.setattr(sys, "argv", ["grade", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match=r"^Error: .*no student's folder.*\.$"):
        grade.main()


def test_the_last_copy_of_a_test_counts_and_answers_stay(empty):
    submitted = small_notebook()
    submitted.cells.insert(2, cell(small_notebook(), "test-01-1"))
    submitted.cells[2].id = "copied"
    names = [cell.metadata.get("nbgrader", {}).get("grade_id") for cell in restored(submitted, empty).cells]
    assert [name for name in names if name] == ["answer-01-1", "test-01-1", "answer-01-2", "test-01-2"]
    assert names[2] is None
    assert cell(restored(submitted, empty), "answer-01-1").source == cell(small_notebook(), "answer-01-1").source


def test_a_test_that_was_removed_stands_after_its_answer_again(empty):
    notebook = restored(without(small_notebook(), "test-01-1", "answer-01-2", "test-01-2"), empty)
    names = [cell.metadata.get("nbgrader", {}).get("grade_id") for cell in notebook.cells]
    assert names.index("test-01-1") == names.index("answer-01-1") + 1
    assert names[-1] == "test-01-2"
    assert "answer-01-2" not in names
