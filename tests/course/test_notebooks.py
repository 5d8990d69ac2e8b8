"""Guards over every notebook, and for each guard a notebook that was built to break it."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_output
from small_course import HEADER, cell, small_notebook

from course.guards import EVERYWHERE, IN_THE_COURSE, exercises, problems
from course.levels import all_notebooks

GUARDS = {guard.__name__: guard for guard in EVERYWHERE + IN_THE_COURSE}
PICTURE = {"image/png": "iVBOR", "text/plain": "a line"}
VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.mark.parametrize("path", all_notebooks(), ids=lambda path: path.stem)
def test_a_notebook_keeps_to_the_rules(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    assert problems(path) == []


def test_a_good_notebook_passes_every_guard():
    assert [problem for guard in GUARDS.values() for problem in guard(small_notebook())] == []


def put_out(text="", **data):
    """The story's cell puts this out."""
    output = new_output("stream", name="stdout", text=text) if text else new_output("display_data", data=data["data"])
    return lambda notebook: notebook.cells[5].outputs.append(output)


def write(text, kind=new_markdown_cell):
    """A cell before the last one."""

    def change(notebook):
        notebook.cells.insert(-1, kind(text, id="new", **({"execution_count": 7} if kind is new_code_cell else {})))

    return change


def in_header(old, new):
    return lambda notebook: notebook.cells[0].update(source=HEADER.replace(old, new))


def in_cell(grade_id, old, new):
    def change(notebook):
        found = cell(notebook, grade_id)
        assert old in found.source
        found.source = found.source.replace(old, new)

    return change


def in_metadata(of, **values):
    return lambda notebook: cell(notebook, of).metadata.nbgrader.update(values)


def skip(tag="", comment=""):
    def change(notebook):
        story = notebook.cells[5]
        story.metadata.tags = [tag] if tag else []
        story.source = f"{comment}\n{story.source}"

    return change


TIMES = "carries a time, a path or an address"
BROKEN = [
    ("executed", lambda nb: nb.cells[1].update(execution_count=None), "code cell 1 has no execution count"),
    ("executed", lambda nb: nb.cells[1].update(execution_count=9), "not run from top to bottom"),
    ("executed", write("", new_code_cell), "is empty"),
    ("widget_state", lambda nb: nb.metadata.update(widgets={}), "widgets is saved"),
    ("widget_state", put_out(data={VIEW: {"model_id": "1"}}), "widget-view"),
    ("large_outputs", put_out("many words " * 20_000), "an output of 220 kB"),
    ("skipped", skip("nbval-skip"), "skipped or ignored"),
    ("skipped", skip("nbval-ignore-output"), "skipped or ignored"),
    ("skipped", skip("raises-exception"), "skipped or ignored"),
    ("skipped", skip("skip-execution"), "skipped or ignored"),
    ("skipped", skip(comment="# NBVAL_SKIP"), "skipped or ignored"),
    ("skipped", skip(comment="# NBVAL_IGNORE_OUTPUT"), "skipped or ignored"),
    ("machine_text", put_out("done at 12:31:07"), TIMES),
    ("machine_text", put_out("at 12:31"), TIMES),
    ("machine_text", put_out("trained in 3.2 s"), TIMES),
    ("machine_text", put_out("10 ms per step"), TIMES),
    ("machine_text", put_out("30%|███ | 3/10, 5.0 it/s"), TIMES),
    ("machine_text", put_out("2026-02-21"), TIMES),
    ("machine_text", put_out("saved in /home/anna/runs"), TIMES),
    ("machine_text", put_out(data={"text/plain": "PosixPath('/tmp/x1')"}), TIMES),
    ("machine_text", put_out(data={"text/html": "<a href='file://x'>"}), TIMES),
    ("machine_text", put_out("<Line2D object at 0x7f3a2c>"), TIMES),
    ("machine_text", put_out("http://localhost:8888/lab"), TIMES),
    ("machine_text", put_out("served on 192.168.1.17"), TIMES),
    ("machine_text", write("Open C:\\Users\\anna."), TIMES),
    ("machine_text", write("Written on 2026-02-21."), TIMES),
    ("machine_text", write("folder = '/Users/anna'", new_code_cell), TIMES),
    ("errors", lambda nb: nb.cells[5].outputs.append(new_output("stream", name="stderr", text="oh")), "a warning"),
    ("errors", lambda nb: nb.cells[5].outputs.append(new_output("error", ename="E", evalue="")), "an error"),
    ("headings", write("# Another title"), "only heading of the first level"),
    ("headings", lambda nb: nb.cells.pop(0), "only heading of the first level"),
    ("headings", write("## End\n\n#### Deep"), "the heading 'Deep' skips a level"),
    ("alternative_texts", put_out(data=PICTURE), "a picture without alternative text"),
    ("alternative_texts", write("![](figure.png)"), "a picture without alternative text"),
    ("metadata", lambda nb: nb.metadata.kernelspec.update(name="mine"), "course.execute"),
    ("metadata", lambda nb: nb.metadata.language_info.update(version="3.12"), "course.execute"),
    ("header", in_header("# 01. Small", "# Small"), "numbered title"),
    *[
        ("header", in_header(row, "| **Other** |"), f"no row {row[2:-2]}")
        for row in ("| **Goals** |", "| **You need** |", "| **Time** |", "| **Data** |", "| **Offline** |")
    ],
    ("header", in_header("| **Data** | none |", "| **Data** | |"), "no row **Data**"),
    ("sections", lambda nb: nb.cells[-1].update(source="## Summary"), "Summary and References"),
    ("exercises", lambda nb: nb.cells.__delitem__(slice(6, 9)), "it has 1 exercises"),
    ("exercises", in_metadata("answer-01-1", grade_id="answer-1"), "must be the cells answer-01-1, test-01-1"),
    ("exercises", lambda nb: nb.cells.insert(3, nb.cells.pop(4)), "in this order"),
    ("exercises", in_metadata("answer-01-1", schema_version=2), "metadata of an answer of schema 3"),
    ("exercises", in_metadata("test-01-1", locked=False), "metadata of a locked test of schema 3"),
    ("exercises", in_metadata("test-01-2", points=0), "the test of exercise 01.2 needs points"),
    ("exercises", in_metadata("test-01-2", points=4), "### Exercise 01.2 — title (4 points)"),
    ("exercises", in_cell("answer-01-1", "### BEGIN SOLUTION", ""), "no ### BEGIN SOLUTION"),
    ("exercises", in_cell("test-01-1", "### BEGIN HIDDEN TESTS", ""), "no hidden test"),
    ("exercises", in_cell("test-01-1", "assert double(0) == 0, ", "double, "), "no visible test"),
    (
        "exercises",
        in_cell("test-01-1", ', "did you square instead of doubling?"', ""),
        "a hidden test without a message",
    ),
    ("exercises", in_cell("test-01-2", ', "one value is its own sum"', ""), "a visible test without a message"),
    ("exercises", in_cell("test-01-2", "passed", "done"), 'must end with print("Exercise 01.2 passed")'),
    ("exercises", lambda nb: nb.cells[2].update(source="## Doubling"), "exercise 01.1 needs a heading"),
]


