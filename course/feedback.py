"""What a student gets back of a notebook: one HTML file with points, the tests' messages, and formulas as MathML."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from jinja2 import pass_context
from nbconvert.exporters import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from nbgrader.utils import determine_grade

from course.levels import grade_id, graded_cells

TEMPLATE = Path(__file__).with_name("feedback.html.j2")
# What the converter does not know, in words that it does.
SPELLED = {r"\\dots\b": r"\\ldots", r"\\[bB]ig{1,2}[lr]?(?![a-zA-Z])": "", r"\\textstyle\b": ""}


@dataclass(frozen=True)
class Graded:
    """An exercise, with what it got.

    Attributes:
        name: of its test cell.
        title: what its heading says, such as "Exercise 01.1 — accuracy".
        points: what the answer got.
        maximum: what it could have got.
    """

    name: str
    title: str
    points: float
    maximum: float


@dataclass(frozen=True)
class Page:
    """What stands above the cells.

    Attributes:
        title: of the notebook.
        exercises: all of them, in order.
    """

    title: str
    exercises: tuple[Graded, ...]

    @property
    def points(self) -> float:
        """Of all exercises together."""
        return sum(exercise.points for exercise in self.exercises)

    @property
    def maximum(self) -> float:
        """What all exercises together could have got."""
        return sum(exercise.maximum for exercise in self.exercises)

    def named(self, name: str) -> Graded | None:
        """The exercise whose test is ``name``."""
        return next((exercise for exercise in self.exercises if exercise.name == name), None)


def exercise_title(name: str, course: NotebookNode) -> str:
    """What the notebook's heading says of the exercise of the test ``name``, without its points."""
    number = name.partition("-")[2].replace("-", ".")
    text = "\n".join(cell.source for cell in course.cells if cell.cell_type == "markdown")
    found = re.search(rf"^#+ +(Exercise {re.escape(number)}\b.*?)(?: \(\d+ points?\))?$", text, re.MULTILINE)
    return found[1] if found else f"Exercise {number}"


def page_of(executed: NotebookNode, course: NotebookNode) -> Page:
    """The points of a notebook that was run with its tests, ``executed``; headings come from the ``course``'s own."""
    exercises = []
    for cell in graded_cells(executed):
        points, maximum = determine_grade(cell)
        exercises.append(Graded(grade_id(cell), exercise_title(grade_id(cell), course), points or 0.0, maximum))
    title = course.cells[0].source.partition("\n")[0].lstrip("# ")
    return Page(title, tuple(sorted(exercises, key=lambda exercise: exercise.name)))


def to_html(executed: NotebookNode, page: Page) -> str:
    """The whole file."""
    exporter = _Exporter(template_name="basic", template_file=str(TEMPLATE))
    return str(exporter.from_notebook_node(executed, {"graded": page})[0])


def mathml(tex: str, block: bool) -> str:
    """A formula as browsers show it by themselves; what cannot be converted stays as it was written."""
    known = tex
    for pattern, word in SPELLED.items():
        known = re.sub(pattern, word, known)
    try:
        return str(tex2mathml(known, as_block=block))
    except MathError:
        return f"<code>{html.escape(tex)}</code>"


class _Renderer(IPythonRenderer):
    def block_math(self, body: str) -> str:
        return mathml(body, block=True)

    def inline_math(self, body: str) -> str:
        return mathml(body, block=False)

    def latex_environment(self, name: str, body: str) -> str:
        return mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", block=True)


class _Exporter(HTMLExporter):
    """nbconvert's, with formulas as MathML."""

    @pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        attachments = context.get("cell", {}).get("attachments", {})
        renderer = _Renderer(escape=False, attachments=attachments, exclude_anchor_links=True)
        render: Callable[[str], str] = MarkdownWithMath(renderer=renderer).render
        return render(source)
