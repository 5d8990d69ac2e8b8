"""How long it takes until something happens, as whole processes: commands, and the first widget.

python speed/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

COMMANDS = {
    "python (does nothing)": ["-c", "pass"],
    "import nesskit": ["-c", "import nesskit"],
    "nesskit --help": ["-m", "nesskit", "--help"],
    "nesskit run --help": ["-m", "nesskit", "run", "--help"],
    "import torch (for comparison)": ["-c", "import torch"],
}

# The explorer on a finished run, as the notebook explorer.ipynb has it; the clock starts with the interpreter's work.
FIRST_WIDGET = """
import sys, time
started = time.perf_counter()
import torch
loaded = time.perf_counter()
from nesskit.widgets import ThresholdExplorer
explorer = ThresholdExplorer(sys.argv[1])
explorer._repr_mimebundle_()
print(loaded - started, time.perf_counter() - started)
"""


def measure(quick: bool = False) -> dict[str, Any]:
    """Median seconds of every command, in turns, and until the first widget is drawn."""
    rounds = 3 if quick else 7
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            times[name].append(time.perf_counter() - started)
    figures = {name: statistics.median(values) for name, values in times.items()} | first_widget(rounds)
    for name, seconds in figures.items():
        print(f"{name:42} {seconds:.3f} s")
    return figures


def first_widget(rounds: int) -> dict[str, float]:
    """Median seconds in a fresh process until the threshold explorer of a finished run is drawn, and torch's share."""
    import nesskit

    with tempfile.TemporaryDirectory() as runs:
        run = nesskit.run("permuted-digits", epochs=1, runs=runs, progress=False)
        command = [sys.executable, "-c", FIRST_WIDGET, str(run.folder)]
        pairs = []
        for _ in range(rounds):
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            pairs.append([float(value) for value in done.stdout.split()])
    torch_alone, whole = (statistics.median(column) for column in zip(*pairs, strict=True))
    return {"first widget drawn, imports included": whole, "  of that, importing torch": torch_alone}


if __name__ == "__main__":
    measure()
