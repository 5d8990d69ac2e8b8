"""Where the project can be read on GitHub: launch links (Colab, Binder) appear where this is set."""

from __future__ import annotations

REPOSITORY = ""  # "owner/name"; empty: no page links to a place that does not exist
BRANCH = "main"
