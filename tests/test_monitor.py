"""The run monitor: what it shows is what lies in the folder, whoever writes it, and its buttons do what they say."""

import asyncio
import html
import json
import os
import re
import shutil
import time
from datetime import datetime

import numpy as np
import pytest
from pictures import read_picture

from nesskit import Limits, TrainingSettings, build_model, configure, fit, forgetting, load_run, load_stream, run
from nesskit.runs.events import EpochFinished, RunStarted, RunStopped, TaskFinished, TaskStarted
from nesskit.runs.folder import RunFolder
from nesskit.widgets.monitor import RunMonitor, forgotten_so_far, is_worked_on, time_left
from nesskit.widgets.process import RunProcess

SHORT = {"epochs": 3, "network_widths": (16,), "validation_share": 0.2}
nan = np.nan


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of five tasks, for reading only."""
    return run("split-digits", runs=tmp_path_factory.mktemp("runs"), progress=False, **SHORT)


@pytest.fixture
def folder(finished, tmp_path):
    """A copy of it where a run belongs, to do something to."""
    copy = tmp_path / "split-digits" / "ness" / finished.folder.name
    shutil.copytree(finished.folder, copy)
    return copy


def wait_for(monitor, condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition(monitor.refresh()):
        assert time.monotonic() < deadline, monitor.snapshot
        time.sleep(0.02)


def said(line):
    return html.unescape(re.sub("<[^>]*>", "", line.value))


def values(line):
    """The finite values of a line, which is interrupted between tasks."""
    y = np.asarray(line.get_ydata(), dtype=float)
    return y[np.isfinite(y)]


def change_record(folder, **changes):
    path = folder / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- what it shows


def test_a_finished_run_is_shown_as_it_was_recorded(finished):
    monitor = RunMonitor(finished.folder)
    now = monitor.snapshot
    assert now.status == "finished"
    assert said(monitor._status) == "Finished: 5 of 5 tasks learned."
    assert np.array_equal(now.accuracy, finished.accuracy, equal_nan=True)
    assert list(now.history) == finished.history
    assert (now.epochs_done, now.epochs_total) == (15, 15)
    assert (monitor._bar.value, monitor._bar.max, monitor._count.value) == (15, 15, "15 of 15")
    assert np.isnan(now.seconds_left)
    assert monitor.stop_button.disabled
    assert monitor.resume_button.disabled
    assert monitor._notice.value == ""


def test_the_figure_shows_losses_rates_accuracies_and_forgetting(finished):
    figure = RunMonitor(finished.folder)._plots
    np.testing.assert_allclose(values(figure.train), [epoch.train_loss for epoch in finished.history])
    np.testing.assert_allclose(values(figure.valid), [epoch.valid_loss for epoch in finished.history])
    np.testing.assert_allclose(values(figure.rate), [epoch.lr for epoch in finished.history])
    assert np.isnan(figure.train.get_ydata()).sum() == 4  # between five tasks
    assert [text.get_text() for text in figure.rate_axes.get_xticklabels()] == ["1", "2", "3", "4", "5"]
    for row in range(5):
        for column in range(5):
            value = finished.accuracy[row, column]
            assert figure.numbers[row][column].get_text() == ("" if np.isnan(value) else f"{value:.1f}")
    lost = np.nanmax(finished.accuracy[:-1, :-1], axis=0) - finished.accuracy[-1, :-1]
    np.testing.assert_allclose([bar.get_height() for bar in figure.forgotten], [*lost, 0.0])
    title = figure.matrix_axes.get_title(loc="left")
    assert title.startswith(f"ACC {finished.average_accuracy:.1f} %, BWT ")
    assert title.endswith(f"forgetting {forgetting(finished.accuracy):.1f}")


def test_every_event_is_shown_when_it_happens_by_the_same_artists(tmp_path):
    """Watched from within: the record is ten epochs behind, the events are not."""
    stream = load_stream("split-digits", seed=0, validation_share=0.2).first(3)
    model = build_model(stream, configure("split-digits", **SHORT).network, 0)
    monitor = RunMonitor(tmp_path / "run")
    assert monitor.snapshot.status == "waiting"
    assert said(monitor._status) == f"Waiting: no run lies in {tmp_path / 'run'} yet."
    losses, rows, artists, statuses = [], {}, set(), []

    def look(event):
        now, figure = monitor.refresh(), monitor._plots
        statuses.append(now.status)
        if isinstance(event, EpochFinished):
            losses.append(event.train_loss)
            assert said(monitor._status).startswith(
                f"Running: task {event.task + 1} of 3, epoch {event.epoch + 1} of 4"
            )
            assert now.epochs_done == 4 * event.task + event.epoch + 1
        if isinstance(event, TaskFinished):
            rows[event.task] = event.accuracy
        if isinstance(event, TaskStarted | EpochFinished | TaskFinished):
            artists.add((id(figure.train), id(figure.cells), id(figure.numbers[2][1]), id(figure.forgotten[0])))
        np.testing.assert_allclose(values(figure.train), losses)
        for task, row in rows.items():
            np.testing.assert_array_equal(now.accuracy[task, : len(row)], row)

    settings = TrainingSettings(epochs=4, batch_size=64)
    fit(model, stream, "ness", settings, folder=tmp_path / "run", listeners=[look])
    assert len(losses) == 12
    assert len(artists) == 1
    assert statuses == ["starting", *["running"] * (len(statuses) - 2), "finished"]


def test_a_run_without_validation_data_shows_one_loss(tmp_path):
    done = run("split-digits", runs=tmp_path, progress=False, epochs=2, network_widths=(16,))
    figure = RunMonitor(done.folder)._plots
    assert not len(values(figure.valid))
    assert not figure._validation.get_visible()


def test_joint_training_counts_all_tasks_as_one(tmp_path):
    done = run("split-digits", method="joint", runs=tmp_path, progress=False, epochs=3, network_widths=(16,))
    monitor = RunMonitor(done.folder)
    assert (monitor.snapshot.epochs_done, monitor.snapshot.epochs_total) == (3, 3)
    assert [text.get_text() for text in monitor._plots.rate_axes.get_xticklabels()] == ["all"]


def test_forgetting_is_counted_from_the_best_a_task_ever_was():
    accuracy = np.array([[90.0, nan, nan, nan], [92.0, 80.0, nan, nan], [85.0, 81.0, 70.0, nan], [nan] * 4])
    np.testing.assert_allclose(forgotten_so_far(accuracy), [7.0, -1.0, nan, nan])
    assert np.isnan(forgotten_so_far(np.full((3, 3), nan))).all()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "about 1 s"), (75, "about 75 s"), (100, "about 2 min"), (5000, "about 83 min"), (9000, "about 2 h 30 min")],
)
def test_time_left_in_words(seconds, text):
    assert time_left(seconds) == text


# --- what it puts up with


def events_of(tasks=2, epochs=2):
    """What a run of two short tasks says, in order."""
    yield RunStarted("new", tasks, 0, 0, None)
    for task in range(tasks):
        yield TaskStarted(task, f"task {task}", epochs)
        for epoch in range(epochs):
            yield EpochFinished(task, epoch, epochs, 1.0 / (1 + epoch + 10 * task), None, None, 0.1, 2.0)
        yield TaskFinished(task, f"task {task}", (90.0,) * (task + 1), 5.0)
    yield RunStopped(True, "", 90.0, 0.0)


def test_events_alone_are_enough_and_half_a_line_waits(tmp_path):
    folder, path = RunFolder(tmp_path), tmp_path / "events.jsonl"
    monitor = RunMonitor(tmp_path)
    *first, last = list(events_of())[:4]
    for event in first:
        folder.append_event(event)
    assert len(monitor.refresh().history) == 1
    line = json.dumps(last.to_dict()) + "\n"
    with path.open("a") as stream:
        stream.write(line[:20])
    assert len(monitor.refresh().history) == 1
    with path.open("a") as stream:
        stream.write(line[20:])
    now = monitor.refresh()
    assert len(now.history) == 2
    assert now.tasks == ("1", "2")
    assert now.epochs_total == 4
    assert now.status == "interrupted"  # nobody holds the lock


def test_lines_that_are_no_events_do_not_hide_what_comes_after(tmp_path):
    folder = RunFolder(tmp_path)
    monitor = RunMonitor(tmp_path)
    events = list(events_of())
    for number, event in enumerate(events):
        folder.append_event(event)
        monitor.refresh()
        with (tmp_path / "events.jsonl").open("a") as stream:
            stream.write(['{"half"\n', '{"event": "EpochFinished"}\n', "[1]\n", "\n"][number % 4])
        monitor.refresh()
    assert len(monitor.snapshot.history) == 4
    assert np.isfinite(monitor.snapshot.accuracy[np.tril_indices(2)]).all()


def test_epochs_that_are_done_anew_after_a_kill_replace_the_first_ones(tmp_path):
    folder = RunFolder(tmp_path)
    for event in list(events_of(epochs=5))[:7]:
        folder.append_event(event)
    folder.append_event(RunStarted("continued", 2, 0, 2, None))
    folder.append_event(TaskStarted(0, "task 0", 5))
    folder.append_event(EpochFinished(0, 2, 5, 0.125, None, None, 0.1, 2.0))
    now = RunMonitor(tmp_path).snapshot
    assert [(epoch.epoch, epoch.train_loss) for epoch in now.history] == [(0, 1.0), (1, 0.5), (2, 0.125)]


def test_a_folder_that_is_emptied_is_read_from_the_start(folder):
    monitor = RunMonitor(folder)
    shutil.rmtree(folder)
    assert monitor.refresh().status == "waiting"
    assert len(monitor.snapshot.history) == 0
    for event in list(events_of())[:3]:
        RunFolder(folder).append_event(event)
    assert [epoch.train_loss for epoch in monitor.refresh().history] == [1.0]


def test_a_damaged_record_is_one_sentence_and_the_figure_stays(folder):
    monitor = RunMonitor(folder)
    before = values(monitor._plots.train)
    whole = (folder / "record.json").read_text()
    (folder / "record.json").write_text(whole[:500])
    assert monitor.refresh().status == "damaged"
    assert said(monitor._status).startswith(f"Damaged: {folder}: its record cannot be read: Unterminated string")
    assert monitor.stop_button.disabled
    assert monitor.resume_button.disabled
    np.testing.assert_array_equal(values(monitor._plots.train), before)
    (folder / "record.json").write_text(whole)
    assert monitor.refresh().status == "finished"


def test_damage_from_the_start_and_foreign_folders_are_said_in_words(tmp_path):
    (tmp_path / "thesis <draft>.tex").write_text("")
    assert "it is no run of nesskit" in said(RunMonitor(tmp_path)._status)
    assert "it is no run of nesskit" in said(RunMonitor(tmp_path / "thesis <draft>.tex")._status)
    assert "&lt;draft&gt;" in RunMonitor(tmp_path / "thesis <draft>.tex")._status.value


def test_a_run_that_says_it_is_running_without_a_process_was_interrupted(folder):
    change_record(folder, status="running")
    monitor = RunMonitor(folder)
    assert monitor.snapshot.status == "interrupted"
    assert "its process is gone" in said(monitor._status)
    assert not monitor.resume_button.disabled
    with RunFolder(folder).locked():
        assert monitor.refresh().status == "running"
        assert monitor.resume_button.disabled
        assert not monitor.stop_button.disabled
        monitor.stop_button.click()
        assert (folder / "stop").exists()
        assert monitor.snapshot.status == "stopping"
        assert "stop after this epoch" in said(monitor._status)
    assert not is_worked_on(folder)


def test_a_running_one_says_when_it_was_last_heard(folder):
    change_record(folder, status="running")
    heard = datetime(2026, 3, 4, 5, 6, 7)
    os.utime(folder / "events.jsonl", (heard.timestamp(), heard.timestamp()))
    with RunFolder(folder).locked():
        monitor = RunMonitor(folder)
        assert said(monitor._status).startswith("Running: ")
        assert said(monitor._status).endswith(". Last heard at 05:06:07.")
    assert "heard" not in RunMonitor(folder).snapshot.message  # interrupted: that is not news


def test_a_failed_run_shows_why(folder):
    change_record(folder, status="failed", status_reason="TrainingError: the loss is <not> finite.")
    monitor = RunMonitor(folder)
    assert "the loss is &lt;not&gt; finite; 5 of 5 tasks learned." in monitor._status.value
    assert not monitor.resume_button.disabled


# --- stop and resume


def test_stop_and_resume_of_a_real_run_give_what_an_unbroken_run_gives(tmp_path):
    settings = configure("split-digits", epochs=40, network_widths=(16,))
    monitor = RunMonitor(RunProcess(settings, tmp_path))
    assert monitor.snapshot.status == "starting"
    wait_for(monitor, lambda now: now.history)
    first = monitor.process
    monitor.stop_button.click()
    wait_for(monitor, lambda now: now.status == "stopped")
    assert said(monitor._status).startswith("Stopped: stopped on request; ")
    first.wait(60)
    done = len(monitor.snapshot.history)
    assert 0 < done < 200
    monitor.resume_button.click()
    assert monitor.process is not first
    assert monitor.snapshot.status == "starting"
    assert monitor.resume_button.disabled
    wait_for(monitor, lambda now: len(now.history) > done)
    monitor.process.kill()
    assert monitor.refresh().status == "interrupted"
    monitor.resume_button.click()
    wait_for(monitor, lambda now: now.status == "finished")
    assert monitor._notice.value.count("<div") <= 1
    unbroken = run("split-digits", runs=tmp_path / "other", progress=False, epochs=40, network_widths=(16,))
    assert np.array_equal(monitor.snapshot.accuracy, unbroken.accuracy, equal_nan=True)
    assert [epoch.train_loss for epoch in monitor.snapshot.history] == [e.train_loss for e in unbroken.history]


def test_a_run_of_another_process_is_watched_and_stopped(tmp_path):
    other = RunProcess(configure("permuted-digits", epochs=300), tmp_path)
    monitor = RunMonitor(other.folder)  # knows the folder only
    wait_for(monitor, lambda now: now.status == "running" and now.history and now.seconds_left > 0)
    assert "left" in said(monitor._status)
    monitor.stop_button.click()
    wait_for(monitor, lambda now: now.status == "stopped")
    other.wait(60)
    assert load_run(other.folder).status == "stopped"


def test_a_run_that_cannot_go_on_says_why(folder, tmp_path):
    change_record(folder, status="stopped", status_reason="stopped on request")
    moved = folder.rename(tmp_path / "elsewhere")
    monitor = RunMonitor(moved)
    assert monitor.resume_button.disabled
    assert "this run was moved: to go on with it, put it back to …/split-digits/ness/" in said(monitor._notice)
    monitor.resume()
    assert monitor.process is None

    stream = load_stream("split-digits", seed=0).first(2)
    model = build_model(stream, configure("split-digits", **SHORT).network, 0)
    fit(model, stream, "ness", TrainingSettings(epochs=1), folder=tmp_path / "own", limits=Limits(tasks=1))
    own = RunMonitor(tmp_path / "own")
    assert own.snapshot.status == "stopped"
    assert "made by fit()" in said(own._notice)
    assert own.resume_button.tooltip in said(own._notice)


def test_a_process_that_fails_is_reported(folder):
    change_record(folder, status="stopped", status_reason="stopped on request")
    monitor = RunMonitor(folder, device="abacus")
    monitor.resume_button.click()
    wait_for(monitor, lambda now: now.status == "stopped")
    assert "device 'abacus' cannot be used here" in said(monitor._notice)
    assert not monitor.resume_button.disabled


# --- in a notebook


def test_with_an_event_loop_it_follows_by_itself_and_leaves_the_loop_free(tmp_path):
    async def notebook():
        monitor = RunMonitor(tmp_path / "run", interval=0.01)
        longest = 0.0
        for event in events_of():
            RunFolder(tmp_path / "run").append_event(event)
            started = time.monotonic()
            await asyncio.sleep(0.03)
            longest = max(longest, time.monotonic() - started)
        await asyncio.sleep(0.1)
        assert len(monitor.snapshot.history) == 4
        assert longest < 0.5
        monitor.close()
        await asyncio.sleep(0.05)
        assert monitor._task.done()

    asyncio.run(notebook())


def test_a_finished_run_is_not_watched(finished):
    async def notebook():
        return RunMonitor(finished.folder)._task

    assert asyncio.run(notebook()) is None


def test_every_control_is_described_and_can_be_found(finished):
    monitor = RunMonitor(finished.folder)
    for part, name in ((monitor.stop_button, "stop"), (monitor.resume_button, "resume"), (monitor._bar, "progress")):
        assert f"nk-{name}" in part._dom_classes
        assert part.description
    assert monitor.stop_button.tooltip
    assert monitor.resume_button.tooltip
    assert 'role="status"' in monitor._status.value


def test_pages_without_widgets_show_a_picture(finished):
    bundle, _ = RunMonitor(finished.folder)._repr_mimebundle_()
    alt, picture = read_picture(bundle)
    assert "accuracy matrix" in alt
    assert picture.shape[:2] == (490, 960)
    assert bundle["text/plain"] == "Run monitor"
