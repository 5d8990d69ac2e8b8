"""The command line: ``nesskit run``, ``compare``, ``sweep``, ``report`` and the rest; ``nesskit --help`` lists them.

Flags are made from the same dataclasses as the Python settings, by tyro; their defaults are those of the chosen
benchmark, method and preset, so ``nesskit run permuted-digits --method ness --help`` shows what would be run. torch is
imported only when something is computed.
"""

# No `from __future__ import annotations` here: tyro reads the annotations, and some are made at run time.

import argparse
import dataclasses
import json
import os
import select
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from nesskit.errors import NesskitError, SettingsError
from nesskit.experiments.benchmarks import BENCHMARKS
from nesskit.experiments.configure import configure, get_benchmark
from nesskit.experiments.running import execute, execute_all
from nesskit.settings import METHOD_SETTINGS, RunSettings
from nesskit.spectra.filters import FILTERS, Filter, parse_filter
from nesskit.userfiles import folder_name, parse_reference

if TYPE_CHECKING:
    from nesskit.runs.comparison import Comparison
    from nesskit.runs.events import Event, Listener
    from nesskit.runs.record import Run
    from nesskit.training.limits import Limits

DEMO_METHODS = ("finetune", "ness", "joint")

registry = tyro.constructors.ConstructorRegistry()


