"""nesskit: continual learning in the null space.

Learn each new task where old tasks' layer inputs have small singular values (NESS, CPAL 2026), and see why that works.
Names are imported when they are first used, so ``import nesskit`` costs nothing and loads no torch. They stand in
``__init__.pyi``, one a line, where type checkers find them too.
"""

from __future__ import annotations

import importlib
import os
import re
from pathlib import Path
from typing import Any

__version__ = "0.2.0.dev0"

# Threads that wait for their next piece of work should sleep: by default they spin, and beside another busy process on
# a small machine a training step then takes up to 60 times as long (speed/threads.py). Heeded only before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_STUB = Path(__file__).with_name("__init__.pyi").read_text(encoding="utf-8")
_HOME_OF = {name: home for home, name in re.findall(r"^from (\S+) import (\w+) as \2$", _STUB, re.MULTILINE)}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'nesskit' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
