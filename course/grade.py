"""Grade what students hand in: python -m course.grade SUBMITTED [GRADES].

``SUBMITTED/<student>/<level>/<notebook>.ipynb`` are run, each in a sandbox and a process of its own, as many at a time
as there are processors. ``GRADES/grades.csv`` gets a line for every notebook of the course,
``GRADES/feedback/<student>/<level>/`` what a student should see. Students who stand in ``grades.csv`` already keep
their marks, so that an interrupted grading goes on where it was.

The sandbox is bubblewrap's (:mod:`course.sandbox`). Without it (``--sandbox none``) students' code has your rights: do
that where it can harm nothing, such as a container.
"""

from __future__ import annotations

import argparse
import copy
import csv
import difflib
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from course import CourseError
from course.autograder import LOG, PAGE, POINTS, Work, run
from course.levels import NOTEBOOKS, grade_id, graded_cells, levels
from course.release import student_version
from course.sandbox import BUBBLEWRAP, NONE, check, find_fonts

GRADES = Path(__file__).parent.parent / "grades"
SECONDS = 120
MISSING, UNREADABLE, FAILED = "not handed in", "no notebook that can be read", "could not be graded: see the log"
RED, PLAIN = "\033[31m", "\033[0m"
WITHOUT = "Without a sandbox: what students wrote runs with all your rights, and can read the hidden tests."


@dataclass
class Graded:
    """What grading a student came to.

    Attributes:
        points: by "level/notebook", points by the name of the test cell.
        notes: by "level/notebook", what a teacher should know.
        unknown: what was handed in but is no notebook of the course.
        pages: by "level/notebook", the page that goes to the student.
        logs: by "level/notebook", what went wrong in grading.
    """

    points: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    pages: dict[str, Path] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)


