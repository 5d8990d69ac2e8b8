"""What widgets share: still pictures, lines of text that are read out, and looking again and again at what goes on."""

from __future__ import annotations

import asyncio
import html
import io
from collections.abc import Callable, Sequence
from typing import Any

import anywidget
import ipywidgets as widgets
import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread, imsave

from nesskit.plots import picture_html
from nesskit.widgets.picture import DPI


def picture_bundle(
    bundle: dict[str, Any], text: str, alt: str, png: bytes, part: anywidget.AnyWidget
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a widget displays itself as: beside the live view a line of text and a picture.

    The metadata are those of a ``part`` of it, which on Colab say who can show an anywidget; elsewhere there are none.
    Pages that run no widgets (a repository's web view, nbconvert, paper) show the picture, and read out ``alt``.
    """
    _, metadata = part._repr_mimebundle_()  # type: ignore[misc]
    return {**bundle, "text/plain": text, "text/html": picture_html(png, alt)}, metadata


def stacked(figures: Sequence[Figure]) -> bytes:
    """Equally wide figures, one below the other, as one PNG."""
    return _joined(figures, axis=0)


def beside(figures: Sequence[Figure]) -> bytes:
    """Equally high figures, one beside the other, as one PNG."""
    return _joined(figures, axis=1)


def text_line(css_class: str) -> widgets.HTML:
    """A line of text that screen readers read out when it changes; see :func:`say`."""
    line = widgets.HTML()
    line.add_class(css_class)
    return line


def say(line: widgets.HTML, text: str, strong: str = "") -> None:
    """Write ``text``, with ``strong`` in bold before it, as plain text whatever it holds."""
    begin = f"<b>{html.escape(strong)}</b> " if strong else ""
    line.value = f'<div role="status" style="line-height: 1.4">{begin}{html.escape(text)}</div>' if text else ""


class LiveWidget(widgets.VBox):
    """A widget that looks by itself at what goes on, between two cells of a notebook.

    Attributes:
        interval: seconds between two looks.
    """

    interval: float
    _task: asyncio.Task[None] | None = None

    def follow(self, look: Callable[[], object], more_may_come: Callable[[], bool], notice: widgets.HTML) -> None:
        """Call ``look`` every ``interval`` seconds for as long as ``more_may_come``, and say in ``notice`` if it fails.

        Nothing happens where no event loop runs, and nothing while the widget follows already.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if more_may_come() and (self._task is None or self._task.done()):
            self._task = loop.create_task(self._look_again(look, more_may_come, notice))

    async def _look_again(
        self, look: Callable[[], object], more_may_come: Callable[[], bool], notice: widgets.HTML
    ) -> None:
        while self.comm is not None and more_may_come():
            await asyncio.sleep(self.interval)
            try:
                look()
            except Exception as error:  # a task would swallow it
                say(notice, f"{type(error).__name__}: {error}", "This view has failed:")
                raise


def _joined(figures: Sequence[Figure], axis: int) -> bytes:
    picture = io.BytesIO()
    imsave(picture, np.concatenate([_pixels(figure) for figure in figures], axis))
    return picture.getvalue()


def _pixels(figure: Figure) -> np.ndarray:
    """(height, width, 4) the figure as it is now."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=DPI)
    stream.seek(0)
    return imread(stream)
