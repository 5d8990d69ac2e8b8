"""How long it takes until something happens: `import nesskit` and `nesskit --help`, as whole processes.

Run: python speed/startup.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "python (does nothing)": ["-c", "pass"],
    "import nesskit": ["-c", "import nesskit"],
    "nesskit --help": ["-m", "nesskit", "--help"],
    "nesskit run --help": ["-m", "nesskit", "run", "--help"],
    "import torch (for comparison)": ["-c", "import torch"],
}
ROUNDS = 7


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(ROUNDS):
        for name, command in COMMANDS.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, *command], check=True, capture_output=True)
            times[name].append(time.perf_counter() - started)
    for name, values in times.items():
        print(f"{name:30} {statistics.median(values):.3f} s")


if __name__ == "__main__":
    main()
