"""What a student gets back: points by the name of the exercise, formulas without the internet, and no foreign code."""

import re

import nbformat
import pytest
from nbformat.v4 import new_markdown_cell, new_output
from small_course import cell, small_notebook

from course.feedback import exercise_title, mathml, page_of, to_html
from course.links import in_order

FORMULA = re.compile(r"\$\$(.+?)\$\$|\$(.+?)\$", re.DOTALL)


def page(change=lambda notebook: None):
    notebook = small_notebook()
    failed = new_output("error", ename="AssertionError", evalue="no", traceback=["no"])
    cell(notebook, "test-01-2").outputs = [failed]
    change(notebook)
    return to_html(notebook, page_of(notebook, small_notebook()))


def test_each_line_names_its_exercise_and_links_to_it():
    text = page()
    rows = re.findall(r'<tr><td><a href="#([^"]+)">([^<]+)</a></td>\s*<td class="points">([^<]+)</td></tr>', text)
    assert rows == [
        ("test-01-1", "Exercise 01.1 — double", "2 of 2"),
        ("test-01-2", "Exercise 01.2 — total", "0 of 3"),
    ]
    assert "<strong>2 of 5 points.</strong>" in text
    assert [text.count(f'id="{name}"') for name, *_ in rows] == [1, 1]


@pytest.mark.parametrize("path", in_order(), ids=lambda path: path.stem)
def test_every_exercise_has_a_title_and_every_formula_can_be_shown(path):
    notebook = nbformat.read(path, as_version=4)
    for exercise in page_of(notebook, notebook).exercises:
        assert re.fullmatch(r"Exercise \d\d\.\d — .+[^)]", exercise.title)
    for text in (one.source for one in notebook.cells if one.cell_type == "markdown"):
        for block, inline in FORMULA.findall(text):
            assert mathml(block or inline, bool(block)).startswith("<math"), block or inline


def test_a_formula_is_mathml_in_the_page_and_what_no_one_knows_stays_as_it_was():
    text = page(lambda notebook: notebook.cells.append(new_markdown_cell(r"a $\sigma_1 \ge \dots$ and $\nonsense{1}$")))
    assert "<msub><mi>σ</mi><mn>1</mn></msub>" in re.sub(r"\s*\n\s*", "", text)
    assert r"<code>\nonsense{1}</code>" in text


def test_nothing_is_loaded_and_nothing_is_run():
    """Whatever a cell has put out: the browser is told to refuse scripts and every address, before anything else."""

    def attack(notebook):
        html = "<script src='https://host.invalid/x.js'></script><img src='https://host.invalid/x.png'>"
        notebook.cells[1].outputs = [new_output("display_data", {"text/html": html})]

    for text in (page(), page(attack)):
        head, _, _ = text.partition("<title>")
        assert "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in head
        assert "Content-Security-Policy" in head
    assert not re.findall(r"(?:src|href)=\"(?!#)[^\"]", page())
    assert "<script" not in page()


def test_a_title_is_found_without_its_points():
    assert exercise_title("test-01-2", small_notebook()) == "Exercise 01.2 — total"
    assert exercise_title("test-01-9", small_notebook()) == "Exercise 01.9"
