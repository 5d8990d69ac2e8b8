"""The subspace viewer and the run monitor in a real Chromium, in one notebook in JupyterLab."""

import re

import pytest
from pages import is_there, lab, open_in_lab, pixels, settle, shades, write_notebook

from nesskit import FrobeniusThreshold, Limits, run

CELLS = [
    """
import nesskit
from nesskit.widgets import RunMonitor, SubspaceViewer

stream = nesskit.load_stream("permuted-digits", seed=0).first(1)
model = nesskit.build_model(stream, seed=0)
nesskit.fit(model, stream, "finetune", nesskit.TrainingSettings(epochs=5, lr=0.05))
task = stream[0]
moment = nesskit.collect_moments(model.backbone, [task.normalise(task.train.x)])["layers.0"]
viewer = SubspaceViewer(moment, task.test.x, task.test.y, model=model)
viewer
""",
    """
from pathlib import Path

(folder,) = Path("runs/permuted-digits/ness").iterdir()
monitor = RunMonitor(folder)
monitor
""",
]
VIEWER, MONITOR = ".nk-subspace", ".nk-monitor"
CANVAS = ".jupyter-matplotlib-canvas-div canvas"
ABOUT = f"{VIEWER} .nk-status [role=status]"
STATUS = f"{MONITOR} .nk-status [role=status]"


@pytest.fixture(scope="module")
def workspace(browser, tmp_path_factory):
    """(page, server) with both widgets on it; the run that is monitored was stopped after two of ten tasks."""
    folder = tmp_path_factory.mktemp("viewers")
    rule = FrobeniusThreshold(0.03)
    run("permuted-digits", filter=rule, epochs=60, runs=folder / "runs", limits=Limits(tasks=2), progress=False)
    write_notebook(CELLS, folder / "two.ipynb")
    server = lab(folder)
    try:
        server.wait_until_up()
        page = open_in_lab(browser, server, "two.ipynb")
        page.locator(f"{MONITOR} {CANVAS}").first.wait_for(timeout=90_000)
        yield page, server
    finally:
        server.stop()


@pytest.fixture
def page(workspace):
    page, _ = workspace
    yield page
    assert page.errors == []


@pytest.fixture
def ask(workspace):
    with workspace[1].kernel() as ask:
        yield ask


def about(page):
    return page.locator(ABOUT).inner_text()


def focus(page, control):
    handle = page.locator(f"{VIEWER} .nk-{control} [role=slider]")
    handle.scroll_into_view_if_needed()
    handle.focus()


def test_the_most_free_direction_is_shown_first_and_keys_walk_through_the_others(page, ask):
    assert about(page).startswith("Direction 64 of 64 is free")
    drawn = pixels(page, f"{VIEWER} {CANVAS}")
    focus(page, "direction")
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    settle(page, lambda: about(page).startswith("Direction 59 of 64"))
    assert ask("viewer.direction.value") == 59
    settle(page, lambda: pixels(page, f"{VIEWER} {CANVAS}") != drawn)


def test_the_threshold_moves_by_mouse_and_the_free_directions_follow(page, ask):
    before = ask("viewer.rank")
    page.locator(f"{VIEWER} .nk-eps").scroll_into_view_if_needed()
    box = page.locator(f"{VIEWER} .nk-eps .noUi-base").bounding_box()
    page.mouse.click(box["x"] + 0.97 * box["width"], box["y"] + box["height"] / 2)
    split = page.locator(f"{VIEWER} .nk-split [role=status]")
    settle(page, lambda: f"in the {before} free" not in split.inner_text())
    rank = ask("int((viewer.spectrum.singular_values <= viewer.eps.value * viewer.spectrum.frobenius_norm).sum())")
    assert f"in the {rank} free directions of 64" in split.inner_text()
    assert rank > before


@pytest.mark.parametrize(("button", "number"), [("last", 64), ("first", 1)])
def test_old_predictions_stay_along_the_free_direction_and_break_along_the_occupied_one(page, ask, button, number):
    page.locator(f"{VIEWER} .nk-{button}").click()
    settle(page, lambda: about(page).startswith(f"Direction {number} of 64"))
    focus(page, "size")
    page.keyboard.press("Home")
    settle(page, lambda: "size a = 0.00" in about(page))
    before = ask("viewer.accuracy")
    for _ in range(30):
        page.keyboard.press("ArrowRight")
    settle(page, lambda: "size a = 1.50" in about(page))
    shown = float(re.search(r"accuracy ([\d.]+) %", about(page))[1])
    assert shown == pytest.approx(ask("viewer.accuracy"), abs=0.05)
    if button == "last":
        assert shown == pytest.approx(before, abs=0.05)  # this pixel is zero in every image
    else:
        assert shown < before - 20


def test_a_stopped_run_goes_on_fills_the_matrix_and_stops_again(page, ask):
    status = page.locator(STATUS)
    assert status.inner_text().startswith("Stopped")
    drawn = pixels(page, f"{MONITOR} {CANVAS}")
    page.locator(f"{MONITOR} .nk-resume").click()
    settle(page, lambda: status.inner_text().startswith("Running"), 60)
    pid = ask("monitor.process.pid")
    assert is_there(pid)
    settle(page, lambda: "task 4 of 10" in status.inner_text(), 60)  # so the third is in the matrix
    learned = ask("[float(v) for v in monitor.snapshot.accuracy[2, :3]]")
    assert all(0 < value <= 100 for value in learned)
    assert ask("monitor._plots.numbers[2][2].get_text()") == f"{learned[2]:.1f}"
    assert pixels(page, f"{MONITOR} {CANVAS}") != drawn
    assert re.search(r"about \d+ (s|min)", status.inner_text())
    page.locator(f"{MONITOR} .nk-stop").click()
    settle(page, lambda: status.inner_text().startswith("Stopped"), 30)
    settle(page, lambda: not is_there(pid))
    assert page.locator(f"{MONITOR} .nk-resume").is_enabled()


def test_no_output_is_empty(page):
    for widget in (VIEWER, MONITOR):
        for canvas in page.locator(f"{widget} {CANVAS}").all()[::2]:  # the second of two lies above, for the mouse
            canvas.scroll_into_view_if_needed()
            settle(page, lambda canvas=canvas: shades(canvas) > 20)