@pytest.mark.parametrize(("name", "change", "message"), BROKEN, ids=[name for name, *_ in BROKEN])
def test_a_guard_fires(name, change, message):
    notebook = small_notebook()
    change(notebook)
    found = list(GUARDS[name](notebook))
    assert any(message in problem for problem in found), found


def test_every_guard_is_shown_to_fire():
    assert {name for name, *_ in BROKEN} == set(GUARDS)


@pytest.mark.parametrize(
    "change",
    [
        skip("nbval-skip", "# left out because a classroom has no camera"),
        write(
            "It runs in about 10 s; x[10:20], 16:9, version 2.13.0, /path/to/mirror, https://arxiv.org/abs/2602.21919"
        ),
        write("```sh\n# a comment, no title\n```"),
        put_out(data={"image/svg+xml": "<svg/>"}),
    ],
)
def test_what_is_allowed(change):
    notebook = small_notebook()
    change(notebook)
    for output in notebook.cells[5].outputs[1:]:
        output.metadata = {"image/svg+xml": {"alt": "a line"}}
    wrong = {name: list(guard(notebook)) for name, guard in GUARDS.items() if name not in ("executed",)}
    assert not any(wrong.values()), wrong


def test_exercises_that_cannot_be_parsed_are_a_failure_too():
    notebook = small_notebook()
    cell(notebook, "test-01-1").source = "assert ("
    with pytest.raises(SyntaxError):
        list(exercises(notebook))


def test_a_page_beside_the_levels_needs_no_exercises(tmp_path, monkeypatch):
    path = tmp_path / "page.ipynb"
    notebook = small_notebook()
    notebook.cells = [cell for cell in notebook.cells if not cell.metadata.get("nbgrader")]
    notebook.cells[2].execution_count = 1
    notebook.cells = [cell for cell in notebook.cells if cell.id != "imports"]
    notebook.cells[2].execution_count = 1
    nbformat.write(notebook, path)
    assert any("exercises" in problem for problem in problems(path))
    monkeypatch.setattr("course.guards.NOTEBOOKS", tmp_path)
    assert problems(path) == []
