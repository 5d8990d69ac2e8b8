"""The result of runs in one picture, as the demo shows it."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

from nesskit import plots
from nesskit.errors import NesskitError
from nesskit.report.figures import matrix_title
from nesskit.report.groups import Groups, Runs, all_joint, as_comparison, groups_of
from nesskit.report.output import write_output


def report_figure(runs: Runs) -> Figure:
    """The result in one picture: accuracy over time, and the accuracy matrices of up to two methods.

    Of the methods that learn one task after another, fine-tuning and NESS are preferred; matrices are means over seeds.
    """
    groups = groups_of(as_comparison(runs))
    shown = _shown_methods(groups)
    with plots.style():
        figure = Figure(figsize=(5.0 + 4.1 * len(shown), 4.4), layout="constrained")
        axes = figure.subplots(1, 1 + len(shown), width_ratios=[1.15, *([1.0] * len(shown))], squeeze=False)[0]
        plots.plot_accuracy_over_time(groups, axes[0])
        axes[0].set_title("accuracy after each task")
        for ax, label in zip(axes[1:], shown, strict=True):
            matrix = plots.mean_matrix(groups[label])
            explained = plots.legend_fits(len(matrix)) or ax is axes[-1]
            plots.plot_accuracy_matrix(matrix, ax=ax, title=matrix_title(label, groups[label]), legend=explained)
    return figure


def save_picture(runs: Runs, path: Path | str) -> Path:
    """Write :func:`report_figure` to ``path`` (png, svg or pdf, by its ending); the folder is made.

    Raises:
        NesskitError: there is no run, another ending, or the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lstrip(".").lower()
    if kind not in ("png", "svg", "pdf"):
        raise NesskitError(f"cannot write a picture to {path}: let its name end in .png, .svg or .pdf")
    buffer = io.BytesIO()
    with plots.style():
        report_figure(runs).savefig(buffer, format=kind)
    return write_output(path, buffer.getvalue())


def _shown_methods(groups: Groups) -> list[str]:
    """Up to two labels for the matrices of the one picture: fine-tuning and NESS before others, joint training last."""
    liked = {"finetune": 0, "ness": 1}
    order = sorted(groups, key=lambda label: (all_joint(groups[label]), liked.get(label.partition(" ")[0], 2)))
    sequential = [label for label in order if not all_joint(groups[label])]
    return (sequential or order)[:2]
