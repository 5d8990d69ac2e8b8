"""The run panel: what is chosen is what runs, one seed after another, in real child processes; nothing is made up."""

import asyncio
import html
import re
import time

import ipywidgets as widgets
import numpy as np
import pytest
from pictures import read_picture

from nesskit import configure, load_run, run
from nesskit.errors import UnknownNameError
from nesskit.experiments.running import run_folder
from nesskit.runs.results import record_run
from nesskit.settings import METHOD_SETTINGS
from nesskit.widgets import RunPanel
from nesskit.widgets.process import RunProcess
from nesskit.widgets.run_time import Stopwatch

LONG = 200  # epochs of each of the five tasks: seconds, so that something can be done to a run before it is over


def said(line):
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", line.value)).split())


def cells(panel):
    """The rows of the table of seeds."""
    rows = re.findall("<tr>(.*?)</tr>", panel._table.value)[1:]
    return [[html.unescape(cell) for cell in re.findall("<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def wait_for(panel, condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, (said(panel._notice), cells(panel))
        time.sleep(0.1)
        panel.refresh()


def folder_of(panel, seed=0):
    return run_folder(panel.settings()[seed], panel.runs)


@pytest.fixture
def panel(tmp_path):
    return RunPanel("split-digits", seeds=(0, 1), epochs=2, device="cpu", runs=tmp_path / "runs")


@pytest.fixture
def no_data(tmp_path, monkeypatch):
    monkeypatch.setenv("NESSKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NESSKIT_MIRROR", raising=False)


# --- what is chosen


def test_it_begins_with_the_preset_and_follows_what_is_chosen():
    panel = RunPanel("split-cifar100")
    assert panel.settings() == [configure("split-cifar100", seed=1)]
    panel.preset.value, panel.method.value, panel.seeds.value = "paper-sam", "finetune", "2 37,2"
    assert panel.settings() == [configure("split-cifar100", "finetune", "paper-sam", s) for s in (2, 37)]
    assert "SAM on task 1" in said(panel._summary)
    assert {name for _, name in panel.method.options} == set(METHOD_SETTINGS)


def test_epochs_follow_the_preset_until_they_are_chosen():
    panel = RunPanel("five-datasets")
    assert panel.epochs.value == "200"
    panel.preset.value = "text"
    assert panel.epochs.value == "100"
    panel.preset.value = "paper-sgdm"
    assert panel.epochs.value == "200"
    panel.preset.value, panel.method.value = "published", "gpm"
    assert panel.epochs.value == "100"
    panel.epochs.value = "3"
    panel.preset.value = "paper-sgdm"
    assert panel.epochs.value == "3"
    assert "reduced run" in said(panel._summary)


@pytest.mark.parametrize(
    "seeds", ["", "one", "1.5", "-1", "1e3", "²", "٣", "1,,2", "1, 2,", "1; 2", str(2**63), "1" + 5000 * "0"]
)
def test_seeds_that_make_no_sense_are_refused(panel, seeds):
    panel.seeds.value = seeds
    assert panel.start_button.disabled
    assert said(panel._notice).startswith("seeds must be whole numbers from 0 to 9223372036854775807")
    assert said(panel._notice).endswith(f"such as 1, 2, 3, got '{seeds}'")
    assert panel.seeds.value == seeds  # what was typed stays, to be corrected
    panel.start()
    assert panel.monitor is None
    panel.seeds.value = "3"
    assert not panel.start_button.disabled
    assert said(panel._notice) == ""


def test_the_smallest_and_the_largest_seed_are_taken(panel):
    panel.seeds.value = f"0, {2**63 - 1}"
    assert [settings.seed for settings in panel.settings()] == [0, 2**63 - 1]
    assert said(panel._notice) == ""


@pytest.mark.parametrize(
    "epochs", ["", "ten", "3.7", "0,5", "0", "-1", "1e9", "1000000000", "²", "٣", "1" + 5000 * "0"]
)
def test_epochs_that_make_no_sense_are_refused(panel, epochs):
    panel.epochs.value = epochs
    assert panel.start_button.disabled
    assert f"epochs must be a whole number from 1 to 100000, such as 20, got '{epochs}'" in said(panel._notice)
    assert panel.epochs.value == epochs  # what was typed stays, to be corrected
    panel.start()
    assert panel.monitor is None
    panel.epochs.value = " 4 "
    assert not panel.start_button.disabled
    assert [settings.training.epochs for settings in panel.settings()] == [4, 4]
    assert said(panel._notice) == ""


def test_a_device_that_is_not_there_is_refused(panel):
    panel.device.value = "cuda"
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert panel.start_button.disabled
    assert "device 'cuda' cannot be used here" in said(panel._notice)


def test_unknown_names_are_refused_at_once():
    with pytest.raises(UnknownNameError, match="did you mean 'split-cifar100'"):
        RunPanel("split-cifar10")
    with pytest.raises(UnknownNameError, match="paper-sgdm"):
        RunPanel("split-cifar100", preset="paper-sdgm")


def test_every_control_is_described_and_works_by_keyboard(panel):
    for control in (panel.preset, panel.method, panel.device, panel.seeds, panel.epochs):
        assert isinstance(control, widgets.Dropdown | widgets.Text)  # the page's own inputs
        assert control.description
        assert control.tooltip
    for button in (panel.start_button, panel.fetch_button):
        assert button.description
        assert button.tooltip
    assert all('role="status"' in line.value for line in (panel._summary, panel._time))


# --- what runs


@pytest.mark.every
def test_every_seed_runs_one_after_another_and_gives_what_the_same_call_would(panel, tmp_path):
    assert panel._table.value == ""
    panel.start()
    assert panel.running
    assert panel.start_button.disabled
    assert panel.seeds.disabled
    assert not folder_of(panel, 1).exists()
    wait_for(panel, lambda: len(panel.finished_runs()) == 2)
    wait_for(panel, lambda: not panel.running)
    for seed, done in enumerate(panel.finished_runs()):
        alone = run("split-digits", seed=seed, epochs=2, runs=tmp_path / "alone", device="cpu", progress=False)
        np.testing.assert_array_equal(done.accuracy, alone.accuracy)
        assert cells(panel)[seed] == [
            str(seed),
            "finished",
            f"{done.average_accuracy:.2f}",
            f"{done.backward_transfer:.2f}",
        ]
    assert cells(panel)[2][0] == "mean ± std of 2"
    assert said(panel._time) == "Time: none: every run that is chosen is finished."
    assert panel._place.children == (panel.monitor,)
    assert panel.monitor.folder == folder_of(panel, 1)


def test_finished_runs_are_shown_and_not_done_again(panel):
    done = run("split-digits", seed=0, epochs=2, runs=panel.runs, device="cpu", progress=False)
    record = done.folder / "record.json"
    before = record.stat().st_mtime_ns
    panel.seeds.value = "0"
    panel.start()
    assert panel.monitor.snapshot.status == "finished"
    assert panel.monitor.process is None
    assert record.stat().st_mtime_ns == before


@pytest.mark.every
def test_stop_keeps_the_next_seed_waiting_and_resume_goes_on_with_both(panel):
    """By the monitor's own buttons, as a person would."""
    panel.epochs.value = str(LONG)
    panel.start()
    wait_for(panel, lambda: panel.monitor.snapshot.status == "running" and panel.monitor.snapshot.history)
    panel.monitor.stop_button.click()
    wait_for(panel, lambda: not panel.running)
    assert panel.monitor.snapshot.status == "stopped"
    stopped = load_run(folder_of(panel))
    assert 0 < len(stopped.history) < 5 * LONG
    assert not folder_of(panel, 1).exists()
    assert not panel.start_button.disabled
    panel.monitor.resume_button.click()
    assert panel.running
    wait_for(panel, lambda: panel.monitor.folder == folder_of(panel, 1))
    panel.monitor.process.kill()
    assert len(panel.finished_runs()) == 1
    assert load_run(folder_of(panel)).history[: len(stopped.history)] == stopped.history


def test_a_run_that_finishes_in_spite_of_stop_is_the_last_until_start(panel):
    panel.start()
    panel.stop()  # before the child has begun, which takes such a request for an old one
    wait_for(panel, lambda: panel.finished_runs() and not panel.running)
    panel.refresh()
    assert panel.monitor.folder == folder_of(panel, 0)
    assert not panel._more_may_come()
    assert not panel.start_button.disabled
    panel.start()
    assert panel.monitor.folder == folder_of(panel, 1)
    panel.monitor.process.kill()


@pytest.mark.every
def test_start_goes_on_with_a_run_that_was_stopped(panel):
    panel.epochs.value, panel.seeds.value = str(LONG), "0"
    panel.start()
    wait_for(panel, lambda: panel.monitor.snapshot.history)
    panel.stop()
    wait_for(panel, lambda: not panel.running)
    stopped = load_run(folder_of(panel)).history
    again = RunPanel("split-digits", seeds=(0,), epochs=LONG, device="cpu", runs=panel.runs)
    assert cells(again)[0][1] == "stopped"
    again.start()
    wait_for(again, lambda: len(load_run(folder_of(panel)).history) > len(stopped))
    again.monitor.process.kill()
    assert load_run(folder_of(panel)).history[: len(stopped)] == stopped


def test_a_run_that_another_process_works_on_is_watched_and_not_started_twice(panel):
    panel.epochs.value, panel.seeds.value = str(LONG), "0"
    child = RunProcess(panel.settings()[0], panel.runs, "cpu")
    wait_for(panel, lambda: (child.folder / "checkpoint.pt").exists())  # it is well under way
    panel.start()
    assert panel.monitor.process is None
    assert panel.running
    panel.stop()
    wait_for(panel, lambda: not panel.running)
    child.wait(60)
    assert load_run(child.folder).status == "stopped"


def test_a_run_that_fails_says_why_and_the_next_seed_waits(panel):
    folder = folder_of(panel)
    folder.parent.mkdir(parents=True)
    folder.write_text("a file in the way")
    panel.start()
    wait_for(panel, lambda: not panel.running)
    assert "no run of nesskit" in said(panel.monitor._notice)
    assert not folder_of(panel, 1).exists()
    assert not panel.start_button.disabled


def test_it_follows_its_runs_by_itself_in_an_event_loop(panel):
    async def use():
        panel.interval, panel.seeds.value = 0.05, "0"
        panel.start()
        deadline = time.monotonic() + 240
        while not panel.finished_runs():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        await asyncio.wait_for(panel._task, 30)  # ends when there is nothing left to follow

    asyncio.run(use())
    assert cells(panel)[0][1] == "finished"


# --- how long it will take


def test_nothing_recorded_means_not_known_until_measured(tmp_path):
    panel = RunPanel("split-digits", seeds=(0, 1), epochs=LONG, device="cpu", runs=tmp_path, results=tmp_path / "none")
    assert "not known yet" in said(panel._time)
    assert "will be measured" in said(panel._time)
    panel.start()
    assert "being measured" in said(panel._time)
    wait_for(panel, lambda: "left for this seed and the one after it, as measured" in said(panel._time))
    panel.stop()
    wait_for(panel, lambda: "judging by one run made here" in said(panel._time))


def test_the_estimate_is_the_speed_of_recorded_runs(tmp_path):
    done = run("split-digits", seed=3, epochs=2, runs=tmp_path / "runs", device="cpu", progress=False)
    record_run(done, tmp_path / "results")
    stopwatch = Stopwatch("split-digits", tmp_path / "elsewhere", tmp_path / "results")
    settings = configure("split-digits", epochs=20)
    speed = stopwatch.speed(settings, "cpu")
    assert speed.tasks == 5
    assert speed.of_run(settings) == pytest.approx(10 * done.seconds)
    assert "recorded with the project" in speed.source
    assert "NESS" not in speed.source
    other = stopwatch.speed(configure("split-digits", "finetune"), "cpu")
    assert "of NESS" in other.source
    assert stopwatch.speed(settings, "cuda") is None
    assert stopwatch.speed(configure("split-digits", network_widths=(16,)), "cpu") is None
    assert stopwatch.speed(configure("split-digits", optimizer="adam"), "cpu") is None


def test_joint_training_is_counted_by_the_tasks_of_an_epoch(tmp_path):
    done = run("split-digits", method="joint", epochs=2, runs=tmp_path, device="cpu", progress=False)
    speed = Stopwatch("split-digits", tmp_path, tmp_path / "none").speed(configure("split-digits", "joint"), "cpu")
    assert speed.seconds == pytest.approx(done.seconds / 10)
    assert speed.source == "by one run made here"


def test_recorded_cifar_runs_tell_how_long_the_whole_benchmark_takes(tmp_path):
    panel = RunPanel("split-cifar100", device="cpu", runs=tmp_path, seeds=(1, 2, 3, 4, 37))
    assert re.match(r"Time: about \d+ h \d+ min at most .* for 5 runs of 10 tasks, 200 epochs each", said(panel._time))


# --- data that is missing


@pytest.mark.usefixtures("no_data")
def test_missing_data_is_said_plainly_with_the_ways_to_get_it(tmp_path):
    panel = RunPanel("split-cifar100", runs=tmp_path)
    assert panel.start_button.disabled
    assert panel.fetch_button.layout.display == ""
    notice = said(panel._notice)
    assert notice.startswith("The data is missing:")
    for part in ("cifar-100-binary.tar.gz", "nesskit fetch split-cifar100", "NESSKIT_MIRROR", "cache folder"):
        assert part in notice
    panel.start()
    assert panel.monitor is None
    assert not (tmp_path / "split-cifar100").exists()


@pytest.mark.usefixtures("no_data")
def test_fetching_without_a_source_fails_with_the_same_words(tmp_path, monkeypatch):
    monkeypatch.setenv("NESSKIT_MIRROR", str(tmp_path / "no mirror"))
    panel = RunPanel("split-cifar100", runs=tmp_path)
    panel.fetch()
    assert said(panel._notice).startswith("Getting the data:")
    assert panel.fetch_button.disabled
    wait_for(panel, lambda: panel._fetching is None)
    assert "Three ways to get it" in said(panel._notice)
    assert panel.start_button.disabled
    assert not panel.fetch_button.disabled


def test_the_digits_need_no_download(panel):
    assert panel.missing == ""
    assert panel.fetch_button.layout.display == "none"


# --- where no widget can run


def test_it_displays_a_picture_beside_the_live_panel(panel):
    bundle, _ = panel._repr_mimebundle_()
    assert bundle["text/plain"] == "Run panel for split-digits"
    alt, picture = read_picture(bundle)
    assert alt
    assert picture.shape[0] == 100
    run("split-digits", seed=0, epochs=2, runs=panel.runs, device="cpu", progress=False)
    panel.seeds.value = "0"
    panel.start()
    _, picture = read_picture(panel._repr_mimebundle_()[0])
    assert picture.shape[0] == 490
