"""What a reader has before him: descriptions of figures, formulas, code that fits, hints, ways from page to page."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbconvert import HTMLExporter
from pictures import images
from small_course import write_course

from course import links
from course.guards import SOLUTION
from course.levels import NOTEBOOKS, all_notebooks, answer_cells, grade_id
from course.release import release, student_version

WIDTH = 88  # characters of code that a cell of JupyterLab shows in a window of 1280 pixels
STEPS = ["1: a nudge", "2: the idea", "3: nearly the line"]
HINT = re.compile(r"<details><summary>Hint (.+?)</summary>\n\n(.+?)\n\n</details>", re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
COURSE = links.in_order()

every_notebook = pytest.mark.parametrize("path", all_notebooks(), ids=lambda path: path.stem)
every_lesson = pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


# --- figures, formulas and code


@every_notebook
def test_every_figure_has_a_description_on_the_page(path):
    page, _ = HTMLExporter(template_name="lab").from_notebook_node(read(path))
    figures = images(page)
    outputs = [output for cell in read(path).cells for output in cell.get("outputs", [])]
    assert len(figures) == sum("<img" in output.get("data", {}).get("text/html", "") for output in outputs) > 0
    assert all(len(figure.get("alt", "")) > 20 for figure in figures)
    assert "No description has been provided" not in page
    assert not any(kind.startswith("image/") for output in outputs for kind in output.get("data", {}))


def test_a_bare_picture_has_none():
    """What the test above looks for is what nbconvert writes."""
    output = nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo="}, metadata={"image/png": {"alt": "a"}})
    cell = nbformat.v4.new_code_cell("", outputs=[output])
    page, _ = HTMLExporter(template_name="lab").from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert "No description has been provided" in page


@every_notebook
def test_no_star_or_bar_of_a_formula_becomes_emphasis(path):
    notebook = read(path)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    page, _ = HTMLExporter(template_name="basic").from_notebook_node(notebook)
    emphasised = re.findall(r"<em>(.*?)</em>", page, re.DOTALL)
    assert not [text for text in emphasised if re.search(r"[‖_√≤]", text)]


@every_notebook
def test_no_code_scrolls_sideways(path):
    wide = [
        (cell.id, line)
        for cell in read(path).cells
        if cell.cell_type == "code"
        for line in cell.source.splitlines()
        if len(line) > WIDTH
    ]
    assert wide == []


# --- hints


def hints(notebook, answer):
    """The hints of an exercise: they stand in the text before its answer."""
    text = notebook.cells[notebook.cells.index(answer) - 1]
    return HINT.findall(text.source) if text.cell_type == "markdown" else []


@every_lesson
def test_every_exercise_has_three_hints_that_students_get(path):
    for notebook in (read(path), student_version(path)):
        for answer in answer_cells(notebook):
            found = hints(notebook, answer)
            assert [step for step, _ in found] == STEPS, grade_id(answer)
            assert len({text for _, text in found}) == 3
            assert all(len(text) > 30 for _, text in found)


@every_lesson
def test_no_hint_is_the_solution(path):
    notebook = read(path)
    for answer in answer_cells(notebook):
        squeezed = re.sub(r"\s", "", "".join(text for _, text in hints(notebook, answer)))
        for solution in SOLUTION.findall(answer.source):
            lines = [re.sub(r"\s|return", "", line) for line in solution.splitlines()[1:-1]]
            assert not [line for line in lines if len(line) > 15 and line in squeezed], grade_id(answer)


# --- links


def links_of(path):
    texts = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    return [target for text in texts for target in LINK.findall(text) if "://" not in target]


@every_lesson
def test_every_notebook_links_to_its_neighbours_and_to_the_map(path):
    place, targets = COURSE.index(path), [(path.parent / target).resolve() for target in links_of(path)]
    neighbours = [*COURSE[max(place - 1, 0) : place], *COURSE[place + 1 : place + 2]]
    for wanted in [*neighbours, NOTEBOOKS / "README.md"]:
        assert targets.count(wanted.resolve()) >= 2  # above and below
    assert read(path) == links.linked(path, COURSE), "run python -m course.links"


def test_the_map_leads_to_every_notebook():
    for page in (NOTEBOOKS / "README.md", Path(links.__file__).with_name("student.md")):
        targets = {(NOTEBOOKS / target).resolve() for target in LINK.findall(page.read_text(encoding="utf-8"))}
        assert targets >= {path.resolve() for path in all_notebooks()}, page


def test_no_link_of_the_student_release_leads_nowhere(tmp_path):
    folder = tmp_path / "student"
    notebooks = release(folder, wheel=False)
    pages = {path: links_of(path) for path in notebooks}
    pages[folder / "README.md"] = LINK.findall((folder / "README.md").read_text(encoding="utf-8"))
    for page, targets in pages.items():
        assert not [target for target in targets if not (page.parent / target.partition("#")[0]).exists()], page


def test_without_a_repository_no_link_starts_anything_elsewhere():
    assert links.REPOSITORY or not [path for path in COURSE if re.search("colab.research|mybinder", path.read_text())]
    assert links.launches(COURSE[0], "") == []


def test_with_a_repository_every_notebook_can_be_started_elsewhere():
    colab, binder = links.launches(COURSE[2], "somebody/nesskit")
    assert colab.endswith(
        "(https://colab.research.google.com/github/somebody/nesskit/blob/main/notebooks/"
        "2_method/03_the_ness_layer.ipynb)"
    )
    assert binder.endswith(
        "(https://mybinder.org/v2/gh/somebody/nesskit/main?urlpath=lab/tree/notebooks/2_method/03_the_ness_layer.ipynb)"
    )
    assert colab in links.navigation(COURSE[2], COURSE, "somebody/nesskit")
    source = links.installation(COURSE[2], "somebody/nesskit")
    assert "git clone --quiet --depth 1 https://github.com/somebody/nesskit /content/course" in source
    assert source.endswith("%cd /content/course/notebooks/2_method")


@pytest.mark.parametrize("repository", ["", "somebody/nesskit"])
def test_the_cell_for_colab_installs_there_and_does_nothing_elsewhere(repository):
    from IPython.core.inputtransformer2 import TransformerManager

    code = TransformerManager().transform_cell(links.installation(COURSE[0], repository))
    asked = []

    class Shell:
        def run_line_magic(self, name, line):
            asked.append((name, line))

        def system(self, line):
            asked.append(("!", line))

    scope = {"get_ipython": Shell}
    exec(code, scope)
    assert asked == []
    sys.modules["google.colab"] = sys
    try:
        exec(code, scope)
    finally:
        del sys.modules["google.colab"]
    names = [name for name, _ in asked]
    assert names == (["!", "pip", "cd"] if repository else ["pip"])


def test_links_are_written_once_and_follow_the_order(tmp_path):
    folder = write_course(tmp_path)
    (first,) = links.in_order(folder)
    once = links.linked(first, [first])
    nbformat.write(once, first)
    assert links.linked(first, [first]) == once
    assert [cell.id for cell in once.cells[:3]] == ["intro", links.ABOVE, links.COLAB]
    assert once.cells[-1].source == once.cells[1].source == "[map of the course](../README.md)"


def test_binder_installs_what_setup_installs():
    root = Path(links.__file__).parents[1]
    script = root / "binder" / "postBuild"
    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True)
    torch, rest = [line for line in script.read_text().splitlines() if line.startswith("pip install")]
    assert " torch " in torch
    assert rest.endswith("-e .")
    assert all("-c constraints.txt" in line for line in (torch, rest))
