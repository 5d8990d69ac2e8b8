"""What students get: nothing of the teacher's, and never over somebody's work."""

import json
import re
import subprocess
import sys
import zipfile

import nbformat
import pytest
from nbclient import NotebookClient
from small_course import LEVEL, NAME, cell, small_notebook, write_course

from course import CourseError
from course.levels import NOTEBOOKS, all_notebooks, graded_cells, levels
from course.release import MANIFEST, main, release, solved_version, student_version

REGION = re.compile(r"BEGIN (SOLUTION|HIDDEN TESTS)\n(.*?)\n[^\n]*END \1", re.DOTALL)


def secret_lines(notebook):
    """Lines of solutions and of hidden tests; of these without those that also stand in the open, in a visible test."""
    sources = [cell.source for cell in notebook.cells]
    public = {line.strip() for source in sources for line in REGION.sub("", source).splitlines()}
    return secret_lines_of(notebook, "SOLUTION") | (secret_lines_of(notebook, "HIDDEN TESTS") - public)


def secret_lines_of(notebook, kind):
    """Lines between the markers of one kind."""
    found = [region for cell in notebook.cells for region in REGION.finditer(cell.source) if region[1] == kind]
    return {line.strip() for region in found for line in region[2].splitlines() if re.search(r"\w", line)}


@pytest.fixture
def course(tmp_path):
    return write_course(tmp_path)


def test_every_secret_line_is_found():
    secret = secret_lines(small_notebook())
    assert secret == {
        "factor_of_two = 2",
        "return factor_of_two * x",
        'assert double(3) == 6, "did you square instead of doubling?"',
        "start_value = 0",
        "return sum(values, start_value)",
        'assert total([1, 2, 4]) == 7, "did you forget the last value?"',
    }


@pytest.mark.parametrize("path", all_notebooks(), ids=lambda path: path.stem)
def test_no_solution_no_hidden_test_no_output_stands_in_the_release(path):
    source, released = nbformat.read(path, as_version=4), student_version(path)
    nbformat.validate(released)
    lines = {line.strip() for cell in released.cells for line in cell.source.splitlines()}
    assert not secret_lines(source) & lines
    text = json.dumps(released)
    assert not re.search("SOLUTION|HIDDEN|widget-state", text)
    assert len(released.cells) == len(source.cells)
    assert all(not cell.outputs and cell.execution_count is None for cell in released.cells if cell.cell_type == "code")
    for tested in graded_cells(released):
        assert not tested.metadata.editable
        assert not tested.metadata.deletable


def test_the_whole_release_of_the_course(tmp_path):
    """With the library, and without anything else: no sources, tests or results of exercises."""
    if not levels():
        pytest.skip("no notebooks yet")
    folder = tmp_path / "student"
    notebooks = release(folder)
    assert {path.relative_to(folder) for path in notebooks} == {path.relative_to(NOTEBOOKS) for path in all_notebooks()}
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    rest = {name for name in there if not name.endswith(".ipynb") and not name.startswith("data/results/")}
    (wheel,) = [name for name in rest if name.endswith(".whl")]
    assert rest == {"README.md", "constraints.txt", MANIFEST, wheel}
    with zipfile.ZipFile(folder / wheel) as archive:
        assert {name.split("/")[0].split("-")[0] for name in archive.namelist()} == {"nesskit"}
    release(folder)  # once more, over itself


@pytest.mark.parametrize("path", all_notebooks(), ids=lambda path: path.stem)
def test_after_the_deadline_solutions_are_released_with_outputs_but_hidden_tests_are_not(path):
    source, solved = nbformat.read(path, as_version=4), solved_version(path)
    nbformat.validate(solved)
    hidden = {line for line in secret_lines(source) if line not in secret_lines_of(source, "SOLUTION")}
    lines = {line.strip() for cell in solved.cells for line in cell.source.splitlines()}
    assert secret_lines_of(source, "SOLUTION") <= lines
    assert not hidden & lines
    assert not re.search("BEGIN SOLUTION|END SOLUTION|HIDDEN|NotImplementedError", json.dumps(solved))
    outputs = [[cell.get("outputs") for cell in notebook.cells] for notebook in (source, solved)]
    assert outputs[0] == outputs[1]


def test_a_release_with_solutions_runs_through(course, tmp_path):
    (path,) = release(tmp_path / "solutions", course, wheel=False, solutions=True)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, kernel_name="python3").execute()
    printed = [output.text for cell in notebook.cells for output in cell.get("outputs", [])]
    assert printed == ["Exercise 01.1 passed\n", "2\n", "Exercise 01.2 passed\n"]


def test_visible_tests_ask_for_an_answer(course, tmp_path):
    (path,) = [path for path in release(tmp_path / "student", course, wheel=False) if path.stem == NAME]
    assert path == tmp_path / "student" / LEVEL / f"{NAME}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, allow_errors=True, kernel_name="python3").execute()
    for tested in graded_cells(notebook):
        assert [output.ename for output in tested.outputs] == ["NotImplementedError"]


def test_a_wrong_answer_does_not_stop_the_notebook(course):
    (path,) = course.glob("*/*.ipynb")
    notebook = student_version(path)
    answers = {"answer-01-1": "def double(x): return x * x + 1", "answer-01-2": "def total(values): return values[0]"}
    for name, source in answers.items():
        cell(notebook, name).source = source
    NotebookClient(notebook, kernel_name="python3").execute()
    (wrong,) = cell(notebook, "test-01-1").outputs
    assert (wrong.ename, wrong.evalue) == ("AssertionError", "nothing twice is nothing")
    (right,) = cell(notebook, "test-01-2").outputs
    assert right.text == "Exercise 01.2 passed\n"


def test_a_release_is_renewed_but_never_what_a_person_wrote(course, tmp_path):
    folder = tmp_path / "student"
    release(folder, course, wheel=False)
    (path,) = release(folder, course, wheel=False)
    path.write_text(path.read_text().replace("raise NotImplementedError()", "return 2 * x"))
    with pytest.raises(CourseError, match=rf"holds work that is not of an earlier release \({LEVEL}/{NAME}.ipynb\)"):
        release(folder, course, wheel=False)
    assert "return 2 * x" in path.read_text()


def test_a_foreign_folder_or_file_is_refused(course, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CourseError, match=r"notes\.txt"):
        release(tmp_path / "mine", course)
    with pytest.raises(CourseError, match="is a file"):
        release(tmp_path / "file", course)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "mine", "notebooks"]


def test_an_exercise_without_an_end_is_named(tmp_path):
    notebook = small_notebook()
    cell(notebook, "answer-01-1").source = "### BEGIN SOLUTION\nx = 1"
    course = write_course(tmp_path, notebook)
    with pytest.raises(CourseError, match=r"01_small\.ipynb: no end solution statement found"):
        release(tmp_path / "student", course)
    assert not (tmp_path / "student").exists()


def test_no_level_no_release(tmp_path):
    with pytest.raises(CourseError, match="no folder of a level"):
        release(tmp_path / "student", tmp_path)


def test_the_command_says_it_in_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["release", str(tmp_path / "file")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert str(stopped.value).startswith("Error: ")
    assert "\n" not in str(stopped.value)
    assert "course.release" in subprocess.check_output([sys.executable, "-m", "course.release", "--help"], text=True)
