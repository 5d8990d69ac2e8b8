"""Run one submitted notebook with its tests, in a process of its own that :mod:`course.grade` starts.

The student's code runs in a kernel behind walls (:mod:`course.sandbox`). Out here the cells are handed to it one by
one, so that a test is inside no earlier than it is run, and points are counted from what comes back.
"""

from __future__ import annotations

import ast
import copy
import json
import logging
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbclient.util import run_sync
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_output
from nbgrader.preprocessors import Execute as NbgraderExecute
from nbgrader.utils import is_grade

from course.closed import REFUSED, checksum
from course.feedback import page_of, to_html
from course.levels import answer_cells, grade_id
from course.needed import needed
from course.sandbox import SandboxedKernel

MOST_OUTPUT = 200_000  # characters of a cell; what a loop prints beyond is dropped
MOST_DEATHS = 20  # of kernels, in one notebook
BROKEN = (DeadKernelError, CellTimeoutError)
PAGE, POINTS, LOG = "feedback.html", "points.json", "log.txt"
GUARD = "__import__('importlib').import_module('course.closed')"


@dataclass(frozen=True)
class Work:
    """A notebook to grade.

    Attributes:
        submitted: the student's notebook, with the course's own tests in it.
        course: the notebook with solutions.
        folder: gets points, the page of feedback and a log.
        fonts: see :func:`course.sandbox.find_fonts`.
        sandbox: "bubblewrap" or "none".
        seconds: limit a cell.
    """

    submitted: Path
    course: Path
    folder: Path
    fonts: Path
    sandbox: str
    seconds: int


class GradingError(RuntimeError):
    """A notebook that cannot be graded."""


