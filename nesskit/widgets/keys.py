"""Keys that are pressed on the controls of a widget are the controls' own, and none of the notebook's."""

from __future__ import annotations

import anywidget


class OwnKeys(anywidget.AnyWidget):
    """Put into a box, it keeps the keys of every control in that box; it shows nothing.

    JupyterLab takes what is pressed on a menu or a button for commands of the notebook: an arrow goes to another cell
    instead of choosing, and letters add or delete cells. It leaves a control alone that has this attribute.
    """

    _esm = """
    function render({ el }) {
        el.style.display = "none";
        const keep = ({ target }) => target.setAttribute("data-lm-suppress-shortcuts", "true");
        let frame = requestAnimationFrame(function begin() {
            if (el.parentElement) el.parentElement.addEventListener("focusin", keep);
            else frame = requestAnimationFrame(begin); // not yet in its box
        });
        return () => cancelAnimationFrame(frame);
    }
    export default { render };
    """
