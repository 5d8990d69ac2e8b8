"""What every notebook of the course keeps to; a test asks for each guard, and shows that each guard fires.

A guard is a function from a notebook to sentences about what is wrong with it.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbval.plugin import find_comment_markers, find_metadata_tags

from course.execute import METADATA
from course.levels import NOTEBOOKS, answer_cells, grade_id, graded_cells

Guard = Callable[[NotebookNode], Iterator[str]]

MOST_BYTES = 200_000
ROWS = ("Goals", "You need", "Time", "Data", "Offline")
LAST_SECTIONS = ["Summary", "References"]
REASON = re.compile(r"^\s*#.*\bbecause\b.+", re.MULTILINE)
PATHS = r"(?<![\w.:/])/(?:home|root|Users|tmp|work|usr|opt|var|mnt|srv)\b(?:/|$)|\b[A-Z]:\\\\?\w|\bfile://"
ADDRESSES = r"\b0x[0-9a-fA-F]{4,}|\blocalhost\b|\b(?:\d{1,3}\.){3}\d{1,3}\b"
DATES = r"\b20\d\d-\d\d-\d\d\b|\b\d\d?:\d\d:\d\d\b"
# In what is written a duration may stand ("runs in about 10 s"); in what was put out it is another one tomorrow.
DURATIONS = r"\b\d+(?:\.\d+)?\s?(?:ns|µs|us|ms|s|sec|seconds|min|minutes)\b|\bit/s\b|[█▉▊▋▌▍▎▏]|\b\d\d?:\d\d\b"
SOLUTION = re.compile(r"### BEGIN SOLUTION\n.*\S.*\n\s*### END SOLUTION", re.DOTALL)
HIDDEN = re.compile(r"### BEGIN HIDDEN TESTS\n(.*?)### END HIDDEN TESTS", re.DOTALL)


def executed(notebook: NotebookNode) -> Iterator[str]:
    """Every code cell was run, from top to bottom, and no cell is empty."""
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    if None in counts:
        yield f"code cell {counts.index(None) + 1} has no execution count: execute the notebook"
    elif counts != list(range(1, len(counts) + 1)):
        yield "it was not run from top to bottom: execute the notebook"
    for cell in notebook.cells:
        if not cell.source.strip():
            yield f"cell {cell.id} is empty"


def widget_state(notebook: NotebookNode) -> Iterator[str]:
    """Neither the state nor a view of a widget is saved: the picture beside them is what stays."""
    kinds = {kind for output in _outputs(notebook) for kind in output.get("data", {})} | set(notebook.metadata)
    for kind in sorted(kinds):
        if "widget" in kind:
            yield f"{kind} is saved: execute the notebook with course.execute"


def large_outputs(notebook: NotebookNode) -> Iterator[str]:
    """No output is so large that the repository grows with it."""
    for cell, output in _outputs_with_cells(notebook):
        size = len(json.dumps(output).encode())
        if size > MOST_BYTES:
            yield f"cell {cell.id} has an output of {size // 1000} kB; {MOST_BYTES // 1000} are allowed"


def skipped(notebook: NotebookNode) -> Iterator[str]:
    """No cell is left out of the strict re-run without a comment that says why: # … because …"""
    for cell in notebook.cells:
        markers = [*find_comment_markers(cell.source), *find_metadata_tags(cell.metadata)]
        tags = [tag for tag in cell.metadata.get("tags", []) if tag == "skip-execution"]
        if (markers or tags) and not REASON.search(cell.source):
            yield f"cell {cell.id} is skipped or ignored without a comment that says because of what"


def machine_text(notebook: NotebookNode) -> Iterator[str]:
    """Neither text nor outputs carry a time, a path of a machine or an address."""
    written, printed = re.compile("|".join((PATHS, ADDRESSES, DATES))), re.compile(DURATIONS)
    for cell in notebook.cells:
        for text, patterns in [(cell.source, [written]), (_text(cell), [written, printed])]:
            for found in filter(None, (pattern.search(text) for pattern in patterns)):
                yield f"cell {cell.id} carries a time, a path or an address: {found[0]!r}"


def errors(notebook: NotebookNode) -> Iterator[str]:
    """Nothing went wrong and nothing warned."""
    for cell, output in _outputs_with_cells(notebook):
        if output.output_type == "error" or output.get("name") == "stderr":
            yield f"cell {cell.id} has an error or a warning as output"


def headings(notebook: NotebookNode) -> Iterator[str]:
    """One title, at the beginning, and no level left out."""
    levels = [len(marks) for marks, _ in _headings(notebook)]
    if levels[:1] != [1] or levels.count(1) != 1:
        yield "it must begin with its only heading of the first level"
    for before, (marks, title) in zip(levels, _headings(notebook)[1:], strict=False):
        if len(marks) > before + 1:
            yield f"the heading {title!r} skips a level"


def alternative_texts(notebook: NotebookNode) -> Iterator[str]:
    """Every picture says what is to be seen."""
    for cell, output in _outputs_with_cells(notebook):
        for kind in output.get("data", {}):
            if kind.startswith("image/") and not output.metadata.get(kind, {}).get("alt", "").strip():
                yield f"cell {cell.id} has a picture without alternative text: use nesskit.plots.show(…, alt=…)"
        for image in re.findall(r"<img\b[^>]*>", output.get("data", {}).get("text/html", "")):
            if not re.search(r'\balt="[^"]*\S', image):
                yield f"cell {cell.id} has a picture without alternative text: use nesskit.plots.show(…, alt=…)"
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and re.search(r"!\[\s*\]\(", cell.source):
            yield f"cell {cell.id} has a picture without alternative text"


