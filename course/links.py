"""What leads from notebook to notebook, and onto other people's machines: python -m course.links writes it into all.

Every notebook has a line to the one before, the map and the next, under its header and at its end, and a cell that
installs nesskit on Colab. Links that start a notebook on Colab or Binder appear as soon as REPOSITORY is set.
"""

from __future__ import annotations

import sys
from pathlib import Path, PurePosixPath

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from course.levels import NOTEBOOKS, levels
from course.repository import BRANCH, REPOSITORY

ABOVE, BELOW, COLAB = "navigation", "navigation-below", "colab"  # ids of the cells that are written here


def in_order(folder: Path = NOTEBOOKS) -> list[Path]:
    """The notebooks of the course, all levels one after another."""
    return [path for notebooks in levels(folder).values() for path in notebooks]


def title(path: Path) -> str:
    """What the first heading says: ``02 Small singular values``."""
    heading = nbformat.read(path, as_version=4).cells[0].source.splitlines()[0]
    return heading.removeprefix("# ").replace(". ", " ", 1)


def navigation(path: Path, course: list[Path], repository: str = REPOSITORY) -> str:
    """A line of relative links to the notebook before ``path``, the map and the notebook after it."""
    place = course.index(path)
    parts = ["[map of the course](../README.md)"]
    if place:
        parts.insert(0, f"← [{title(course[place - 1])}]({_relative(course[place - 1], path)})")
    if place + 1 < len(course):
        parts.append(f"[{title(course[place + 1])}]({_relative(course[place + 1], path)}) →")
    return " · ".join(parts + launches(path, repository))


def launches(path: Path, repository: str = REPOSITORY) -> list[str]:
    """Links that open the notebook on Colab and on Binder; none without a repository."""
    if not repository:
        return []
    place = PurePosixPath("notebooks", path.parent.name, path.name)
    return [
        f"[open in Colab](https://colab.research.google.com/github/{repository}/blob/{BRANCH}/{place})",
        f"[open on Binder](https://mybinder.org/v2/gh/{repository}/{BRANCH}?urlpath=lab/tree/{place})",
    ]


def installation(path: Path, repository: str = REPOSITORY) -> str:
    """The code of the cell that makes nesskit importable on Colab, and does nothing anywhere else.

    From the repository comes the whole course, with its recorded results; without one, the wheel of the student release
    has to be uploaded first.
    """
    lines = [
        "# On Colab this installs nesskit; anywhere else it does nothing.",
        "import sys",
        "",
        'if "google.colab" in sys.modules:',
    ]
    if not repository:
        return "\n".join([*lines, "    %pip install --quiet nesskit-*.whl"])
    return "\n".join(
        [
            *lines,
            f"    !git clone --quiet --depth 1 https://github.com/{repository} /content/course",
            "    %pip install --quiet /content/course",
            f"    %cd /content/course/notebooks/{path.parent.name}",
        ]
    )


def linked(path: Path, course: list[Path], repository: str = REPOSITORY) -> NotebookNode:
    """The notebook at ``path`` with its links and its cell for Colab as they should be, outputs untouched."""
    notebook = nbformat.read(path, as_version=4)
    links = navigation(path, course, repository)
    colab = new_code_cell(installation(path, repository), id=COLAB, metadata={"tags": [COLAB]})
    colab.execution_count = next((cell.execution_count for cell in notebook.cells if cell.id == COLAB), None)
    header, *rest = [cell for cell in notebook.cells if cell.id not in (ABOVE, BELOW, COLAB)]
    above, below = new_markdown_cell(links, id=ABOVE), new_markdown_cell(links, id=BELOW)
    notebook.cells = [header, above, colab, *rest, below]
    return notebook


def _relative(path: Path, other: Path) -> str:
    """The way from the notebook ``other`` to ``path``."""
    return path.name if path.parent == other.parent else f"../{path.parent.name}/{path.name}"


def main() -> None:
    """Write the links into every notebook; one whose code changed must be executed again."""
    course = in_order()
    for path in course:
        notebook = linked(path, course)
        if notebook != nbformat.read(path, as_version=4):
            nbformat.write(notebook, path)
            print(path, file=sys.stderr)


if __name__ == "__main__":
    main()
