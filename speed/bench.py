"""All of speed/ on the machine at hand: one JSON line in data/results/speed.jsonl.

Every topic runs in a process of its own, so that its threads and its peak of memory are its own. A topic that fails is
part of the line, with the reason, and of the exit status.

    make bench               # everything; half an hour on two cores
    make bench QUICK=1       # smaller sizes; a few minutes
    python speed/bench.py --topics eigen,startup
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LOG = HERE.parent / "data" / "results" / "speed.jsonl"
TOPICS = ("training_step", "moments", "eigen", "whole_run", "scale", "startup", "threads", "explorer")

# A child imports the topic and leaves its figures and its peak of memory in a file; what it prints is for the reader.
CHILD = """
import importlib, json, resource, sys
sys.path.insert(0, sys.argv[1])
figures = importlib.import_module(sys.argv[2]).measure(sys.argv[3] == "quick")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
json.dump({"figures": figures, "peak_bytes": peak}, open(sys.argv[4], "w"))
"""


def run_topic(topic: str, quick: bool, folder: Path = HERE) -> dict[str, Any]:
    """Its figures and peak of memory in bytes; or under ``failed`` the last line of what it said."""
    with tempfile.TemporaryDirectory() as temporary:
        answer = Path(temporary) / "figures.json"
        command = [sys.executable, "-c", CHILD, str(folder), topic, "quick" if quick else "full", str(answer)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode or not answer.exists():
            reason = (done.stderr.strip().splitlines() or [f"it ended with status {done.returncode}"])[-1]
            print(f"FAILED: {reason}", file=sys.stderr)
            return {"failed": reason}
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found


def machine() -> dict[str, Any]:
    """What the figures depend on and nobody's name: processor, cores, memory, GPU."""
    import torch

    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu_model() -> str:
    """As Linux names it, else the kind of processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def line_of(topics: Sequence[str], quick: bool, folder: Path = HERE) -> dict[str, Any]:
    """What is appended: when, where, with what, and every topic's figures."""
    import torch

    from nesskit.runs.environment import describe_environment

    found = {}
    for topic in topics:
        print(f"\n== {topic}", flush=True)
        found[topic] = run_topic(topic, quick, folder)
    when = datetime.now(UTC).isoformat(timespec="seconds")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "date": when,
        "quick": quick,
        "machine": machine(),
        "environment": describe_environment(device),
        "topics": found,
    }


def append(line: dict[str, Any], log: Path) -> None:
    """Add one line to the end of ``log``; what is there stays."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line, allow_nan=False) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes and fewer rounds")
    parser.add_argument("--topics", default=",".join(TOPICS), help=f"separated by commas (default: {','.join(TOPICS)})")
    parser.add_argument("--folder", type=Path, default=HERE, help="where the topics' modules lie")
    parser.add_argument("--log", type=Path, default=LOG, help="the file to append to")
    options = parser.parse_args(arguments)
    topics = options.topics.split(",")
    missing = [topic for topic in topics if not (options.folder / f"{topic}.py").is_file()]
    if missing:
        parser.error(f"there is no topic '{missing[0]}' in {options.folder}")
    line = line_of(topics, options.quick, options.folder)
    append(line, options.log)
    failed = [topic for topic, found in line["topics"].items() if "failed" in found]
    print(f"\nappended to {options.log}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