class Execute(NbgraderExecute):
    """nbgrader's execution, and what one cell breaks stays that cell's loss.

    Where a cell ends the kernel, or does not stop when its time is up, it fails, a new kernel takes over, and the
    earlier cells that worked run once more in it. What is not needed is not run.
    """

    def __init__(self, work: Work, course: NotebookNode, **options: Any) -> None:
        super().__init__(timeout=work.seconds, kernel_name="python3", shutdown_kernel="immediate", **options)
        self.extra_arguments = ["--HistoryManager.hist_file=:memory:", "--ext=course.closed"]
        self.work, self.deaths = work, 0
        code = [cell for cell in course.cells if cell.cell_type == "code" and cell.source.strip()]
        self.story = [cell.source for cell in code if not grade_id(cell)]
        self.answers = {_exercise(cell): _defined(cell.source) for cell in answer_cells(course)}

    def preprocess(self, nb: NotebookNode, resources: Any = None, **options: Any) -> tuple[NotebookNode, Any]:
        """Run the notebook."""
        self.sources = self._needed(nb)
        return super().preprocess(nb, resources, **options)

    def create_kernel_manager(self) -> SandboxedKernel:
        """A kernel behind walls."""
        folder = Path(
            tempfile.mkdtemp(prefix="k", dir=self.work.folder.parent)
        )  # the address of a socket must be short
        self.km = SandboxedKernel(
            kernel_name=self.kernel_name,
            sandbox=self.work.sandbox,
            folder=folder,
            fonts=self.work.fonts,
            transport="ipc",
            connection_file=str(folder / "kernel.json"),
        )
        return self.km

    def preprocess_cell(self, cell: NotebookNode, resources: Any, index: int) -> tuple[NotebookNode, Any]:
        """Run ``cell``, whatever it does."""
        test = is_grade(cell)
        try:
            if test:
                self._begin(cell, index)
            self._execute(cell, index)
            if test:
                self._end(cell, index)
        except BROKEN as error:
            self._fail(cell, error)
            self._revive(index)
        if test:
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

    def _needed(self, nb: NotebookNode) -> dict[int, str]:
        """What to run, by place of the cell: everything, where the student has changed more than the answers."""
        code = [index for index, cell in enumerate(nb.cells) if cell.cell_type == "code" and cell.source.strip()]
        sources = [nb.cells[index].source for index in code]
        exercises = [place for place, index in enumerate(code) if grade_id(nb.cells[index])]
        self.story_only = [sources[place] for place in range(len(code)) if place not in exercises] == self.story
        if self.story_only:
            sources = needed(sources, exercises)
        return dict(zip(code, sources, strict=True))

    def _execute(self, cell: NotebookNode, index: int) -> None:
        """Run what is needed of ``cell``, which keeps its source."""
        if wanted := self.sources.get(index):
            source, cell.source = cell.source, wanted
            try:
                self.execute_cell(cell, index)
            finally:
                cell.source = source

    def _begin(self, test: NotebookNode, index: int) -> None:
        """Close the library to the student's functions."""
        trusted = {*self.story, *(cell.source for cell in self.nb.cells if is_grade(cell))}
        if self.story_only:
            trusted |= {source for place, source in self.sources.items() if not grade_id(self.nb.cells[place])}
        released = sorted(map(checksum, trusted))
        call = f"{GUARD}.begin({_exercise(test)!r}, {self.answers.get(_exercise(test), [])!r}, {released!r})"
        self._aside(call, index)

    def _end(self, test: NotebookNode, index: int) -> None:
        """Open it again; what was refused, and a kernel that does not answer as it should, cost the exercise."""
        token = secrets.token_hex(16)
        _, found, refused = self._aside(f"{GUARD}.end({token!r}, {_exercise(test)!r})", index).partition(token)
        sentences = json.loads(refused) if found else ["The kernel was changed so that tests cannot be trusted."]
        sentences += [output.data[REFUSED] for output in test.outputs if REFUSED in output.get("data", {})]
        test.outputs = [output for output in test.outputs if REFUSED not in output.get("data", {})]
        if sentences and not any(sentences[0] in output.get("evalue", "") for output in test.outputs):
            test.outputs.append(new_output("error", ename="ClosedError", evalue=sentences[0], traceback=sentences[:1]))

    def _aside(self, source: str, index: int) -> str:
        """What ``source`` prints in the kernel; the cell at ``index`` stays as it is."""
        aside, cell = new_code_cell(source), self.nb.cells[index]
        try:
            self.execute_cell(aside, index, store_history=False)
        finally:
            self.nb.cells[index] = cell
        return "".join(output.text for output in aside.outputs if output.output_type == "stream")

    def _fail(self, cell: NotebookNode, error: Exception) -> None:
        reason = (
            "The kernel died while this cell ran (an exit, or no memory left)."
            if isinstance(error, DeadKernelError)
            else "This cell did not stop when its time was up."
        )
        if self.km.watch is not None:
            reason = " ".join([reason, self.km.watch.reason]).strip()
        cell.outputs.append(
            new_output(
                "error", ename=type(error).__name__, evalue=reason, traceback=[f"{type(error).__name__}: {reason}"]
            )
        )

    def _revive(self, index: int) -> None:
        """A new kernel in which the needed cells before ``index`` have run, but for those that fail."""
        while True:
            self.deaths += 1
            if self.deaths > MOST_DEATHS:
                raise GradingError(f"the kernel died {MOST_DEATHS} times")
            self._cleanup_kernel()
            self.km = self.create_kernel_manager()
            self.start_new_kernel()
            self.start_new_kernel_client()
            for earlier, cell in enumerate(self.nb.cells[:index]):
                failed = any(output.output_type == "error" for output in cell.get("outputs", []))
                if failed:
                    continue
                try:
                    self._execute(copy.deepcopy(cell), earlier)
                except BROKEN as error:
                    self._fail(cell, error)
                    break
                finally:
                    self.nb.cells[earlier] = cell
            else:
                return

    async def _async_cleanup_kernel(self) -> None:
        folder = self.km.folder
        await super()._async_cleanup_kernel()
        shutil.rmtree(folder, ignore_errors=True)

    _cleanup_kernel = run_sync(_async_cleanup_kernel)


def run(work: Work) -> None:
    """Grade a notebook: points, feedback and log go to the folder of ``work``."""
    logging.basicConfig(filename=work.folder / LOG, level=logging.WARNING, force=True)
    try:
        submitted, course = (nbformat.read(path, as_version=4) for path in (work.submitted, work.course))
        executed, _ = Execute(work, course).preprocess(submitted, {"metadata": {}})
        page = page_of(executed, course)
        (work.folder / PAGE).write_text(to_html(executed, page), encoding="utf-8")
        points = {exercise.name: exercise.points for exercise in page.exercises}
        (work.folder / POINTS).write_text(json.dumps(points), encoding="utf-8")
    except Exception:
        logging.exception("%s could not be graded", work.submitted.stem)
        raise SystemExit(1) from None


def _exercise(cell: NotebookNode) -> str:
    """``01.1`` for answer-01-1 and test-01-1."""
    return grade_id(cell).partition("-")[2].replace("-", ".")


def _defined(source: str) -> list[str]:
    return [node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
