"""A sweep over thresholds: what each value of a filter came to on validation data."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from nesskit.errors import NesskitError
from nesskit.plots.drawing import GREY, INK, plain, signed, style, tidy
from nesskit.plots.spectra import RULE_LOOKS
from nesskit.runs.comparison import Estimate
from nesskit.runs.sweep import Sweep, SweepPoint

_AXIS_NAMES = {
    "frobenius": r"ε of the Frobenius rule, σ ≤ ε $\Vert I\Vert_F$",
    "nuclear": "ε of the nuclear rule, σ ≤ ε Σσ",
    "relative": "ε of the relative rule, σ ≤ ε σ₁",
    "energy": "share of Σσ² that stays occupied",
    "rank": "free directions in every layer",
    "soft": "τ of the soft filter",
    "budget": "interference budget",
}


def plot_sweep(sweep: Sweep, axes: Sequence[Axes] | None = None) -> list[Axes]:
    """Validation ACC above, BWT below, against the filter's value on a logarithmic axis; the best is marked.

    Lines are means over seeds, bands ± one standard deviation (n - 1; none for a single seed). Every rule of the sweep
    has a line of its own. An axis on which a value is not above 0 (``rank:0``) is linear.

    Args:
        sweep: what ``nesskit.sweep`` returned.
        axes: the two axes to draw on, for ACC and for BWT.

    Raises:
        NesskitError: the sweep has no point.
    """
    if not sweep.points:
        raise NesskitError("there is no point to draw: a sweep needs one filter at least")
    rules = list(dict.fromkeys(point.rule.name for point in sweep.points))
    with style():
        if axes is None:
            axes = list(plt.subplots(2, 1, figsize=(6.4, 5.2), sharex=True, layout="constrained")[1])
        for ax, measure, name in zip(axes, ("average_accuracy", "backward_transfer"), ("ACC", "BWT"), strict=True):
            tidy(ax)
            ax.set_xscale("log" if all(point.value > 0 for point in sweep.points) else "linear")
            for rule in rules:
                points = sorted((p for p in sweep.points if p.rule.name == rule), key=lambda point: point.value)
                _draw(ax, rule, points, [getattr(point, measure) for point in points])
            _mark_best(ax, sweep.best, getattr(sweep.best, measure))
            ax.set_ylabel(f"validation {name} (%)")
            ax.margins(x=0.04)
            if len({point.value for point in sweep.points}) == 1:
                ax.set_xlim(sweep.best.value / 2 or -1, sweep.best.value * 2 or 1)
            _plain_ticks(ax)
        names = [_AXIS_NAMES.get(rule, rule) for rule in rules]
        axes[1].set_xlabel(names[0] if len(names) == 1 else "value of the rule")
        if len(rules) > 1:
            axes[0].legend(loc="best")
        axes[0].set_title(plain(describe_best(sweep)), loc="left", color=INK, fontsize=10)
    return list(axes)


def describe_best(sweep: Sweep) -> str:
    """``best: frobenius:0.02, ACC 95.20 ± 0.31 %, BWT −0.8``."""
    best = sweep.best
    transfer = best.backward_transfer.mean
    return f"best: {best.filter}, ACC {best.average_accuracy} %" + (
        "" if np.isnan(transfer) else f", BWT {signed(transfer)}"
    )


def describe_sweep(sweep: Sweep) -> str:
    """A sweep in words, as alternative text."""
    values = "; ".join(f"{p.filter}: ACC {p.average_accuracy}, BWT {p.backward_transfer}" for p in sweep.points)
    return f"Sweep on validation data, {describe_best(sweep)}. {values}."


def save_sweep(sweep: Sweep, path: Path | str) -> Path:
    """Write :func:`plot_sweep` as a PNG; the folder is made.

    Raises:
        NesskitError: the sweep has no point, or the file cannot be written.
    """
    path, buffer = Path(path), io.BytesIO()
    figure = plot_sweep(sweep)[0].figure
    with style():
        figure.savefig(buffer, format="png")  # type: ignore[union-attr]
    plt.close(figure)  # type: ignore[arg-type]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    except OSError as error:
        raise NesskitError(f"cannot write {path}: {error.strerror}") from error
    return path


def _draw(ax: Axes, rule: str, points: Sequence[SweepPoint], estimates: Sequence[Estimate]) -> None:
    x = np.array([point.value for point in points])
    mean, std = (np.array([getattr(estimate, part) for estimate in estimates]) for part in ("mean", "std"))
    colour, line = RULE_LOOKS.get(rule, (GREY, "-"))
    ax.plot(x, mean, color=colour, linestyle=line, marker="o", label=rule, zorder=3, gid=f"sweep {rule}")
    if np.isfinite(std).any():
        ax.fill_between(x, mean - std, mean + std, color=colour, alpha=0.16, linewidth=0, zorder=2, gid=f"band {rule}")


def _mark_best(ax: Axes, best: SweepPoint, estimate: Estimate) -> None:
    ax.axvline(best.value, color=INK, linestyle=":", linewidth=1.0, zorder=1, gid="best value")
    ring = {"markersize": 12, "markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 1.6}
    ax.plot([best.value], [estimate.mean], "o", zorder=4, gid="best", **ring)  # type: ignore[arg-type]


def _plain_ticks(ax: Axes) -> None:
    """Plain digits on a logarithmic axis, also where the values span less than a power of ten."""
    low, high = ax.get_xlim()
    if ax.get_xscale() == "log" and high < 1000 * low:
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_minor_formatter(NullFormatter())
        if low > 1e-5 and high < 1e5:
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
