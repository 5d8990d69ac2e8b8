"""Grade one student with nbgrader, in a process of its own: python -m course.autograder, which course.grade starts.

A course folder of nbgrader's lies in a temporary place: ``source/<level>/`` or ``submitted/student/<level>/``, and the
gradebook. All that a student's code breaks is in there.
"""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbconvert.preprocessors import ClearMetadataPreprocessor
from nbformat import NotebookNode
from nbformat.v4 import new_output
from nbgrader.api import Gradebook
from nbgrader.converters import Autograde, GenerateAssignment, GenerateFeedback
from nbgrader.converters.base import NbGraderException
from nbgrader.coursedir import CourseDirectory
from nbgrader.preprocessors import CheckCellMetadata, LimitOutput, SaveAutoGrades
from nbgrader.preprocessors import Execute as NbgraderExecute
from nbgrader.utils import is_grade
from traitlets.config import Config

STUDENT = "student"  # everybody's name in the course folder of his own
RESULT = "result.json"
MOST_OUTPUT = 200_000  # characters of a cell; what a loop prints beyond is dropped
MOST_DEATHS = 20  # of kernels, in one notebook
BROKEN = (DeadKernelError, CellTimeoutError)


class Execute(NbgraderExecute):
    """nbgrader's execution, and what one cell breaks stays that cell's loss.

    Where a cell ends the kernel, or does not stop when its time is up, it fails, a new kernel takes over, and the
    earlier cells that worked run once more in it.
    """

    deaths = 0

    def preprocess_cell(self, cell: NotebookNode, resources: Any, index: int) -> tuple[NotebookNode, Any]:
        """Run ``cell``, whatever it does."""
        try:
            super().preprocess_cell(cell, resources, index)
        except BROKEN as error:
            self._fail(cell, error)
            self._revive(index)
        if is_grade(cell):
            for output in cell.outputs:
                if output.output_type == "stream":
                    output.name = "stdout"  # nbgrader gives no points where a warning is on stderr
        return cell, resources

    def on_cell_executed(self, **kwargs: Any) -> None:
        """Take a call of exit(), which ends the kernel a moment later, for what it is."""
        super().on_cell_executed(**kwargs)
        if any(payload["source"] == "ask_exit" for payload in kwargs["execute_reply"]["content"].get("payload", [])):
            raise DeadKernelError("exit() ended the kernel")

    def output(self, outs: list[NotebookNode], *args: Any) -> Any:
        """Keep what a cell puts out, up to a limit."""
        printed = sum(len(out.text) for out in outs if out.output_type == "stream")
        return super().output(outs, *args) if printed < MOST_OUTPUT else None

    def _fail(self, cell: NotebookNode, error: Exception) -> None:
        reason = (
            "The kernel died while this cell ran (an exit, or no memory left)."
            if isinstance(error, DeadKernelError)
            else "This cell did not stop when its time was up."
        )
        cell.outputs.append(new_output("error", ename=type(error).__name__, evalue=reason, traceback=[reason]))

    def _revive(self, index: int) -> None:
        """A new kernel in which the cells before ``index`` have run, but for those that fail."""
        while True:
            self.deaths += 1
            if self.deaths > MOST_DEATHS:
                raise NbGraderException(f"the kernel died {MOST_DEATHS} times")
            self._cleanup_kernel()
            self.km = self.create_kernel_manager()
            self.start_new_kernel()
            self.start_new_kernel_client()
            for earlier, cell in enumerate(self.nb.cells[:index]):
                if cell.cell_type != "code" or any(output.output_type == "error" for output in cell.outputs):
                    continue
                try:
                    self.execute_cell(copy.deepcopy(cell), earlier)
                except BROKEN as error:
                    self._fail(cell, error)
                    break
                finally:
                    self.nb.cells[earlier] = cell
            else:
                return


def configure(course: Path, seconds: int) -> Config:
    """The settings of nbgrader in the folder ``course``, with a limit of ``seconds`` a cell."""
    config = Config()
    config.CourseDirectory.root = str(course)
    config.Execute.timeout = seconds
    config.Autograde.autograde_preprocessors = [
        Execute,
        ClearMetadataPreprocessor,
        LimitOutput,
        SaveAutoGrades,
        CheckCellMetadata,
    ]
    return config


def prepare(course: Path) -> None:
    """Make the gradebook and ``release/`` from the levels in ``source/``."""
    config = configure(course, 0)
    for level in sorted(path.name for path in (course / "source").iterdir()):
        directory = CourseDirectory(config=config, assignment_id=level)
        GenerateAssignment(coursedir=directory, config=config).start()


def grade(course: Path, seconds: int) -> None:
    """Grade what lies in ``submitted/``; points go to ``result.json``, and HTML to ``feedback/``."""
    config = configure(course, seconds)
    result: dict[str, dict[str, float]] = {}
    for path in sorted((course / "submitted" / STUDENT).glob("*/*.ipynb")):
        level, notebook = path.parent.name, path.stem
        directory = CourseDirectory(config=config, assignment_id=level, student_id=STUDENT, notebook_id=notebook)
        try:
            Autograde(coursedir=directory, config=config).start()
            GenerateFeedback(coursedir=directory, config=config).start()
            with Gradebook(directory.db_url) as gradebook:
                grades = gradebook.find_submission_notebook(notebook, level, STUDENT).grades
                result[f"{level}/{notebook}"] = {grade.name: float(grade.score) for grade in grades}
        except NbGraderException as error:  # nbgrader has told why
            directory.log.error("%s/%s: %s", level, notebook, error)
    (course / RESULT).write_text(json.dumps(result), encoding="utf-8")


def main() -> None:
    """Prepare a course folder, or grade the student in it."""
    parser = argparse.ArgumentParser(prog="python -m course.autograder", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("step", choices=["prepare", "grade"])
    parser.add_argument("course", type=Path)
    parser.add_argument("--seconds", type=int, default=120)
    arguments = parser.parse_args()
    if arguments.step == "prepare":
        prepare(arguments.course)
    else:
        grade(arguments.course, arguments.seconds)


if __name__ == "__main__":
    main()
