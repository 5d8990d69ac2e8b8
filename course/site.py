"""Build the static site: python -m course.site [FOLDER], by default dist/site.

Course, architecture, results and API become one site that needs no server and asks no other host for anything. The
notebooks are shown as they were executed and are never run here. What Sphinx reads is gathered first: the pages of
``docs/site`` with the project's own pages and notebooks around them, under the paths that they have here, so that their
links hold. MathJax and reveal.js come from installed packages.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell as markdown
from tabulate import tabulate

from course import CourseError
from course.execute import METADATA
from course.levels import NOTEBOOKS, all_notebooks, grade_id
from course.repository import BRANCH, REPOSITORY
from nesskit import BENCHMARKS
from nesskit.report.results_table import result_table, split_whole
from nesskit.runs.results import load_results

ROOT = Path(__file__).parent.parent
SITE = ROOT / "dist" / "site"
PAGES = ROOT / "docs" / "site"
PROJECT_PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "notebooks/README.md")
FOLDERS = {"docs": ("*.md", "*.png"), "data/results": ("*.md", "*.png")}
MATHJAX = ("tex-chtml.js", "input/tex/extensions", "output/chtml/fonts", "a11y", "sre")
UNREAD = (  # what Sphinx and its extensions leave beside the pages; other themes of reveal.js load fonts from elsewhere
    *(
        ".buildinfo",
        "objects.inv",
        "jupyter_execute",
        "**/_sources",
        "_static/webpack-macros.html",
        "slides/_static/**/*.map",
    ),
    "slides/_static/revealjs/dist/theme/[!w]*.css",
)
MARKER = re.compile(r"^ *### (BEGIN|END) (SOLUTION|HIDDEN TESTS)\n?", re.MULTILINE)
HEADING = re.compile(r"^#+ .*\n*", re.MULTILINE)
FOLDED = {"answer": "the solution", "test": "the tests"}


def page_notebook(path: Path) -> NotebookNode:
    """The notebook at ``path`` as its page shows it: pictures with their words, solutions and tests folded away."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        shown = cell.metadata.setdefault("mystnb", {})
        if folded := FOLDED.get(kind_of_exercise(cell)):
            shown.update({"code_prompt_show": f"Show {folded}", "code_prompt_hide": f"Hide {folded}"})
            cell.metadata.tags = ["hide-input"]
            cell.source = MARKER.sub("", cell.source).rstrip()
    title, _, rest = notebook.cells[0].source.partition("\n")
    ways = [launch_links(path)] if REPOSITORY else []
    if path.name == "explorer.ipynb" and explorer_needs_no_kernel():
        ways.append('<p><a href="../explorer.html"><strong>Open the explorer</strong></a>, here and now.</p>')
    if ways:
        notebook.cells[0].source = "\n\n".join([title, *ways, rest])
    return notebook


def kind_of_exercise(cell: NotebookNode) -> str:
    """ "answer" or "test" for the cells of an exercise, nothing for all others."""
    about = cell.metadata.get("nbgrader", {})
    return "test" if about.get("grade") else "answer" if about.get("solution") and grade_id(cell) else ""


def launch_links(path: Path) -> str:
    """Where a notebook can be run without installing anything, as a line of Markdown."""
    name = path.relative_to(ROOT)
    colab = f"https://colab.research.google.com/github/{REPOSITORY}/blob/{BRANCH}/{name}"
    binder = f"https://mybinder.org/v2/gh/{REPOSITORY}/{BRANCH}?labpath={name}"
    return f"Run this notebook: [in Colab]({colab}) · [on Binder]({binder})"


def explorer_needs_no_kernel() -> bool:
    """Whether this version of the library can write the explorer as a page of its own."""
    return importlib.util.find_spec("nesskit.widgets.explorer.page") is not None


def write_explorer(target: Path) -> None:
    """The explorer of the recorded runs, as a page without a kernel."""
    with tempfile.TemporaryDirectory() as no_runs:
        importlib.import_module("nesskit.widgets.explorer.page").write_page(target, runs=no_runs)


def cells_of_course() -> dict[str, NotebookNode]:
    """Every cell that slides can show: {"01/by-hand-figure": cell, …}."""
    return {
        f"{path.name[:2]}/{cell.id}": cell
        for path in all_notebooks()
        if path.parent != NOTEBOOKS
        for cell in page_notebook(path).cells
    }


def slides(chosen: Path, cells: dict[str, NotebookNode]) -> NotebookNode:
    """The notebook behind the slides: of each chosen cell what it shows; its prose is for the speaker.

    Raises:
        CourseError: a chosen cell is in no notebook; says which.
    """
    text = tomllib.loads(chosen.read_text(encoding="utf-8"))
    made = [markdown(f"# {text['title']}\n\n{text['subtitle']}")]
    for slide in text["slide"]:
        shown, told = slide.get("show", []), slide.get("notes", [])
        if missing := [name for name in (*shown, *told) if name not in cells]:
            raise CourseError(f"the slide '{slide['title']}' of {chosen.name} wants {missing[0]}, which is no cell.")
        said = HEADING.sub("", "\n\n".join([slide.get("say", ""), *(cells[name].source for name in told)]))
        made.append(markdown(f"## {slide['title']}\n\n{slide.get('text', '')}"))
        made.extend(on_a_slide(cells[name]) for name in shown)
        made.append(markdown(f'<aside class="notes">\n\n{said}\n\n</aside>'))
    return nbformat.v4.new_notebook(cells=made, metadata=METADATA)