class Course:
    """The course as its students got it and as it is graded; all that grading writes is in the folder ``place``.

    Attributes:
        tests: by "level/notebook", the notebook with its solutions and hidden tests, without outputs.
    """

    def __init__(self, place: Path, source: Path = NOTEBOOKS) -> None:
        self.place, self.fonts = place, place / "matplotlib"
        found = levels(source)
        if not found:
            raise CourseError(f"{source} has no folder of a level, such as 1_foundations, with notebooks in it")
        self.tests: dict[str, NotebookNode] = {}
        for path in (path for notebooks in found.values() for path in notebooks):
            student_version(path)  # which refuses exercises that are not well-formed
            notebook = self.tests[f"{path.parent.name}/{path.stem}"] = nbformat.read(path, as_version=4)
            for cell in notebook.cells:
                if cell.cell_type == "code":
                    cell.outputs, cell.execution_count = [], None
            nbformat.write(notebook, _folder(place / "course" / path.parent.name) / path.name)
        find_fonts(self.fonts)

    def maxima(self, name: str) -> dict[str, float]:
        """The points of a notebook's exercises, by the name of the test cell."""
        return {grade_id(cell): float(cell.metadata.nbgrader.points) for cell in graded_cells(self.tests[name])}

    def collect(self, folder: Path, sandbox: str, seconds: int) -> tuple[Graded, dict[str, Work]]:
        """What the student whose levels lie in ``folder`` has handed in, ready to be graded."""
        graded, works = Graded(), dict[str, Work]()
        for path in sorted(folder.glob("**/*.ipynb")):
            name = str(path.relative_to(folder).with_suffix(""))
            if ".ipynb_checkpoints" in path.parts:
                continue
            if name not in self.tests or path.is_symlink():
                graded.unknown.append(f"{name}.ipynb{_did_you_mean(name, self.tests)}")
                continue
            place = Path(tempfile.mkdtemp(dir=self.place))
            try:
                notebook = restored(nbformat.read(path, as_version=4), self.tests[name])
                nbformat.write(notebook, place / path.name)
            except Exception:  # whatever a student's file may hold
                graded.notes[name] = UNREADABLE
                continue
            course = self.place / "course" / f"{name}.ipynb"
            works[name] = Work(place / path.name, course, place, self.fonts, sandbox, seconds)
        for name in self.tests:
            if name not in works:
                graded.notes.setdefault(name, MISSING)
        return graded, works

    def finish(self, graded: Graded, works: dict[str, Work]) -> Graded:
        """What came out of ``works``."""
        for name, work in works.items():
            try:
                graded.points[name] = json.loads((work.folder / POINTS).read_text(encoding="utf-8"))
                graded.pages[name] = work.folder / PAGE
            except FileNotFoundError:
                graded.notes[name] = FAILED
                log = work.folder / LOG
                graded.logs[name] = log.read_text(encoding="utf-8") if log.is_file() else "the process was ended\n"
        return graded


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _run_apart(work: Work) -> None:
    """Grade a notebook in a process of its own; where its time is up, it ends and has failed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["course.autograder", "course.release"])
    process = context.Process(target=run, args=(work,))
    process.start()
    cells = len(nbformat.read(work.submitted, as_version=4).cells)
    process.join(60 + 2 * work.seconds * cells)
    process.kill()
    process.join()


def restored(submitted: NotebookNode, released: NotebookNode) -> NotebookNode:
    """The student's notebook with what it is graded by as it was released: test cells, their metadata and points.

    Of copies of a test cell the last one counts; one that was removed stands after its answer again, or at the end.
    Outputs go.
    """
    originals = {grade_id(cell): cell for cell in released.cells if grade_id(cell)}
    left, cells = dict(originals), list[NotebookNode]()
    for cell in reversed(submitted.cells):
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
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
    sandbox: str = BUBBLEWRAP,
) -> Path:
    """Grade every student in ``submitted``; returns the path of ``grades.csv``.

    Args:
        submitted: holds a folder per student, which holds a folder per level.
        grades: gets ``grades.csv`` and ``feedback/``.
        source: the folder of the levels, with solutions and hidden tests.
        seconds: limit a cell.
        jobs: notebooks at a time; by default one a processor, four at most.
        sandbox: "bubblewrap", or "none" to run what students wrote with all rights of this process.

    Raises:
        CourseError: there is nobody to grade, ``grades.csv`` was not written by this course, or there is no sandbox.
    """
    students = sorted(path for path in submitted.glob("*") if path.is_dir() and not path.name.startswith("."))
    if not students:
        raise CourseError(f"{submitted} holds no student's folder: it must be SUBMITTED/<student>/<level>/<notebook>")
    check(sandbox)
    with tempfile.TemporaryDirectory(prefix="grading-") as temporary:
        course = Course(Path(temporary), source)
        table = Table(grades / "grades.csv", course)
        if sandbox == NONE:
            say(f"{RED}{WITHOUT}{PLAIN}")
        for student in [path for path in students if path.name in table.students]:
            say(f"{student.name}: graded already, kept (take the lines out of {table.path} to grade anew)")
            students.remove(student)
        with ThreadPoolExecutor(jobs or min(os.cpu_count() or 1, 4)) as pool:
            waiting: dict[str, tuple[Graded, dict[str, Work], list[Future[None]]]] = {}
            for folder in students:
                graded, works = course.collect(folder, sandbox, seconds)
                waiting[folder.name] = graded, works, [pool.submit(_run_apart, work) for work in works.values()]
            for name, (graded, works, running) in waiting.items():  # one after another, as they were begun
                for done in running:
                    done.result()
                _keep(name, course.finish(graded, works), grades, table)
    return table.path


def _keep(student: str, graded: Graded, grades: Path, table: Table) -> None:
    """Write down what came out for ``student``, and say it."""
    feedback = grades / "feedback" / student
    if feedback.exists():
        say(f"{student}: the feedback of an earlier grading is replaced")
        shutil.rmtree(feedback)
    for name, page in graded.pages.items():
        shutil.copy(page, _folder(feedback / Path(name).parent) / f"{Path(name).name}.html")
    points, maximum = table.add(student, graded)
    missing = list(graded.notes.values()).count(MISSING)
    rest = f" ({missing} of {len(table.course.tests)} notebooks not handed in)" if missing else ""
    say(f"{student}: {points:g} of {maximum:g} points{rest}")
    for name in graded.unknown:
        say(f"{student}: not graded, since the course has no such notebook: {name}")
    if graded.logs:
        log = _folder(grades / "logs") / f"{student}.log"
        log.write_text("\n".join(f"{name}:\n{text}" for name, text in graded.logs.items()), encoding="utf-8")
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
        exercises = max(len(course.maxima(name)) for name in course.tests)
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
        """Append a student's lines; returns all points and what they could be in the notebooks that were handed in."""
        rows = list(self._rows(student, graded))
        new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, self.columns, restval="")
            if new:
                writer.writeheader()
            writer.writerows(rows)
        self.students.add(student)
        handed_in = [row for row in rows if row["note"] != MISSING]
        return sum(float(row["sum"]) for row in handed_in), sum(float(row["max"]) for row in handed_in)

    def _rows(self, student: str, graded: Graded) -> Iterator[dict[str, str]]:
        for name in self.course.tests:
            level, notebook = name.split("/")
            maxima = self.course.maxima(name)
            points = [graded.points.get(name, {}).get(test, 0.0) for test in maxima]
            yield {
                "student": student,
                "level": level,
                "notebook": notebook,
                **{f"exercise_{number}": f"{value:g}" for number, value in enumerate(points, 1)},
                "sum": f"{sum(points):g}",
                "max": f"{sum(maxima.values()):g}",
                "note": graded.notes.get(name, ""),
            }


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
    parser.add_argument("--jobs", type=int, help="notebooks at a time (default: one a processor, four at most)")
    parser.add_argument("--sandbox", default=BUBBLEWRAP, help="bubblewrap, or none (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        options = {"seconds": arguments.seconds, "jobs": arguments.jobs, "sandbox": arguments.sandbox}
        path = grade(arguments.submitted, arguments.grades, **options)
    except CourseError as error:
        sys.exit(f"Error: {error}.")
    say(f"Marks are in {path}, what to give back in {path.parent / 'feedback'}")


if __name__ == "__main__":
    main()
