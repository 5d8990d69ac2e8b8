"""A slider that everybody can use: the page's own, with a name, its value in words, and a field that checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import traitlets

SAME = 1e-9  # what rounding may do to a bound, as in slider.js


class Slider(anywidget.AnyWidget):
    """A number between two bounds, by mouse, arrow keys, or typed.

    The sliders of ipywidgets have no name for screen readers, a logarithmic one tells its exponent, and what is typed
    beside one is bent to its bounds without a word. Here a wrong one stays to be corrected, a sentence says what is
    right, and the value is kept as it was.

    Attributes:
        value: an int on a slider of whole numbers, else a float; setting one beyond the bounds is a ``TraitError``.
        min, max, step: of the value, on a logarithmic slider of its exponent of ten.
        log: whether it is logarithmic.
        whole: whether only whole numbers are there to choose.
        description: its name.
    """

    _esm, _css = (Path(__file__).with_name(f"slider.{kind}") for kind in ("js", "css"))
    value: Any = traitlets.Union([traitlets.Int(), traitlets.Float()]).tag(sync=True)
    min = traitlets.Float(0.0).tag(sync=True)
    max = traitlets.Float(1.0).tag(sync=True)
    step = traitlets.Float(0.01).tag(sync=True)
    log = traitlets.Bool(False).tag(sync=True)
    whole = traitlets.Bool(False).tag(sync=True)
    description = traitlets.Unicode().tag(sync=True)

    @traitlets.validate("value")
    def _within_bounds(self, proposal: traitlets.Bunch) -> int | float:
        value = proposal["value"]
        low, high = (10**bound if self.log else bound for bound in (self.min, self.max))
        fits = low * (1 - SAME) <= value <= high * (1 + SAME) and (float(value).is_integer() or not self.whole)
        if not fits:  # as NaN does not either
            kind = "whole number" if self.whole else "number"
            raise traitlets.TraitError(f"{self.description} must be a {kind} from {low:g} to {high:g}, got {value:g}")
        return int(value) if self.whole else value
