"""What a person sees of a run: bars and lines that follow events."""

import io

import pytest

from nesskit.runs.events import EpochFinished, RunStarted, RunStopped, TaskFinished, TaskStarted
from nesskit.runs.progress import PlainLines, Plan, ProgressBar


def epoch(task, number):
    return EpochFinished(task, number, 10, 0.5, None, None, 0.1, 1.0)


def done(task):
    return TaskFinished(task, f"task {task}", (90.0,) * (task + 1), 2.0)


def test_a_task_that_ends_early_counts_as_whole():
    plan = Plan(RunStarted("new", 3, 0, 0, None))
    for event in (TaskStarted(0, "a", 10), epoch(0, 0), epoch(0, 1), epoch(0, 2)):
        plan.follow(event)
    assert (plan.done, plan.total) == (3, 30)
    plan.follow(done(0))
    assert plan.done == 10
    plan.follow(TaskStarted(1, "b", 10))
    plan.follow(epoch(1, 0))
    assert plan.done == 11


def test_a_continued_run_starts_where_it_was():
    plan = Plan(RunStarted("continued", 3, 1, 4, None))
    plan.follow(TaskStarted(1, "b", 10))
    assert (plan.done, plan.total) == (14, 30)
    plan.follow(epoch(1, 4))
    assert plan.done == 15


def test_joint_training_has_one_stage():
    plan = Plan(RunStarted("new", 3, 0, 0, None))
    plan.follow(TaskStarted(2, "c", 10))
    assert plan.total == 10


@pytest.mark.parametrize(("elapsed", "text"), [(600.0, ", about 20 min left"), (3.0, "")])
def test_time_left_is_that_of_the_epochs_to_come(monkeypatch, elapsed, text):
    now = [100.0]
    monkeypatch.setattr("nesskit.runs.progress.time.monotonic", lambda: now[0])
    plan = Plan(RunStarted("new", 3, 0, 0, None))
    plan.follow(TaskStarted(0, "a", 10))
    plan.follow(done(0))
    now[0] += elapsed  # for 10 of 30 epochs
    assert plan.time_left() == text


def test_plain_lines_stay_quiet_between_tasks_unless_it_takes_long():
    for pause, lines in ((60.0, 1), (0.0, 3)):
        out = io.StringIO()
        listen = PlainLines("ness", out, pause=pause)
        for event in (RunStarted("new", 2, 0, 0, None), TaskStarted(0, "a", 10), epoch(0, 0), epoch(0, 1), done(0)):
            listen(event)
        assert len(out.getvalue().splitlines()) == lines
    assert "task 1 of 2, epoch 2 of 10, loss 0.500" in out.getvalue()


def test_one_line_a_run_where_many_are_compared():
    out = io.StringIO()
    listen = PlainLines("ness, seed 1", out, per_task=False)
    for event in (RunStarted("new", 1, 0, 0, None), TaskStarted(0, "a", 10), done(0), RunStopped(True, "", 90.0, -1.5)):
        listen(event)
    assert out.getvalue() == "ness, seed 1: ACC 90.00 %, BWT -1.50 %\n"


def test_the_bar_reaches_its_end(capsys):
    bar = ProgressBar("ness")
    for event in (
        RunStarted("new", 1, 0, 0, None),
        TaskStarted(0, "a", 10),
        epoch(0, 0),
        done(0),
        RunStopped(True, "", 1, 1),
    ):
        bar(event)
    assert "10/10" in capsys.readouterr().err
