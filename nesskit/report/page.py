"""One self-contained HTML page about a run or about several side by side.

The page asks for nothing from outside: style sheet and figures (SVG) lie inside of it. The same runs give the same
bytes. What it says in words is made from the numbers alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2

import nesskit
from nesskit import plots
from nesskit.report.figures import (
    accuracy_matrix,
    accuracy_over_time,
    final_accuracy,
    first_profiled,
    free_ranks,
    matrix_size,
    training_course,
)
from nesskit.report.groups import Runs, as_comparison, groups_of
from nesskit.report.output import write_output
from nesskit.report.tables import columns, comparison_table, measures_of, memory_table, runs_table, value_tables
from nesskit.report.words import caveats, failure_notes, reading, subtitle, title_of
from nesskit.runs.comparison import Comparison
from nesskit.settings import flatten


def write_report(runs: Runs, path: Path | str, title: str | None = None) -> Path:
    """Write the page about ``runs``; what was at ``path`` stays whole until the new page is.

    Args:
        runs: a run, several, or a comparison. Runs that are not finished are shown as far as they got, and marked.
        path: the HTML file; its folder is made.
        title: headline of the page; by default methods and benchmark.

    Returns:
        ``path``.

    Raises:
        NesskitError: there is no run, or the file cannot be written.
    """
    comparison = as_comparison(runs)
    page = _template().render(_contents(comparison, title))
    return write_output(Path(path), page.encode())


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("nesskit.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html")


def _contents(comparison: Comparison, title: str | None) -> dict[str, Any]:
    """Everything that the template shows."""
    groups = groups_of(comparison)
    single = comparison.runs[0] if len(comparison.runs) == 1 else None
    measured = {label: runs for label, runs in groups.items() if any(run.tasks_done for run in runs)}
    over_time = any(run.tasks_done > 1 for run in comparison.runs)
    return {
        "version": nesskit.__version__,
        "title": title or title_of(groups),
        "subtitle": subtitle(comparison),
        "reading": reading(comparison),
        "caveats": [*failure_notes(comparison.failures), *caveats(groups)],
        "measures": measures_of(single) if single else [],
        "comparison": None if single else comparison_table(comparison),
        "over_time": accuracy_over_time(measured) if over_time else None,
        "final": final_accuracy(measured) if measured and not single else None,
        "matrices": [accuracy_matrix(label, runs) for label, runs in measured.items()],
        "matrix_width": f"{max(5 * matrix_size(len(run.tasks))[0] for run in comparison.runs):.0f}",
        "training": training_course(single) if single and single.history else None,
        "free_ranks": [free_ranks(label, run) for label, run in first_profiled(groups)],
        "memory": memory_table(groups),
        "runs": runs_table(groups),
        "provenance": [
            *value_tables({plots.display_name(k): flatten(runs[0].config) for k, runs in groups.items()}, "Settings"),
            *value_tables(columns(groups, lambda run: run.environment), "Machine and versions"),
            *value_tables(columns(groups, lambda run: run.data), "SHA-256 of the data"),
        ],
    }
