"""A figure in a notebook, with its description for those who cannot see it."""

from __future__ import annotations

import base64
import html

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure


def show(figure: Figure | Axes, alt: str) -> None:
    """Display ``figure`` in a notebook, with ``alt`` as its alternative text, and close it.

    Screen readers read the description out; where no picture can be shown it stands in its place. It should say what is
    to be seen, without figures that differ from machine to machine: a strict re-run of the notebook compares it.

    Args:
        figure: a figure, or any axes in it.
        alt: one or two sentences.
    """
    from IPython.core.pylabtools import print_figure
    from IPython.display import display

    whole = figure.get_figure(root=True) if isinstance(figure, Axes) else figure
    assert whole is not None
    picture = print_figure(whole, fmt="png", dpi=110, bbox_inches=None)
    plt.close(whole)
    display({"text/html": picture_html(picture, alt), "text/plain": alt}, raw=True)


def picture_html(png: bytes, alt: str) -> str:
    """A picture as HTML, which is the only output that takes its alternative text to JupyterLab's page and nbconvert's.

    Args:
        png: the content of a PNG file.
        alt: what is to be seen, as plain text.
    """
    data = base64.b64encode(png).decode()
    return f'<img alt="{html.escape(alt)}" style="max-width: 100%" src="data:image/png;base64,{data}">'
