"""Run notebooks and keep their outputs in place: python -m course.execute [NOTEBOOK ...], by default all of them.

What is kept is what a strict re-run compares and a reader sees: outputs and execution counts. Widgets stay as the
picture that they display; their views and state, times and the names of the machine's kernels are left out.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from course.levels import all_notebooks

SECONDS_PER_CELL = 600
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(path: Path) -> NotebookNode:
    """The notebook at ``path`` with fresh outputs, run from its own folder in a kernel of its own.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised; says which.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=SECONDS_PER_CELL,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
    )
    client.execute()
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET_VIEW, None)  # without its state it would hide the picture beside it
    return notebook


def main() -> None:
    """Execute the notebooks that are named on the command line, or all."""
    parser = argparse.ArgumentParser(prog="python -m course.execute", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("notebooks", nargs="*", type=Path, default=all_notebooks())
    for path in parser.parse_args().notebooks:
        started = time.perf_counter()
        notebook = execute(path)
        nbformat.write(notebook, path)
        print(f"{path}: {time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
