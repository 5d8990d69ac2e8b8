"""The explorer's upper half, which the browser draws: what it shows is in its traits, and ``explorer.js`` reads them.

The same module runs in JupyterLab, in Voilà, in Colab, and without a kernel on a page (``page.py``).
"""

from __future__ import annotations

import io
from pathlib import Path

import anywidget
import traitlets
from matplotlib.figure import Figure

from nesskit.analysis import NetworkCurves
from nesskit.plots import plot_frontier, plot_spectrum, style
from nesskit.widgets.explorer.state import LARGEST, RULES, SMALLEST, State

SCRIPT, STYLES = (Path(__file__).with_name(f"explorer.{kind}") for kind in ("js", "css"))


class ExplorerView(anywidget.AnyWidget):
    """Spectrum, cut, frontier, small spectra and table of one run at one state; every trait may be observed.

    Attributes:
        runs: what can be chosen, by label.
        run: the chosen label; empty: none.
        source: what is drawn, from :func:`packed`; empty: nothing yet.
        rule, eps, task, layer, side_by_side: the :class:`State`.
        message: what is wrong, said by the kernel.
        problem: what is wrong with the ε₁ that was typed, said by the browser; empty: nothing.
        kernel: whether there is one.
    """

    _esm = SCRIPT
    _css = STYLES
    runs = traitlets.List(traitlets.Unicode()).tag(sync=True)
    run = traitlets.Unicode().tag(sync=True)
    source = traitlets.Dict().tag(sync=True)
    rule = traitlets.Enum(list(RULES), State.rule).tag(sync=True)
    eps = traitlets.Float(State.eps, min=SMALLEST, max=LARGEST).tag(sync=True)
    task = traitlets.Int(State.task).tag(sync=True)
    layer = traitlets.Unicode(State.layer).tag(sync=True)
    side_by_side = traitlets.Bool(State.side_by_side).tag(sync=True)
    message = traitlets.Unicode().tag(sync=True)
    problem = traitlets.Unicode().tag(sync=True)
    kernel = traitlets.Bool(True).tag(sync=True)


def still_picture(curves: NetworkCurves | None, state: State) -> bytes:
    """PNG for pages that run no widgets: one spectrum with its cuts, and what they keep and cost."""
    figure = Figure(figsize=(8.3, 3.6), dpi=100, layout="constrained")
    if curves is None:
        figure.set_size_inches(8.3, 0.8)
        figure.text(0.5, 0.5, "The threshold explorer: run this notebook to see it.", ha="center", va="center")
    else:
        left, right = figure.subplots(1, 2)
        with style():
            curve = curves[state.layer or curves.names[0]]
            plot_spectrum(curve.profile, state.rules, left)
            shown = {rule.name: curve if state.layer else curves.frontier(type(rule)) for rule in state.rules}
            points = [curve.at(rule) if state.layer else curves.at(rule) for rule in state.rules]
            plot_frontier(shown, right, points, log=True)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
