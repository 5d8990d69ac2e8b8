"""Grade what students hand in: python -m course.grade SUBMITTED [GRADES].

``SUBMITTED/<student>/<level>/<notebook>.ipynb`` are run with nbgrader in a temporary folder. ``GRADES/grades.csv`` gets
a line for every notebook of the course, ``GRADES/feedback/<student>/<level>/`` what a student should see. Students who
stand in ``grades.csv`` already keep their marks, so that an interrupted grading goes on where it was.

Grading runs the students' code with your rights: do it where it can harm nothing, such as a container.
"""

from __future__ import annotations

import argparse
import copy
import csv
import difflib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course import CourseError
from course.autograder import RESULT
from course.autograder import STUDENT as NAME
from course.levels import NOTEBOOKS, grade_id, graded_cells, levels

GRADES = Path(__file__).parent.parent / "grades"
SECONDS = 120
MISSING, UNREADABLE, FAILED = "not handed in", "no notebook that can be read", "could not be graded: see the log"


@dataclass
class Graded:
    """What grading a student came to.

    Attributes:
        points: by "level/notebook", points by the name of the test cell.
        notes: by "level/notebook", what a teacher should know.
        unknown: what was handed in but is no notebook of the course.
        feedback: a folder that goes to the student.
        log: what nbgrader said.
    """

    points: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    feedback: Path | None = None
    log: str = ""


class Course:
    """The course as a student got it, in nbgrader's own terms, in the folder ``place``.

    Attributes:
        released: the student's version of each notebook, by "level/notebook".
    """

    def __init__(self, place: Path, source: Path = NOTEBOOKS) -> None:
        self.place = place
        found = levels(source)
        if not found:
            raise CourseError(f"{source} has no folder of a level, such as 1_foundations, with notebooks in it")
        for level, notebooks in found.items():
            (place / "source" / level).mkdir(parents=True)
            for notebook in notebooks:
                shutil.copy(notebook, place / "source" / level)
        done = _autograder("prepare", place)
        if done.returncode:
            raise CourseError(f"nbgrader cannot make a student's version: {_last_line(done)}")
        self.released: dict[str, NotebookNode] = {
            f"{path.parent.name}/{path.stem}": nbformat.read(path, as_version=4)
            for path in sorted((place / "release").glob("*/*.ipynb"))
        }

    def maxima(self, name: str) -> dict[str, float]:
        """The points of a notebook's exercises, by the name of the test cell."""
        cells = graded_cells(self.released[name])
        return {grade_id(cell): float(cell.metadata.nbgrader.points) for cell in cells}

    def grade(self, folder: Path, seconds: int = SECONDS) -> Graded:
        """Grade the student whose levels lie in ``folder``, with a limit of ``seconds`` a cell."""
        graded = Graded()
        place = Path(tempfile.mkdtemp(dir=self.place))
        shutil.copy(self.place / "gradebook.db", place)
        for path in sorted(folder.glob("**/*.ipynb")):
            name = str(path.relative_to(folder).with_suffix(""))
            if ".ipynb_checkpoints" in path.parts:
                continue
            if name not in self.released or path.is_symlink():
                graded.unknown.append(f"{name}.ipynb{_did_you_mean(name, self.released)}")
                continue
            try:
                notebook = restored(nbformat.read(path, as_version=4), self.released[name])
                to = place / "submitted" / NAME / f"{name}.ipynb"
                to.parent.mkdir(parents=True, exist_ok=True)
                nbformat.write(notebook, to)
            except Exception:  # whatever a student's file may hold
                graded.notes[name] = UNREADABLE
        cells = sum(len(notebook.cells) for notebook in self.released.values())
        done = _autograder("grade", place, "--seconds", str(seconds), timeout=600 + seconds * cells)
        result = json.loads((place / RESULT).read_text(encoding="utf-8")) if (place / RESULT).is_file() else {}
        for name in self.released:
            there = (place / "submitted" / NAME / f"{name}.ipynb").is_file()
            graded.points[name] = result.get(name) or {}
            if not there:
                graded.notes.setdefault(name, MISSING)
            elif name not in result:
                graded.notes[name] = FAILED
        graded.feedback, graded.log = place / "feedback" / NAME, done.stderr
        return graded


def restored(submitted: NotebookNode, released: NotebookNode) -> NotebookNode:
    """The student's notebook with what it is graded by as it was released: test cells, their metadata and points.

    Of copies of a test cell the last one counts; one that was removed stands after its answer again, or at the end.
    nbgrader puts the hidden tests back.
    """
    originals = {grade_id(cell): cell for cell in released.cells if grade_id(cell)}
    left, cells = dict(originals), list[NotebookNode]()
    for cell in reversed(submitted.cells):
        original = left.pop(grade_id(cell), None)
        cell.metadata.pop("nbgrader", None)
        if original is not None and original.metadata.nbgrader.locked:
            cell = copy.deepcopy(original)
        elif original is not None:
            cell.metadata.nbgrader = original.metadata.nbgrader
        cells.insert(0, cell)
    names = list(originals)
    for name, original in left.items():
        if original.metadata.nbgrader.locked:
            before = names[max(names.index(name) - 1, 0)]
            places = [index for index, cell in enumerate(cells) if grade_id(cell) == before]
            cells.insert(places[0] + 1 if places else len(cells), copy.deepcopy(original))
    return nbformat.v4.new_notebook(cells=cells, metadata=released.metadata)


