"""Recorded runs and the table that puts them beside the published figures."""

import json
from dataclasses import fields

import numpy as np
import pytest

from nesskit import configure, run
from nesskit.cli import main
from nesskit.errors import NesskitError, RunFolderError
from nesskit.experiments.benchmarks import BENCHMARKS
from nesskit.report.results_table import published, result_table, split_whole
from nesskit.runs.record import EpochRecord, Run
from nesskit.runs.results import check_record, load_result, load_results, record_run, results_folder
from nesskit.spectra.profile import LayerProfile

ENVIRONMENT = {"torch": "2.13.0", "device": "cuda (some GPU)", "threads": 2, "commit": "0123456789ab"}


def paper_run(accuracy, transfer, **changes):
    """A finished CIFAR-100 run with given ACC and BWT."""
    settings = configure("split-cifar100", **changes)
    made = Run.new(
        settings.to_dict(), ENVIRONMENT, {"cifar-100-binary.tar.gz": "0" * 64}, [f"task {t}" for t in range(10)]
    )
    made.accuracy = np.tril(np.full((10, 10), float(accuracy)))
    made.accuracy[np.triu_indices(10, 1)] = np.nan
    np.fill_diagonal(made.accuracy[:9, :9], accuracy - transfer)
    made.history = [EpochRecord(task, epoch, 1.0, 1.0, 50.0, 0.1) for task in range(10) for epoch in range(70 + task)]
    made.status = "finished"
    return made


def cells(runs):
    header, rows = result_table("split-cifar100", runs)
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_published_figures_are_those_of_the_paper():
    lines = {line.label: line for line in published("split-cifar100")}
    assert lines["NESS, SGDm"].accuracy == (72.46, 0.26)
    assert lines["NESS, SGDm"].transfer == (0.03, 0.40)
    assert lines["SGP"].accuracy == (75.99, 0.16)
    assert lines["TRGP"].transfer == (0.06, 0.17)
    assert [len(published(name)) for name in ("split-cifar100", "five-datasets", "split-miniimagenet")] == [12, 10, 10]
    assert published("split-digits") == []


def test_private_numbers_are_counted_a_task():
    """Of ten tasks one has nothing of its own: 9 × 400 numbers of four bytes."""
    run = paper_run(72.20, 0.23, seed=1)
    run.memory = {"moments": 10**6, "private parts": 9 * 400 * 4, "shared directions": 5000}
    assert run.private_numbers == 360
    assert cells([run])[0]["private numbers a task"] == "360"


def test_the_digits_of_ewc_carry_what_they_were_copied_from():
    """68.88 ± .80 here, 68.80 ± .88 in CUBER's table; the other lines that come from there are equal to it."""
    (row,) = [row for row in cells([]) if row["method"] == "EWC"]
    assert row["published: ACC / BWT %"] == "68.88 ± 0.80 / -2.00 ± 1.00"
    assert "CUBER's table" in row["remarks"]
    assert "68.80 ± 0.88" in row["remarks"]


def test_a_whole_run_is_compared_in_units_of_the_published_deviation():
    row = cells([paper_run(72.20, 0.23, seed=1)])[0]
    assert row["method"] == "NESS, SGDm (paper-sgdm)"
    assert row["ours: ACC / BWT %"] == "72.20 / 0.23"
    assert row["difference, in published std"] == "-1.0 / +0.5"  # (72.20 - 72.46) / .26 and (.23 - .03) / .40
    assert row["private numbers a task"] == "0"
    assert row["seeds"] == "1"
    assert row["epochs a task"] == "70 to 79 (at most 200)"
    assert row["commit"] == "0123456789ab"
    assert row["remarks"] == ""


def test_seeds_are_gathered_in_one_row():
    row = cells([paper_run(72.0, 0.0, seed=1), paper_run(73.0, 0.0, seed=2)])[0]
    assert row["ours: ACC / BWT %"].startswith("72.50 ± 0.71")
    assert row["seeds"] == "1, 2"


def test_presets_of_one_published_line_stand_beside_it_each_with_its_protocol():
    first, second = cells([paper_run(72.46, 0, seed=1), paper_run(72.72, 0, seed=1, preset="nesskit-sgdm")])[:2]
    assert (first["method"], second["method"]) == ("NESS, SGDm (paper-sgdm)", "NESS, SGDm (nesskit-sgdm)")
    assert first["published: ACC / BWT %"] == second["published: ACC / BWT %"] == "72.46 ± 0.26 / 0.03 ± 0.40"
    assert [row["difference, in published std"].split(" / ")[0] for row in (first, second)] == ["+0.0", "+1.0"]


