"""What only a GPU can tell, in one command that stops by itself in time: checks, step times, and whole benchmark rows.

    python -m studies.gpu --minutes 12                        # on a machine with a GPU
    python -m studies.gpu --minutes 12 --continue gpu-results # go on later, in the same folder
    python -m studies.gpu --minutes 2 --tiny                  # a rehearsal, also without a GPU

It needs torch, numpy, scikit-learn, tqdm and filelock, and nothing else. First come the checks that must hold on a GPU,
then milliseconds of a training step of every method, then rows in the order of their priority (--list), the seeds of a
row side by side. What is worth carrying home lies in OUTPUT/bring-home: at most eight files, each under 16 MB.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from nesskit.errors import NesskitError, SettingsError
from nesskit.runs.environment import describe_environment
from nesskit.streams.fetch import locate_stream
from studies.gpu.data import mirror_of
from studies.gpu.essentials import ESSENTIALS, checked
from studies.gpu.plan import TINY, WHOLE, Plan, Row
from studies.gpu.step_times import step_time, two_tasks
from studies.gpu.study import Study
from studies.gpu.training import side_by_side, train

PARTS = ("checks", "steps", "rows")
PACKING = 20.0  # seconds before the end at which runs stop, to be packed


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; errors that are expected end in one sentence and exit status 1, an interrupt in 130."""
    options = _parser().parse_args(arguments)
    plan = TINY if options.tiny else WHOLE
    if options.list:
        for row in plan.rows:
            print(_listed(row, plan))
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job that is ended ends as by Ctrl-C
    try:
        _study(options, plan, time.time())
    except (NesskitError, OSError) as error:  # also a disk that is full, or a folder that nobody may write to
        sys.exit(f"studies.gpu: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def _study(options: argparse.Namespace, plan: Plan, began: float) -> None:
    """Everything that was asked for; what cannot be is found out before anything is written."""
    if not (math.isfinite(options.minutes) and 60 * options.minutes > PACKING):
        raise SettingsError(f"--minutes must be above {PACKING / 60:.1f}, which the end takes, got {options.minutes:g}")
    rows = plan.chosen(options.rows)
    device = _device(options.tiny)
    processes = side_by_side(min(options.processes, len(plan.seeds)), plan.gigabytes, device)
    if options.go_on is None:
        study = Study.new(options.output, plan)
    else:
        study = Study.continued(options.go_on, options.output, plan)
    study.keep_checkpoints = options.keep_checkpoints
    _find_data(options.data, study)
    study.begin_session(describe_environment(device), options.minutes, processes)
    how = "ended by an error"
    try:
        how = _work(study, options.parts, rows, device, processes, began + 60 * options.minutes - PACKING)
    except KeyboardInterrupt:
        how = "interrupted"
        raise
    finally:
        study.end_session(how)
        print(f"{how}; what to bring home lies in {study.home}", flush=True)


def _work(
    study: Study, parts: Sequence[str], rows: Sequence[Row], device: torch.device, processes: int, deadline: float
) -> str:
    """The parts one after another until ``deadline``; how it ended."""
    if "checks" in parts:
        _check(study, device, deadline)
    if "steps" in parts:
        _time_steps(study, device, deadline)
    if device.type == "cuda":
        torch.cuda.empty_cache()  # the runs are other processes, which need it
    for row in rows if "rows" in parts else ():
        why_not = study.plan.why_not(row)
        if why_not:
            _say(f"{row.label}: skipped, {why_not}")
            continue
        if study.is_done(row):
            continue
        if deadline - time.time() < study.plan.least_seconds:
            return "stopped in time"
        _say(f"{row.label}: {row.method}, preset {row.preset}")
        failed = train(study.plan.settings(row), study.runs, device, processes, deadline, _say)
        study.failures[row.label] = {str(seed): why for seed, why in failed.items()}
        for seed, why in failed.items():
            _say(f"  seed {seed} failed: {why}")
        study.pack()
    return "stopped in time" if time.time() > deadline else "all done"


def _check(study: Study, device: torch.device, deadline: float) -> None:
    """Every essential that did not hold before."""
    for essential in ESSENTIALS:
        name = essential.__name__
        if study.essentials.get(name, {}).get("holds") or time.time() > deadline:
            continue
        found = study.essentials[name] = checked(essential, device)
        study.write()
        _say(f"{'PASS' if found['holds'] else 'FAIL'}  {name.replace('_', ' ')}: {found['value']} ({found['what']})")


def _time_steps(study: Study, device: torch.device, deadline: float) -> None:
    """The steps of every method that was not timed before."""
    left = [m for m in study.plan.step_methods if study.step_times.get(m, {"error": ""}).get("error") is not None]
    stream = two_tasks(study.plan) if left else None
    for method in left:
        if time.time() > deadline:
            return
        assert stream is not None
        found = study.step_times[method] = step_time(method, study.plan, stream, device)
        study.write()
        words = [f"{way} {1e3 * found[way]:.2f} ms" for way in ("eager", "graph") if found[way]]
        _say(f"a step of {method}: {', '.join([*words, *filter(None, [found.get('error')])])}")


def _listed(row: Row, plan: Plan) -> str:
    why_not = plan.why_not(row)
    return f"{row.label:21} {row.method}, preset {row.preset}" + (f" (not here: {why_not})" if why_not else "")


def _device(tiny: bool) -> torch.device:
    """The GPU; in a rehearsal the CPU will do."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if tiny:
        return torch.device("cpu")
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    raise SettingsError(
        f"torch {torch.__version__}, {built}, finds no GPU here: use a machine that has one, with a torch for it, or "
        "rehearse with --tiny"
    )


def _find_data(given: Path | None, study: Study) -> None:
    """Have the data at hand, verified, for this process and for those that it starts."""
    place = study.folder / "data"
    if given is not None:
        mirror_of(given, WHOLE.benchmark, place)
    if place.is_dir():
        os.environ["NESSKIT_MIRROR"] = str(place.absolute())
    locate_stream(study.plan.benchmark)


def _say(text: str) -> None:
    print(text, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m studies.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=12.0, help="when all of it has ended (default: 12)")
    parser.add_argument("--output", type=Path, default=Path("gpu-results"), help="default: gpu-results")
    parser.add_argument(
        "--continue", type=Path, dest="go_on", metavar="FOLDER", help="go on with this study, or with its bring-home"
    )
    parser.add_argument("--data", type=Path, help="folder with the archive of CIFAR-100, whole or as part0, part1, …")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="these rows only")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="default: all of them")
    parser.add_argument("--processes", type=_count, default=5, help="at most so many side by side (default: 5)")
    parser.add_argument("--keep-checkpoints", action="store_true", help="bring home as many as there is room for")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal in a minute, on small tasks")
    parser.add_argument("--list", action="store_true", help="print the rows and stop")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


if __name__ == "__main__":
    main()