def on_a_slide(cell: NotebookNode) -> NotebookNode:
    """A cell as a slide shows it: of code only its picture."""
    if cell.cell_type == "code":
        cell = cell.copy()
        cell.outputs = [output for output in cell.outputs if "<img" in output.get("data", {}).get("text/html", "")]
        cell.metadata = {**cell.metadata, "tags": ["remove-input"]}
    return cell


def public_names() -> dict[str, list[str]]:
    """The public names of each room of the library: {"adaptation": ["Adaptation", "adapt", …], …}."""
    stub = (ROOT / "nesskit" / "__init__.pyi").read_text(encoding="utf-8")
    rooms: dict[str, list[str]] = {}
    for room, name in re.findall(r"^from nesskit\.(\w+)\S* import (\w+) as", stub, re.MULTILINE):
        rooms.setdefault(room, []).append(f"nesskit.{name}")
    widgets = importlib.import_module("nesskit.widgets")
    return {**rooms, "widgets": [f"nesskit.widgets.{name}" for name in widgets.__all__]}


def api_page(room: str, names: list[str]) -> str:
    """The page of a room, for autodoc."""
    about = (importlib.import_module(f"nesskit.{room}").__doc__ or "").partition("\n")[0]
    title = room.capitalize()
    parts = [f"{title}\n{'=' * len(title)}\n\n{about}\n"]
    for name in names:
        home, _, short = name.rpartition(".")
        value = getattr(importlib.import_module(home), short)
        if callable(value):
            parts.append(f".. auto{'class' if isinstance(value, type) else 'function'}:: {name}\n")
        else:
            parts.append(f".. py:data:: {name}\n\n   By name: {', '.join(f'`{key}`' for key in value)}.\n")
    return "\n".join(parts)


def recorded_results() -> str:
    """Every recorded run of whole benchmarks, a table each, beside what was published."""
    parts = [
        "# Recorded results",
        "Whole benchmarks, mean ± standard deviation over the seeds; ACC and BWT in percent.",
    ]
    for benchmark in BENCHMARKS:
        whole, others = split_whole(load_results(benchmark, profiles=False))
        if whole:
            header, rows = result_table(benchmark, whole)
            used = [column for column in range(len(header)) if any(row[column] not in ("", "–") for row in rows)]
            cells = [[row[column] for column in used] for row in rows]
            table = tabulate(cells, [header[column] for column in used], tablefmt="github", disable_numparse=True)
            parts.append(f"## {benchmark}\n\n{table}\n\nReduced or changed runs left out: {len(others)}.")
    return "\n\n".join(parts)


def gather(source: Path) -> None:
    """Everything that Sphinx reads, in ``source``."""
    shutil.copytree(PAGES, source)
    for page in PROJECT_PAGES:
        (source / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / page, source / page)
    for folder, patterns in FOLDERS.items():
        (source / folder).mkdir(parents=True, exist_ok=True)
        for path in (path for pattern in patterns for path in sorted((ROOT / folder).glob(pattern))):
            shutil.copy(path, source / folder)
    for path in all_notebooks():
        target = source / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(page_notebook(path), target)
    for room, names in public_names().items():
        (source / "api" / f"{room}.rst").write_text(api_page(room, names), encoding="utf-8")
    (source / "recorded.md").write_text(recorded_results(), encoding="utf-8")
    nbformat.write(slides(source / "slides" / "slides.toml", cells_of_course()), source / "slides" / "index.ipynb")
    gather_mathjax(source / "_static" / "mathjax")


def gather_mathjax(target: Path) -> None:
    """MathJax as an installed package brings it, without what nobody loads."""
    found = importlib.util.find_spec("sphinx-mathjax-offline")
    if found is None or not found.submodule_search_locations:
        raise CourseError("the site needs its extra: pip install -c constraints.txt -e '.[site]'")
    home = Path(found.submodule_search_locations[0]) / "static" / "mathjax"
    for part in MATHJAX:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (home / part).is_dir() else shutil.copy
        copy(home / part, target / part)


def sphinx(builder: str, source: Path, target: Path) -> None:
    """Run Sphinx; a warning is an error.

    Raises:
        CourseError: it complained; what about stands above.
    """
    options = ["-W", "--keep-going", "-q", "-b", builder, "-d", f"{source}-doctrees"]
    if subprocess.run([sys.executable, "-m", "sphinx", *options, source, target], cwd=ROOT).returncode:
        raise CourseError("the site was not built: mend what Sphinx complains about above.")


def build(target: Path = SITE) -> None:
    """Write the site to ``target``; what an earlier build left there goes, but only once the new one is whole."""
    if target.exists() and not (target / "searchindex.js").exists() and any(target.iterdir()):
        raise CourseError(f"{target} holds something else than an earlier site: name another folder, or empty it.")
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "source"), Path(folder, "site")
        gather(source)
        sphinx("html", source, made)
        sphinx("revealjs", source / "slides", made / "slides")
        if explorer_needs_no_kernel():
            write_explorer(made / "explorer.html")
        for path in (path for pattern in UNREAD for path in made.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(made, target)


def main() -> None:
    """Build the site into the folder that is named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m course.site", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=SITE)
    folder = parser.parse_args().folder
    try:
        build(folder)
    except CourseError as error:
        sys.exit(f"Error: {error}")
    print(f"{folder / 'index.html'} opens in any browser, from the disk or from any web server")


if __name__ == "__main__":
    main()