def test_whole_runs_come_before_reduced_ones():
    reduced, other = paper_run(60, 0, seed=1, epochs=3), paper_run(70, 0, seed=1, method="ness-soft")
    assert split_whole([reduced, other]) == ([other], [reduced])
    names = [row["method"] for row in cells([reduced, other])[-2:]]
    assert names == ["ness-soft (paper-sgdm)", "ness (paper-sgdm, reduced)"]


def test_a_method_with_the_settings_behind_its_published_line_stands_beside_it():
    row = next(row for row in cells([paper_run(72.30, 0, seed=1, method="gpm", preset="published")]) if row["seeds"])
    assert row["method"] == "GPM (published)"
    assert row["difference, in published std"] == "+1.0 / +0.5"  # (72.30 - 71.63) / .67 and .28 / .54


def test_a_reduced_run_is_never_called_a_reproduction():
    rows = cells([paper_run(72.46, 0.03, seed=1, epochs=3)])
    assert rows[0]["ours: ACC / BWT %"] == "–"  # the published line stays without a counterpart
    assert rows[0]["difference, in published std"] == "–"
    assert rows[-1]["method"] == "ness (paper-sgdm, reduced)"
    assert rows[-1]["difference, in published std"] == "–"
    assert rows[-1]["remarks"].startswith("not a reproduction; reduced, epochs = 3 (preset: 200)")


def test_a_changed_run_stands_apart_from_the_published_line():
    rows = cells([paper_run(72.46, 0.03, seed=1, memory="moments")])
    assert rows[0]["ours: ACC / BWT %"] == "–"
    assert rows[-1]["remarks"] == "memory = moments (preset: data)"


def test_a_run_of_another_benchmark_is_refused():
    with pytest.raises(NesskitError, match="has no place in the table of five-datasets"):
        result_table("five-datasets", [paper_run(70, 0)])


def test_a_recorded_run_comes_back_as_it_was(tmp_path):
    made = run("split-digits", epochs=2, validation_share=0.1, runs=tmp_path / "runs", progress=False)
    path = record_run(made, tmp_path / "results")
    assert path.stat().st_size < 100_000
    (loaded,) = load_results("split-digits", tmp_path / "results")
    assert np.array_equal(loaded.accuracy, made.accuracy, equal_nan=True)
    assert loaded.config == made.config
    assert loaded.data == made.data
    assert loaded.epochs_per_task == [2] * 5
    np.testing.assert_allclose([e.valid_loss for e in loaded.history], [e.valid_loss for e in made.history], rtol=1e-3)


def test_layer_profiles_are_kept_beside_the_record_and_small(tmp_path):
    made = run("split-digits", epochs=1, runs=tmp_path / "runs", progress=False)
    path = record_run(made, tmp_path / "results")
    numbers = sum(3 * len(profile.sigma_squared) for profile in made.profiles)
    assert path.with_suffix(".npz").stat().st_size < 4 * numbers + 5000  # float32, and what a file needs to be one
    (loaded,) = load_results("split-digits", tmp_path / "results")
    assert len(loaded.profiles) == len(made.profiles) > 0
    for ours, theirs in zip(loaded.profiles, made.profiles, strict=True):
        for field in fields(LayerProfile):
            value, expected = getattr(ours, field.name), getattr(theirs, field.name)
            if isinstance(expected, np.ndarray):
                assert value.dtype == np.float64
                np.testing.assert_array_equal(value, expected.astype(np.float32))
            else:
                assert value == expected
    (light,) = load_results("split-digits", tmp_path / "results", profiles=False)
    assert light.profiles == []


def test_a_method_without_profiles_is_recorded_without(tmp_path):
    made = run("split-digits", method="finetune", epochs=1, runs=tmp_path / "runs", progress=False)
    path = record_run(made, tmp_path / "results")
    assert [there.name for there in path.parent.iterdir()] == [path.name]
    assert load_result(path).profiles == []


