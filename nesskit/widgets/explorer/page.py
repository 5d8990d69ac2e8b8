"""The explorer as one HTML file: recorded runs, the same module as in a notebook, no kernel, no other host.

``python -m nesskit.widgets.explorer explorer.html`` writes it; :func:`explorer_page` makes its text.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nesskit.errors import NesskitError
from nesskit.widgets.explorer.source import Source, find_runs, load_source, packed, start_of
from nesskit.widgets.explorer.state import State
from nesskit.widgets.explorer.view import SCRIPT, STYLES

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The threshold explorer</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0; padding: 12px 20px; background: #ffffff; }}
@media (prefers-color-scheme: dark) {{ body {{ background: #16191d; }} }}
{styles}
</style>
</head>
<body>
<main class="nk-explorer">
<h1>The threshold explorer</h1>
<p>NESS learns a new task in the directions that old inputs hardly use. ε₁ says what <em>hardly</em> means: every
direction with a singular value σ under the cut is free. Drag the cut, or move it with the arrow keys, and see what a
small or a large ε₁ frees, keeps and costs.</p>
<div id="explorer"></div>
</main>
<script type="application/json" id="runs">{runs}</script>
<script type="module">
{script}
const place = document.getElementById("explorer");
place.model = mountPage(place, JSON.parse(document.getElementById("runs").textContent));
</script>
</body>
</html>
"""


def explorer_page(sources: Mapping[str, Source]) -> str:
    """A page that shows ``sources``, label → what :func:`load_source` gives; vectors are in float32.

    Raises:
        NesskitError: there is none.
    """
    if not sources:
        raise NesskitError("there is no run with layer profiles to make a page of: record one, or make one with ness")
    runs = {label: _as_json(source) for label, source in sources.items()}
    text = json.dumps(runs, ensure_ascii=False).replace("<", "\\u003c")  # a label ends no script
    script, styles = (path.read_text(encoding="utf-8") for path in (SCRIPT, STYLES))
    return _PAGE.format(runs=text, script=script, styles=styles)


def write_page(path: Path | str, runs: Path | str = "runs", results: Path | str | None = None) -> Path:
    """Write the page of every run with profiles under ``runs``, and of every recorded one, to ``path``.

    Raises:
        NesskitError: there is no run, one is damaged, or the page cannot be written.
    """
    text = explorer_page({label: load_source(place) for label, place in find_runs(runs, results=results).items()})
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise NesskitError(f"cannot write {path}: {error.strerror}") from error
    return Path(path)


def _as_json(source: Source) -> dict[str, Any]:
    start = State(**start_of(source))
    return {**packed(source, np.float32, _base64), "rule": start.rule, "eps": start.eps}


def _base64(vector: bytes) -> str:
    return base64.b64encode(vector).decode()
