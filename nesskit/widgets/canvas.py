"""A live figure: an ipympl canvas that draws again only what moves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ipympl.backend_nbagg import Canvas, FigureManager
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


class LiveCanvas(Canvas):
    """A widget that shows ``figure``; needs no ``%matplotlib widget``, so inline figures may stand beside it.

    Everything is drawn once and kept as a background; from then on only the ``moving`` artists are drawn onto it, so
    that a redraw takes milliseconds however much the figure holds. The browser asks for a picture when it has shown
    the one before, so quick changes leave no queue.
    """

    def __init__(self, figure: Figure, moving: Iterable[Artist] = ()) -> None:
        super().__init__(figure)
        self.toolbar_visible = self.header_visible = self.footer_visible = self.resizable = False
        manager = FigureManager(self, 0)
        self.mpl_disconnect(manager.key_press_handler_id)  # s would save, l would change the scale
        self.moving = list(moving)
        for artist in self.moving:
            artist.set_animated(True)
            artist.set_in_layout(False)
        self._background: Any = None
        self._renderer: Any = None

    def _handle_message(self, widget: Any, content: dict[str, Any], buffers: Any) -> None:
        super()._handle_message(widget, content, buffers)
        if content["type"] == "initialized":  # the page has drawn a handle to resize by; a change takes it away
            self.resizable = True
            self.resizable = False

    def draw_everything(self) -> None:
        """At the next redraw draw the background too: something else than the moving artists has changed."""
        self._background = None
        self.draw_idle()

    def draw(self) -> None:
        """Draw what is necessary and send it to the browser."""
        self._png_is_old = True
        renderer = self.get_renderer()
        if self._background is None or self._renderer is not renderer:  # another size or resolution: a new renderer
            FigureCanvasAgg.draw(self)
            self._renderer, self._background = renderer, self.copy_from_bbox(self.figure.bbox)
        else:
            self.restore_region(self._background)
        for artist in self.moving:
            if artist.get_visible():
                artist.draw(renderer)
        self.manager.refresh_all()