def test_recording_never_overwrites_another_result(tmp_path):
    made = run("split-digits", epochs=1, runs=tmp_path / "runs", progress=False)
    path = record_run(made, tmp_path / "results")
    record_run(made, tmp_path / "results")  # the same once more is no harm
    before = {there: there.read_bytes() for there in path.parent.iterdir()}
    made.seconds += 1
    with pytest.raises(RunFolderError, match=r"\.json holds another result"):
        record_run(made, tmp_path / "results")
    made.seconds -= 1
    made.profiles = made.profiles[1:]
    with pytest.raises(RunFolderError, match=r"\.npz holds another result"):
        record_run(made, tmp_path / "results")
    assert {there: there.read_bytes() for there in path.parent.iterdir()} == before


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path):
    made = run("split-digits", epochs=1, runs=tmp_path / "runs", progress=False)
    (tmp_path / "results").write_text("in the way")
    with pytest.raises(RunFolderError, match="cannot record"):
        record_run(made, tmp_path / "results")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: r.update(data={}), "no SHA-256 of the data"),
        (lambda r: r.update(data={"x": "abc"}), "no SHA-256 of the data"),
        (lambda r: r["environment"].update(commit=None), "no commit"),
        (lambda r: r["environment"].pop("device"), "no device"),
        (lambda r: r["config"].pop("seed"), "no seed"),
        (lambda r: r.pop("accuracy"), "no accuracy"),
    ],
)
def test_a_record_without_provenance_is_refused(damage, message):
    record = json.loads(json.dumps(paper_run(70, 0, seed=1).to_dict()))
    check_record(record, "the record")
    damage(record)
    with pytest.raises(RunFolderError, match=message):
        check_record(record, "the record")


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_every_result_of_the_project_has_its_provenance(benchmark):
    for recorded in load_results(benchmark):
        assert recorded.environment["commit"].endswith("+changes") is False
        assert recorded.config["benchmark"] == benchmark
    assert results_folder().is_dir()


def test_results_beside_an_installed_library_are_found_from_below(tmp_path, monkeypatch):
    installed = tmp_path / "site-packages" / "nesskit" / "runs" / "results.py"
    monkeypatch.setattr("nesskit.runs.results.__file__", str(installed))
    level = tmp_path / "student" / "1_foundations"
    level.mkdir(parents=True)
    monkeypatch.chdir(level)
    assert results_folder() == level / "data" / "results"
    (tmp_path / "student" / "data" / "results").mkdir(parents=True)
    assert results_folder() == tmp_path / "student" / "data" / "results"


@pytest.mark.parametrize("benchmark", ["permuted-digits", "split-digits", "rotated-digits"])
def test_the_table_of_recorded_runs_shows_counts_of_thousands(benchmark, capsys):
    main(["table", benchmark])
    shown = capsys.readouterr().out
    assert "trgp (default)" in shown
    runs = [run for run in load_results(benchmark, profiles=False) if run.config["method"] == "ness-private"]
    assert f"{np.mean([run.private_numbers for run in runs]):,.0f}" in shown


def test_the_table_on_the_command_line(capsys):
    main(["table", "split-cifar100"])
    text = capsys.readouterr().out
    assert "72.46 ± 0.26" in text
    main(["table", "split-cifar100", "--markdown"])
    markdown = capsys.readouterr().out.splitlines()
    assert markdown[0].startswith("| method")
    assert set(markdown[1]) == {"|", "-"}


def test_reduced_runs_are_folded_away(tmp_path, capsys):
    made = run("split-digits", epochs=1, runs=tmp_path / "runs", progress=False)
    table = ["table", "split-digits", "--results", str(tmp_path / "results")]
    for seed in (0, 1):
        made.config["seed"] = seed
        record_run(made, tmp_path / "results")
        main(table)
        main([*table, "--markdown"])
        count = "1 run is" if seed == 0 else "2 runs are"
        note = f"{count} reduced or changed, so no reproduction: nesskit table split-digits --all shows them too."
        assert capsys.readouterr().out.split("\n") == ["", note] * 2 + [""]
    main([*table, "--all"])
    shown = capsys.readouterr().out
    assert "ness (default, reduced)" in shown
    assert "0, 1" in shown
    assert "are reduced or changed" not in shown


def test_a_table_without_any_run_says_so(tmp_path, capsys):
    main(["table", "split-digits", "--results", str(tmp_path)])
    assert "No run of split-digits is recorded yet" in capsys.readouterr().out


def test_a_run_is_recorded_from_the_command_line(tmp_path, capsys):
    made = run("split-digits", epochs=1, runs=tmp_path / "runs", progress=False)
    main(["record", str(made.folder), "--results", str(tmp_path / "results")])
    assert "recorded:" in capsys.readouterr().out
    main(["table", "split-digits", "--all", "--results", str(tmp_path / "results")])
    assert "not a reproduction" in capsys.readouterr().out.replace("\n", " ")