def grade(
    submitted: Path,
    grades: Path = GRADES,
    source: Path = NOTEBOOKS,
    seconds: int = SECONDS,
    jobs: int | None = None,
) -> Path:
    """Grade every student in ``submitted``; returns the path of ``grades.csv``.

    Args:
        submitted: holds a folder per student, which holds a folder per level.
        grades: gets ``grades.csv`` and ``feedback/``.
        source: the folder of the levels, with solutions and hidden tests.
        seconds: limit a cell.
        jobs: students at a time; by default one a processor, four at most.

    Raises:
        CourseError: there is nobody to grade, or ``grades.csv`` was not written by this course.
    """
    students = sorted(path for path in submitted.glob("*") if path.is_dir() and not path.name.startswith("."))
    if not students:
        raise CourseError(f"{submitted} holds no student's folder: it must be SUBMITTED/<student>/<level>/<notebook>")
    with tempfile.TemporaryDirectory(prefix="grading-") as temporary:
        course = Course(Path(temporary), source)
        table = Table(grades / "grades.csv", course)
        for student in [path for path in students if path.name in table.students]:
            say(f"{student.name}: graded already, kept (take the lines out of {table.path} to grade anew)")
            students.remove(student)
        with ThreadPoolExecutor(jobs or min(os.cpu_count() or 1, 4)) as pool:
            work = {pool.submit(course.grade, folder, seconds): folder.name for folder in students}
            for done in as_completed(work):
                _keep(work[done], done.result(), grades, table)
    return table.path


def _keep(student: str, graded: Graded, grades: Path, table: Table) -> None:
    """Write down what came out for ``student``, and say it."""
    feedback = grades / "feedback" / student
    if feedback.exists():
        say(f"{student}: the feedback of an earlier grading is replaced")
        shutil.rmtree(feedback)
    if graded.feedback is not None and graded.feedback.is_dir():
        shutil.copytree(graded.feedback, feedback)
    points, maximum = table.add(student, graded)
    say(f"{student}: {points:g} of {maximum:g} points")
    for name in graded.unknown:
        say(f"{student}: not graded, since the course has no such notebook: {name}")
    if FAILED in graded.notes.values():
        log = grades / "logs" / f"{student}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(graded.log, encoding="utf-8")
    for name, note in graded.notes.items():
        if note != MISSING:
            say(f"{student}: {name}: {note}")


class Table:
    """``grades.csv``: a line per student and notebook, appended when a student is done.

    Attributes:
        students: who stands in it.
    """

    def __init__(self, path: Path, course: Course) -> None:
        self.path, self.course = path, course
        exercises = max(len(course.maxima(name)) for name in course.released)
        numbered = [f"exercise_{number + 1}" for number in range(exercises)]
        self.columns = ["student", "level", "notebook", *numbered, "sum", "max", "note"]
        self.students: set[str] = set()
        if path.exists():
            with path.open(newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream)
                if reader.fieldnames != self.columns:
                    raise CourseError(f"{path} has other columns than this course: name another folder (GRADES=…)")
                self.students = {row["student"] for row in reader}

    def add(self, student: str, graded: Graded) -> tuple[float, float]:
        """Append a student's lines; returns all points and what they could be."""
        rows = list(self._rows(student, graded))
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, self.columns, restval="")
            if new:
                writer.writeheader()
            writer.writerows(rows)
        self.students.add(student)
        return sum(float(row["sum"]) for row in rows), sum(float(row["max"]) for row in rows)

    def _rows(self, student: str, graded: Graded) -> Iterator[dict[str, str]]:
        for name in self.course.released:
            level, notebook = name.split("/")
            maxima = self.course.maxima(name)
            points = [graded.points[name].get(test, 0.0) for test in maxima]
            yield {
                "student": student,
                "level": level,
                "notebook": notebook,
                **{f"exercise_{number}": f"{value:g}" for number, value in enumerate(points, 1)},
                "sum": f"{sum(points):g}",
                "max": f"{sum(maxima.values()):g}",
                "note": graded.notes.get(name, ""),
            }


def _autograder(step: str, place: Path, *options: str, timeout: int = 600) -> subprocess.CompletedProcess[str]:
    """Run ``course.autograder`` in a process of its own; where its time is up, it ends and has failed."""
    command = [sys.executable, "-m", "course.autograder", step, str(place), *options]
    paths = [str(Path(__file__).parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        "OMP_NUM_THREADS": "1",  # several students at a time
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # nbgrader runs `alembic`
        "PYTHONPATH": os.pathsep.join(paths),
    }
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", "it did not end in time")


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"])[-1]


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {nearest[0]}.ipynb?)" if nearest else ""


def say(text: str) -> None:
    """Tell the teacher."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Grade the folder that is named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m course.grade", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("submitted", type=Path, help="folder with SUBMITTED/<student>/<level>/<notebook>.ipynb")
    parser.add_argument("grades", type=Path, nargs="?", default=GRADES, help="folder for grades.csv and feedback/")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="limit a cell (default: %(default)s)")
    parser.add_argument("--jobs", type=int, help="students at a time (default: one a processor, four at most)")
    arguments = parser.parse_args()
    try:
        path = grade(arguments.submitted, arguments.grades, seconds=arguments.seconds, jobs=arguments.jobs)
    except CourseError as error:
        sys.exit(f"Error: {error}.")
    say(f"Marks are in {path}, what to give back in {path.parent / 'feedback'}")


if __name__ == "__main__":
    main()