def metadata(notebook: NotebookNode) -> Iterator[str]:
    """The kernel is called the same everywhere, and nothing else is said about the machine."""
    if notebook.metadata != METADATA:
        yield "its metadata are not those that course.execute writes"


def header(notebook: NotebookNode) -> Iterator[str]:
    """The first cell has a numbered title and a table that says whom the notebook is for, and what it takes."""
    first = notebook.cells[0].source
    if not re.match(r"# \d\d\. \S", first):
        yield "it must begin with a numbered title: # 01. …"
    for row in ROWS:
        if not re.search(rf"^\| \*\*{row}\*\* \| *[^\s|].*\|$", first, re.MULTILINE):
            yield f"the table of its header has no row **{row}**"


def sections(notebook: NotebookNode) -> Iterator[str]:
    """It ends with a summary and references."""
    if [title for marks, title in _headings(notebook) if marks == "##"][-2:] != LAST_SECTIONS:
        yield "its last sections must be Summary and References"


def exercises(notebook: NotebookNode) -> Iterator[str]:
    """Two to four, each with a heading, an answer and then a test with points, visible and hidden parts."""
    number = notebook.cells[0].source[2:4]
    titles = [title for _, title in _headings(notebook)]
    cells = [cell for cell in notebook.cells if cell.metadata.get("nbgrader")]
    count = len(answer_cells(notebook))
    if not 2 <= count <= 4:
        yield f"it has {count} exercises; there should be two to four"
    names = [f"{kind}-{number}-{index}" for index in range(1, count + 1) for kind in ("answer", "test")]
    if [grade_id(cell) for cell in cells] != names:
        yield f"its exercises must be the cells {', '.join(names)}, in this order"
        return
    for answer, test in zip(answer_cells(notebook), graded_cells(notebook), strict=True):
        yield from _exercise(answer, test, titles)


def _exercise(answer: NotebookNode, test: NotebookNode, titles: list[str]) -> Iterator[str]:
    name = grade_id(answer).removeprefix("answer-").replace("-", ".")
    points = test.metadata.nbgrader.get("points", 0)
    wanted = {"schema_version": 3, "task": False}
    wanted_answer = {**wanted, "grade": False, "locked": False, "solution": True, "grade_id": grade_id(answer)}
    wanted_test = {**wanted, "grade": True, "locked": True, "solution": False, "grade_id": grade_id(test)}
    if answer.metadata.nbgrader != wanted_answer:
        yield f"the answer of exercise {name} needs the metadata of an answer of schema 3"
    if test.metadata.nbgrader != {**wanted_test, "points": points} or points <= 0:
        yield f"the test of exercise {name} needs points and the metadata of a locked test of schema 3"
    if not SOLUTION.search(answer.source):
        yield f"the answer of exercise {name} has no ### BEGIN SOLUTION … ### END SOLUTION"
    if not any(re.fullmatch(rf"Exercise {name} — .+ \({points} points?\)", title) for title in titles):
        yield f"exercise {name} needs a heading: ### Exercise {name} — title ({points} points)"
    hidden = "".join(HIDDEN.findall(test.source))
    for kind, source in {"visible": HIDDEN.sub("", test.source), "hidden": hidden}.items():
        asserts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]
        if not asserts:
            yield f"exercise {name} has no {kind} test"
        if any(node.msg is None for node in asserts):
            yield f"exercise {name} has a {kind} test without a message that names the likely mistake"
    if f'print("Exercise {name} passed")' not in HIDDEN.sub("", test.source):
        yield f'the test of exercise {name} must end with print("Exercise {name} passed")'


EVERYWHERE: tuple[Guard, ...] = (
    executed,
    widget_state,
    large_outputs,
    skipped,
    machine_text,
    errors,
    headings,
    alternative_texts,
    metadata,
)
IN_THE_COURSE: tuple[Guard, ...] = (header, sections, exercises)


def problems(path: Path) -> list[str]:
    """Everything that is wrong with the notebook at ``path``."""
    notebook = nbformat.read(path, as_version=4)
    guards = EVERYWHERE if path.parent == NOTEBOOKS else EVERYWHERE + IN_THE_COURSE
    return [problem for guard in guards for problem in guard(notebook)]


def _outputs_with_cells(notebook: NotebookNode) -> list[tuple[NotebookNode, NotebookNode]]:
    return [(cell, output) for cell in notebook.cells for output in cell.get("outputs", [])]


def _outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for _, output in _outputs_with_cells(notebook)]


def _text(cell: NotebookNode) -> str:
    """What a cell has put out as text of any kind."""
    texts = [
        part
        for output in cell.get("outputs", [])
        for part in [output.get("text", ""), *map(str, output.get("traceback", [])), *_readable(output.get("data", {}))]
    ]
    return "\n".join(texts)


def _readable(data: NotebookNode) -> list[str]:
    shown = [str(value) for kind, value in data.items() if not kind.startswith("image/") or kind == "image/svg+xml"]
    return [re.sub(r"base64,[\w+/=]+", "", text) for text in shown]  # the pixels of a picture are no text


def _headings(notebook: NotebookNode) -> list[tuple[str, str]]:
    """(marks, title) of every heading, those in blocks of code left out."""
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    prose = re.sub(r"^```.*?^```", "", "\n".join(texts), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"^(#{1,6}) +(.*\S)", prose, re.MULTILINE)