@registry.primitive_rule
def _filter_flag(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Filter] | None:
    """A filter is one word on the command line, ``name:value``."""
    if info.type is not Filter:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="NAME:VALUE",
        instance_from_str=lambda words: parse_filter(words[0]),
        is_instance=lambda value: isinstance(value, Filter),
        str_from_instance=lambda value: [str(value)],
    )


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Where and how far to run; none of this changes the result of a whole run."""

    runs: Path = Path("runs")
    """Folder under which runs lie, as <benchmark>/<method>/<seed>-<settings hash>/."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, …; auto takes a GPU if there is one."""
    limit_tasks: int | None = None
    """Stop after this many tasks; the same command without it goes on."""
    max_minutes: float | None = None
    """Stop at the first epoch that ends after this time; the same command goes on."""
    checkpoint_epochs: int = 10
    """Save after this many epochs, beside every end of a task."""
    json: bool = False
    """Print one JSON object as the last line; progress goes to stderr."""

    def __post_init__(self) -> None:
        for name in ("limit_tasks", "max_minutes", "checkpoint_epochs"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise SettingsError(f"--{name.replace('_', '-')} must be above 0, got {value}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of ``nesskit`` and ``python -m nesskit``. Expected errors end in one sentence and exit status 1."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    warnings.showwarning = _print_warning
    try:
        try:
            with registry:
                _dispatch(arguments)
        finally:
            sys.stdout.flush()  # when Python ends it is too late to answer an error
    except NesskitError as error:
        sys.exit(f"nesskit: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the rest goes when Python ends
        sys.exit(141)  # as of a command that the system ends, because ``head`` has seen enough


def _reader_is_gone() -> bool:
    """Whether nobody reads what is printed any more."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)  # errors are told in any case
    return bool(output.poll(0))


def _dispatch(arguments: list[str]) -> None:
    commands = _commands(arguments)
    if arguments and arguments[0] in commands:
        # Called by itself, a command's own help and errors name its flags alone.
        name = arguments[0]
        tyro.cli(commands[name], prog=f"nesskit {name}", args=arguments[1:])
    else:
        about = "Continual learning in the null space: run, compare and look at NESS and its rivals."
        tyro.extras.subcommand_cli_from_dict(commands, prog="nesskit", description=about, args=arguments)


def _commands(arguments: Sequence[str]) -> dict[str, Callable[..., None]]:
    """Every command by name; the flags of ``run`` and ``compare`` depend on what is to be run."""
    return {
        "run": _run_command(_peek(arguments)),
        "compare": _compare_command(_peek(arguments)),
        "sweep": sweep,
        "report": report,
        "fetch": fetch,
        "table": table,
        "record": record,
        "list": list_all,
        "demo": demo,
    }


def _peek(arguments: Sequence[str]) -> RunSettings:
    """The settings that flags start from: those of the benchmark, method and preset that ``arguments`` name."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--method", default="ness")
    parser.add_argument("--preset")
    parser.add_argument("--filter")  # may come from a file, as the benchmark may
    named, others = parser.parse_known_args(arguments[1:])
    if arguments[:1] not in (["run"], ["compare"]):
        return configure("permuted-digits")
    benchmark = next((word for word in others if word in BENCHMARKS or parse_reference(word)), None)
    if benchmark is None or not (named.method in METHOD_SETTINGS or parse_reference(named.method)):
        return configure("permuted-digits")
    return configure(benchmark, named.method, named.preset)


def _run_command(defaults: RunSettings) -> Callable[..., None]:
    training_type, options_type, network_type = map(type, (defaults.training, defaults.options, defaults.network))

    def run(
        benchmark: tyro.conf.Positional[str],
        method: str = defaults.method,
        preset: str = defaults.preset,
        seed: int = 0,
        validation_share: float = defaults.validation_share,
        split: Literal["nesskit", "authors"] = defaults.split,
        training: tyro.conf.OmitArgPrefixes[training_type] = defaults.training,  # type: ignore[valid-type]
        specific: tyro.conf.OmitArgPrefixes[options_type] = defaults.options,  # type: ignore[valid-type]
        network: network_type = defaults.network,  # type: ignore[valid-type]
        running: tyro.conf.OmitArgPrefixes[RunOptions] = RunOptions(),
    ) -> None:
        """Run a method on a benchmark; go on with it or show it if that was begun before.

        Args:
            benchmark: name of the benchmark, see nesskit list; or a stream of your own, path.py:function.
            method: name of the method; or one of your own, path.py:Name.
            preset: name of the settings that all other flags start from.
            seed: determines data order, initialisation and everything random.
            validation_share: share of each task's training data that is set aside.
            split: which data that is: drawn our way, or as the authors' code draws it (benchmarks of the paper).
        """
        get_benchmark(benchmark)
        settings = dataclasses.replace(
            configure(benchmark, method, preset, seed),
            validation_share=validation_share,
            split=split,
            training=training,
            options=specific,
            network=network,
        )
        _show_run(_execute(settings, running), running)

    return run


def _compare_command(defaults: RunSettings) -> Callable[..., None]:
    training_type = type(defaults.training)

    def compare_methods(
        benchmark: tyro.conf.Positional[str],
        methods: str = "finetune,ness,joint",
        seeds: str = "0,1,2,3,4",
        preset: str = defaults.preset,
        training: tyro.conf.OmitArgPrefixes[training_type] = defaults.training,  # type: ignore[valid-type]
        output: Path | None = None,
        executor: str | None = None,
        running: tyro.conf.OmitArgPrefixes[RunOptions] = RunOptions(),
    ) -> None:
        """Run several methods with several seeds: mean ± std, differences paired by seed, CSV and an HTML report.

        Args:
            benchmark: name of the benchmark, see nesskit list.
            methods: names, separated by commas, or all; differences are taken to the first.
            seeds: whole numbers, separated by commas.
            preset: name of the settings that all other flags start from.
            output: folder for comparison.csv and report.html; default: <runs>/<benchmark>/comparison.
            executor: run beside each other: processes:4 on this machine, dask://host:8786 on a Dask cluster.
        """
        changes = _changed(configure(benchmark, preset=preset).training, training)
        names = list(METHOD_SETTINGS) if methods == "all" else _words(methods)
        if not names:
            raise SettingsError("--methods must be names separated by commas, or all")
        wanted = [configure(benchmark, m, preset, s, **changes) for m in names for s in _numbers(seeds)]
        comparison = _compare(wanted, executor, running)
        _show_comparison(comparison, output or running.runs / folder_name(benchmark) / "comparison", running.json)
        if comparison.failures:
            sys.exit(1)

    return compare_methods


def sweep(
    benchmark: tyro.conf.Positional[str],
    filter: str = "frobenius",
    grid: str = "0.005:0.08:9",
    seeds: str = "10,11,12,13,14",
    preset: str | None = None,
    validation_share: float = 0.2,
    output: Path | None = None,
    runs: Path = Path("runs"),
    device: str = "auto",
) -> None:
    """Run NESS over a grid of thresholds and choose on validation data; table, CSV and a plot.

    Args:
        benchmark: name of the benchmark, see nesskit list.
        filter: name of the rule, such as frobenius or nuclear; or one of your own, path.py:Name.
        grid: low:high:count, geometrically spaced, or values separated by commas.
        seeds: whole numbers, separated by commas.
        preset: name of the settings to start from; default: the benchmark's first.
        validation_share: share of each task's training data that the choice is made on.
        output: the CSV to write, the plot stands beside it as .png; default: <runs>/<benchmark>/sweep-<filter>.csv.
        runs: folder under which runs lie.
        device: auto, cpu, cuda, …
    """
    from tabulate import tabulate

    from nesskit.experiments import running
    from nesskit.runs.sweep import parse_grid

    if output is not None and output.suffix.lower() == ".png":
        raise SettingsError(f"--output is the CSV, and the plot stands beside it as .png: {output} cannot be both")
    rules = [parse_filter(f"{filter}:{value!r}") for value in parse_grid(grid)]
    result = running.sweep(
        benchmark, rules, _numbers(seeds), preset=preset, validation_share=validation_share, runs=runs, device=device
    )
    header, rows = result.table()
    print("\n" + tabulate(rows, header, disable_numparse=True))
    written = result.write_csv(output or runs / folder_name(benchmark) / f"sweep-{folder_name(filter)}.csv")
    print(f"\ntable: {written}")
    from nesskit.plots.sweeps import save_sweep

    print(f"plot:  {save_sweep(result, written.with_suffix('.png'))}")


def report(runs: tyro.conf.Positional[list[Path]], output: Path = Path("report.html")) -> None:
    """Write one self-contained HTML page about a run, or about several side by side.

    Args:
        runs: run folders (those that hold a record.json).
        output: the page to write.
    """
    from nesskit.report.page import write_report
    from nesskit.runs.folder import load_run

    if not runs:
        raise SettingsError("nesskit report needs at least one run folder")
    print(f"report: {write_report([load_run(path) for path in runs], output)}")


def fetch(benchmark: tyro.conf.Positional[str]) -> None:
    """Download and verify the data of a benchmark, or verify what is there.

    Args:
        benchmark: name of the benchmark, see nesskit list.
    """
    from nesskit.streams import fetch_stream

    files = fetch_stream(get_benchmark(benchmark).name)
    for path in files.values():
        print(f"verified: {path}")
    if not files:
        print(f"{benchmark} needs no download: its data comes with scikit-learn")


def table(
    benchmark: tyro.conf.Positional[str], all: bool = False, markdown: bool = False, results: Path | None = None
) -> None:
    """Print recorded runs beside the published figures.

    Args:
        benchmark: name of the benchmark, see nesskit list.
        all: print reduced and changed runs too.
        markdown: print a Markdown table.
        results: folder of recorded runs; default: data/results of the checkout.
    """
    from nesskit.report.results_table import result_table, split_whole
    from nesskit.runs.results import load_results

    if results is not None and not results.is_dir():
        raise SettingsError(f"--results {results} is no folder: give the one that holds a folder a benchmark")
    runs = load_results(benchmark, results, profiles=False)
    whole, others = split_whole(runs)
    _print_table(*result_table(benchmark, runs if all else whole), markdown)
    if not runs:
        print(f"\nNo run of {benchmark} is recorded yet: nesskit record keeps one.")
    if others and not all:
        count = "1 run is" if len(others) == 1 else f"{len(others)} runs are"
        print(f"\n{count} reduced or changed, so no reproduction: nesskit table {benchmark} --all shows them too.")


def _print_table(header: list[str], rows: list[list[str]], markdown: bool) -> None:
    """Print a table without its empty columns."""
    from tabulate import tabulate

    if not rows:
        return
    filled = [column for column in range(len(header)) if any(row[column] not in ("", "–") for row in rows)]
    header, rows = [header[column] for column in filled], [[row[column] for column in filled] for row in rows]
    if markdown:
        print(tabulate(rows, header, tablefmt="github", disable_numparse=True))
    else:
        widths = [{"method": 26, "remarks": 30}.get(name, 30 if "BWT" in name else 14) for name in header]
        # A cell such as 6,276 must not be wrapped: tabulate would take it for a number, and fail at the comma.
        fits = [max(len(row[column]) for row in rows) <= width for column, width in enumerate(widths)]
        wrapped = [None if fit else width for fit, width in zip(fits, widths, strict=True)]
        print(tabulate(rows, header, disable_numparse=True, maxcolwidths=wrapped, maxheadercolwidths=widths))


def record(runs: tyro.conf.Positional[list[Path]], results: Path | None = None) -> None:
    """Keep runs among the recorded results: small JSON with settings, environment and checksums; layer profiles beside.

    Args:
        runs: run folders (those that hold a record.json).
        results: folder of recorded runs; default: data/results of the checkout.
    """
    from nesskit.runs.folder import load_run
    from nesskit.runs.results import record_run

    if not runs:
        raise SettingsError("nesskit record needs at least one run folder")
    for path in runs:
        print(f"recorded: {record_run(load_run(path), results)}")


def list_all() -> None:
    """List benchmarks, presets, methods and filters."""
    print("Benchmarks (nesskit run BENCHMARK)")
    for benchmark in BENCHMARKS.values():
        print(f"  {benchmark.name:22} {benchmark.summary}")
        for name, preset in benchmark.presets.items():
            print(f"  {'':22} --preset {name}: {preset.summary}")
    print("\nMethods (--method NAME)")
    for name, settings in METHOD_SETTINGS.items():
        print(f"  {name:22} {_first_line(settings)}")
    print("\nFilters of ness (--filter NAME:VALUE)")
    for name, rule in FILTERS.items():
        print(f"  {name:22} {_first_line(rule)}")


def demo(runs: Path = Path("runs"), seed: int = 0) -> None:
    """About half a minute: fine-tuning, NESS and joint training on permuted digits, a table and an HTML report.

    Args:
        runs: folder under which runs lie.
        seed: determines everything random.
    """
    where = RunOptions(runs=runs, device="cpu")
    from nesskit.runs.comparison import Comparison

    results = [_execute(configure("permuted-digits", method, seed=seed), where) for method in DEMO_METHODS]
    folder = runs / "demo"
    _show_comparison(Comparison.of(results), folder, machine_readable=False)
    from nesskit.report.picture import save_picture

    print(f"picture: {save_picture(results, folder / 'demo.png')}")


def _execute(settings: RunSettings, where: RunOptions) -> "Run":
    return execute(settings, where.runs, where.device, _limits(where), _listeners(where)(settings))


def _compare(wanted: Sequence[RunSettings], executor: str | None, where: RunOptions) -> "Comparison":
    """All runs, here or in an executor, side by side; failures are told at once and again in the table."""
    import contextlib

    from nesskit.experiments.executors import open_executor
    from nesskit.runs.comparison import Comparison, Failure

    out = sys.stderr if where.json else sys.stdout

    def tell(ended: "Run | Failure") -> None:
        if isinstance(ended, Failure):
            print(f"{ended.method}, seed {ended.seed}, failed: {ended.reason}", file=out, flush=True)
        elif executor is not None:
            label = f"{ended.config['method']}, seed {ended.config['seed']}"
            print(f"{label}: ACC {ended.average_accuracy:.2f} %, {ended.status}", file=out, flush=True)

    with open_executor(executor) if executor is not None else contextlib.nullcontext() as pool:
        ended = execute_all(wanted, where.runs, where.device, _limits(where), pool, _listeners(where), tell)
    return Comparison.of(*ended)


def _limits(where: RunOptions) -> "Limits":
    from nesskit.training.limits import Limits

    return Limits(where.limit_tasks, where.max_minutes, where.checkpoint_epochs)


def _listeners(where: RunOptions) -> "Callable[[RunSettings], list[Listener]]":
    """What shows a run to a person."""
    from nesskit.runs.progress import progress_listener

    out = sys.stderr if where.json else sys.stdout

    def listeners_of(settings: RunSettings) -> "list[Listener]":
        label = f"{settings.method}, seed {settings.seed}"
        return [_announce(label, out), progress_listener(label, machine_readable=where.json)]

    return listeners_of


def _announce(label: str, out: Any) -> "Listener":
    """A listener that says whether a run begins, goes on, or was finished before, and how to go on if it stopped."""
    from nesskit.runs.events import RunStarted, RunStopped

    def listen(event: "Event") -> None:
        if isinstance(event, RunStarted):
            done = f"after {event.tasks_done} of {event.tasks} tasks"
            done += f" and {event.epochs_done} epochs" if event.epochs_done else ""
            words = {
                "new": "new run",
                "continued": f"going on {done}",
                "finished": "finished before, nothing to compute",
            }
            print("; ".join([f"{label}: {words[event.state]} ({event.folder})", *event.notes]), file=out, flush=True)
        elif isinstance(event, RunStopped) and not event.finished:
            print(f"{label}: {event.reason}; the same command goes on", file=out, flush=True)

    return listen


def _show_run(run: "Run", where: RunOptions) -> None:
    if where.json:
        print(json.dumps(run.summary()))
        return
    if run.tasks_done:
        from tabulate import tabulate

        rows = [
            [f"after task {number + 1}", *("" if value != value else f"{value:.1f}" for value in row)]
            for number, row in enumerate(run.accuracy[: run.tasks_done].tolist())
        ]
        print(tabulate(rows, ["accuracy, %", *range(1, len(run.tasks) + 1)], stralign="right", disable_numparse=True))
        transfer = f"{run.backward_transfer:+.2f}" if run.backward_transfer == run.backward_transfer else "–"
        named = f"   ACC with the task's name {run.named_average_accuracy:.2f} %" if run.without_names else ""
        kept = f"   similarity kept {run.finally_kept_similarity:.2f}" if run.kept_similarity else ""
        print(f"ACC {run.average_accuracy:.2f} %   BWT {transfer} %{named}{kept}   {run.seconds:.1f} s   {run.folder}")
    if run.status == "stopped":
        sys.exit(0 if "as asked" in run.status_reason else 130)


def _show_comparison(comparison: "Comparison", folder: Path, machine_readable: bool) -> None:
    from tabulate import tabulate

    from nesskit.report.page import write_report

    header, rows = comparison.table()
    out = sys.stderr if machine_readable else sys.stdout
    print("\n" + tabulate(rows, header, disable_numparse=True), file=out)
    print(f"\nruns:   {comparison.write_csv(folder / 'comparison.csv')}", file=out)
    print(f"report: {write_report(comparison, folder / 'report.html')}", file=out)
    if machine_readable:
        print(json.dumps({"runs": [run.summary() for run in comparison.runs]}))


def _changed(before: Any, after: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ."""
    values = {f.name: (getattr(before, f.name), getattr(after, f.name)) for f in dataclasses.fields(after)}
    return {name: new for name, (old, new) in values.items() if old != new}


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _numbers(text: str) -> list[int]:
    try:
        found = [int(word) for word in _words(text)]
    except ValueError:
        found = []
    if not found:
        raise SettingsError(f"seeds must be whole numbers separated by commas, such as 1,2,3; got '{text}'")
    return found


def _first_line(documented: Any) -> str:
    return (documented.__doc__ or "").strip().splitlines()[0]


def _print_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    print(f"nesskit: warning: {message}", file=sys.stderr)
