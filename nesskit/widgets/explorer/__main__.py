"""``python -m nesskit.widgets.explorer explorer.html``: the explorer as a page without a kernel."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nesskit.errors import NesskitError
from nesskit.widgets.explorer.page import write_page


def main() -> None:
    """Write the page that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m nesskit.widgets.explorer", description=__doc__)
    parser.add_argument("page", type=Path, help="the HTML file to write")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs lie; recorded ones come after them")
    choices = parser.parse_args()
    try:
        path = write_page(choices.page, choices.runs)
    except NesskitError as error:
        sys.exit(f"nesskit: {error}")
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, open it in a browser")


if __name__ == "__main__":
    main()
