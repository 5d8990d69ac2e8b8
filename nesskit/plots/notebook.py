"""A figure in a notebook, with its description for those who cannot see it."""

from __future__ import annotations

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def show(figure: Figure | Axes, alt: str) -> None:
    """Display ``figure`` in a notebook, with ``alt`` as its alternative text, and close it.

    Screen readers and HTML pages take the description from the output's metadata; where no picture can be shown it
    stands in its place. It should say what is to be seen, without figures that differ from machine to machine: a strict
    re-run of the notebook compares it.

    Args:
        figure: a figure, or any axes in it.
        alt: one or two sentences.
    """
    from IPython.core.pylabtools import print_figure
    from IPython.display import display

    whole = figure.get_figure(root=True) if isinstance(figure, Axes) else figure
    assert whole is not None
    picture = print_figure(whole, fmt="png", dpi=110, bbox_inches=None, base64=True)
    plt.close(whole)
    display({"image/png": picture, "text/plain": alt}, raw=True, metadata={"image/png": {"alt": alt}})
