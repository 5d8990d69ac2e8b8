"""Where the notebooks of the course lie, and which of their cells are exercises."""

from __future__ import annotations

from pathlib import Path

from nbformat import NotebookNode

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


def levels(folder: Path = NOTEBOOKS) -> dict[str, list[Path]]:
    """The notebooks of each level that has any: {"1_foundations": [01_….ipynb, …], …}."""
    found = {level.name: sorted(level.glob("*.ipynb")) for level in sorted(folder.glob("[0-9]_*"))}
    return {name: notebooks for name, notebooks in found.items() if notebooks}


def all_notebooks(folder: Path = NOTEBOOKS) -> list[Path]:
    """Every notebook of the course and the explorer's page."""
    return [*sorted(folder.glob("*.ipynb")), *(path for notebooks in levels(folder).values() for path in notebooks)]


def grade_id(cell: NotebookNode) -> str:
    """What nbgrader calls the cell, or nothing."""
    return str(cell.metadata.get("nbgrader", {}).get("grade_id", ""))


def answer_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that students write."""
    return [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("solution")]


def graded_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that give points."""
    return [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade")]
