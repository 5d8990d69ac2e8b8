"""What a result may depend on beside its settings."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nesskit


def describe_environment(device: torch.device) -> dict[str, Any]:
    """What a result may depend on beside its settings: versions, device, threads, commit."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "nesskit": nesskit.__version__,
        "commit": current_commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "system": platform.system(),
    }


def current_commit() -> str | None:
    """The commit of the checkout nesskit is imported from, with ``+changes`` if files differ; None outside of git."""

    def git(*command: str) -> str:
        folder = Path(nesskit.__file__).parent
        done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        tracked = git("ls-files", "__init__.py")  # not so if nesskit is installed inside somebody else's repository
        if not tracked:
            return None
        return git("rev-parse", "--short=12", "HEAD") + ("+changes" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
