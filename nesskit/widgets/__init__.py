"""Interactive parts for notebooks and Voilà pages. They never train in the kernel's own thread.

Names are imported when they are first used: ipywidgets and matplotlib load with them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nesskit.widgets.explorer.widget import ThresholdExplorer
    from nesskit.widgets.monitor import RunMonitor
    from nesskit.widgets.run_panel import RunPanel
    from nesskit.widgets.subspace import SubspaceViewer

_HOME_OF = {
    "RunMonitor": "nesskit.widgets.monitor",
    "RunPanel": "nesskit.widgets.run_panel",
    "SubspaceViewer": "nesskit.widgets.subspace",
    "ThresholdExplorer": "nesskit.widgets.explorer.widget",
}

__all__ = ["RunMonitor", "RunPanel", "SubspaceViewer", "ThresholdExplorer"]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'nesskit.widgets' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value
