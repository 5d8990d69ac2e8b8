"""Write what students get: python -m course.release [FOLDER], by default dist/student.

A folder per level with the notebooks without solutions, hidden tests and outputs; the explorer, recorded results, the
library as a wheel, and a README. After the deadline, with ``--solutions``, the notebooks with solutions and outputs, by
default in dist/solutions. What somebody else has put or changed in the folder is never overwritten.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbgrader.preprocessors import (
    CheckCellMetadata,
    ClearHiddenTests,
    ClearMarkScheme,
    ClearOutput,
    ClearSolutions,
    ComputeChecksums,
    LockCells,
)

from course import CourseError
from course.execute import METADATA
from course.levels import NOTEBOOKS, graded_cells, levels

ROOT = Path(__file__).parent.parent
STUDENT = ROOT / "dist" / "student"
SOLUTIONS = ROOT / "dist" / "solutions"
MAY_FAIL = "raises-exception"  # what Jupyter goes on after: a wrong answer does not stop Run All
MANIFEST = ".release.json"  # path and SHA-256 of every file that a release wrote
MARKER = re.compile(r"^ *### (BEGIN|END) SOLUTION\n?", re.MULTILINE)
STEPS = (
    LockCells,
    ClearSolutions,
    ClearHiddenTests,
    ClearMarkScheme,
    ClearOutput,
    CheckCellMetadata,
    ComputeChecksums,
)


def student_version(path: Path) -> NotebookNode:
    """The notebook at ``path`` without solutions, hidden tests, outputs and widget state.

    Raises:
        CourseError: its exercises are not well-formed; says which notebook and why.
    """
    notebook = _prepared(path, STEPS)
    for cell in graded_cells(notebook):
        cell.metadata.tags = [MAY_FAIL]
    return notebook


def solved_version(path: Path) -> NotebookNode:
    """The notebook at ``path`` with solutions and outputs, for students after the deadline; hidden tests stay hidden.

    Raises:
        CourseError: its exercises are not well-formed; says which notebook and why.
    """
    student_version(path)
    notebook = _prepared(path, (ClearHiddenTests, ClearMarkScheme))
    for cell in notebook.cells:
        cell.source = MARKER.sub("", cell.source).rstrip()
        cell.metadata.pop("nbgrader", None)
    return notebook


def _prepared(path: Path, steps: tuple[type, ...]) -> NotebookNode:
    notebook = nbformat.read(path, as_version=4)
    resources: dict[str, Any] = {}
    try:
        for step in steps:
            notebook, resources = step().preprocess(notebook, resources)
    except Exception as error:  # nbgrader raises anything from RuntimeError to its own
        raise CourseError(f"{path}: {error}") from error
    notebook.metadata = nbformat.from_dict(METADATA)
    return notebook


def release(
    target: Path = STUDENT, source: Path = NOTEBOOKS, wheel: bool = True, solutions: bool = False
) -> list[Path]:
    """Write the release of the notebooks in ``source`` for students to ``target``; returns the notebooks in it.

    Args:
        target: a folder that does not exist, is empty, or holds nothing but an earlier release.
        source: the folder of the levels.
        wheel: whether the library goes along, built from this checkout.
        solutions: whether solutions and outputs stay in, which is for after the deadline.

    Raises:
        CourseError: there are no notebooks, one is not well-formed, or ``target`` holds somebody's work.
    """
    course = levels(source)
    if not course:
        raise CourseError(f"{source} has no folder of a level, such as 1_foundations, with notebooks in it")
    _refuse_foreign(target)
    notebooks = [*sorted(source.glob("*.ipynb")), *(path for paths in course.values() for path in paths)]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        fresh = Path(temporary) / target.name
        for path in notebooks:
            copy = fresh / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            nbformat.write(solved_version(path) if solutions else student_version(path), copy)
        shutil.copy(Path(__file__).with_name("student.md"), fresh / "README.md")
        shutil.copy(ROOT / "constraints.txt", fresh)
        shutil.copytree(ROOT / "data" / "results", fresh / "data" / "results")
        if wheel:
            _build_wheel(fresh)
        (fresh / MANIFEST).write_text(json.dumps(_checksums(fresh), indent=1) + "\n", encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        fresh.rename(target)
    return [target / path.relative_to(source) for path in notebooks]


def _refuse_foreign(folder: Path) -> None:
    """Raise where the folder holds anything that is not exactly as a release wrote it."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise CourseError(f"{folder} is a file: name a folder for the release")
    manifest = folder / MANIFEST
    ours = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
    foreign = [name for name, checksum in _checksums(folder).items() if ours.get(name) != checksum]
    if foreign:
        raise CourseError(
            f"{folder} holds work that is not of an earlier release ({foreign[0]}): "
            "move it away, or name another folder (make student STUDENT=…)"
        )


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() and path != folder / MANIFEST)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _build_wheel(folder: Path) -> None:
    """The library as one file, without internet: the build tools are installed with nbgrader."""
    with tempfile.TemporaryDirectory() as temporary:  # what an earlier build has left in the checkout must not go along
        shutil.copytree(ROOT / "nesskit", Path(temporary) / "nesskit", ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, temporary)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), temporary]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CourseError(f"the library could not be built: {done.stderr.strip().splitlines()[-1]}")


def main() -> None:
    """Write the student release to the folder that is named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m course.release", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="by default dist/student or dist/solutions")
    parser.add_argument("--solutions", action="store_true", help="with solutions and outputs: after the deadline")
    arguments = parser.parse_args()
    solutions, folder = arguments.solutions, arguments.folder or (SOLUTIONS if arguments.solutions else STUDENT)
    try:
        notebooks = release(folder, solutions=solutions)
    except CourseError as error:
        sys.exit(f"Error: {error}.")
    print(f"{len(notebooks)} notebooks {'with solutions ' * solutions}for students in {folder}", file=sys.stderr)


if __name__ == "__main__":
    main()
