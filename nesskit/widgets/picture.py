"""A live figure: a picture on the page, no wider than there is room, that draws again only what moves."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import ipywidgets as widgets
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave

from nesskit.plots import picture_html, style

DPI = 100  # pixels of a page that an inch takes
DENSITY = 2  # pixels of a picture for one of the page, since many screens have more than pages count


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, unknown to pyplot: no notebook shows it a second time."""
    with style():
        return Figure((width, height), dpi=DENSITY * DPI)


class LivePicture(widgets.HTML):
    """Shows ``figure`` as it is whenever it is drawn.

    Everything is drawn once and kept as a background; from then on only the ``moving`` artists are drawn onto it, so
    that a redraw takes milliseconds however much the figure holds.

    Attributes:
        alt: what is to be seen, for those who cannot see it.
    """

    def __init__(self, figure: Figure, alt: str, moving: Iterable[Artist] = ()) -> None:
        self.figure, self.alt, self.moving = figure, alt, list(moving)
        self._canvas = FigureCanvasAgg(figure)
        for artist in self.moving:
            artist.set_animated(True)
            artist.set_in_layout(False)
        self._background: Any = None
        super().__init__(layout={"max_width": f"{DPI * figure.get_figwidth():.0f}px"})
        self.add_class("nk-picture")

    def draw_everything(self) -> None:
        """Draw the background, too: something else than the moving artists has changed."""
        self._background = None
        self.draw()

    def draw(self) -> None:
        """Draw what is necessary and show it."""
        if self._background is None:
            self._canvas.draw()
            self._background = self._canvas.copy_from_bbox(self.figure.bbox)
        else:
            self._canvas.restore_region(self._background)
        for artist in self.moving:
            if artist.get_visible():
                artist.draw(self._canvas.get_renderer())
        picture = io.BytesIO()
        # Hardly compressed: the picture is made far more often than it travels far.
        imsave(picture, np.asarray(self._canvas.buffer_rgba()), pil_kwargs={"compress_level": 1})
        self.value = picture_html(picture.getvalue(), self.alt)
