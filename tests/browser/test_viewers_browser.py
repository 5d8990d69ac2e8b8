"""The subspace viewer and the run monitor in a real Chromium, in one notebook in JupyterLab."""

import re

import pytest
from pages import (
    THEMES,
    axe_findings,
    cut_off,
    is_there,
    lab,
    open_in_lab,
    pixels,
    settle,
    shades,
    use_theme,
    write_notebook,
)

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
PICTURE = ".nk-picture img"
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
        page.locator(f"{MONITOR} {PICTURE}").first.wait_for(timeout=90_000)
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
    handle = page.locator(f"{VIEWER} .nk-{control} input[type=range]")
    handle.scroll_into_view_if_needed()
    handle.focus()


def test_the_most_free_direction_is_shown_first_and_keys_walk_through_the_others(page, ask):
    assert about(page).startswith("Direction 64 of 64 is free")
    drawn = pixels(page, f"{VIEWER} {PICTURE}")
    focus(page, "direction")
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    settle(page, lambda: about(page).startswith("Direction 59 of 64"))
    assert ask("viewer.direction.value") == 59
    settle(page, lambda: pixels(page, f"{VIEWER} {PICTURE}") != drawn)


def test_the_threshold_moves_by_mouse_and_the_free_directions_follow(page, ask):
    before = ask("viewer.rank")
    page.locator(f"{VIEWER} .nk-eps").scroll_into_view_if_needed()
    box = page.locator(f"{VIEWER} .nk-eps input[type=range]").bounding_box()
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


def slider(page, name):
    return page.locator(VIEWER).get_by_role("slider", name=name, exact=True)


def field(page, name):
    return page.locator(VIEWER).get_by_role("textbox", name=f"{name}, typed", exact=True)


def test_a_logarithmic_slider_says_its_value_and_no_exponent(page, ask):
    before = ask("viewer.eps.value")
    slider(page, "ε").focus()
    page.keyboard.press("ArrowLeft")
    settle(page, lambda: ask("viewer.eps.value") < before)
    eps = ask("viewer.eps.value")
    assert eps == pytest.approx(before / 10**0.02)
    for said in (slider(page, "ε").get_attribute("aria-valuetext"), field(page, "ε").input_value()):
        assert float(said) == pytest.approx(eps, rel=0.005)


@pytest.mark.parametrize(
    ("control", "name", "text", "sentence"),
    [
        ("direction", "direction i", "65", "direction i must be a whole number from 1 to 64, got '65'"),
        ("direction", "direction i", "3.7", "direction i must be a whole number from 1 to 64, got '3.7'"),
        ("direction", "direction i", "", "direction i must be a whole number from 1 to 64, got ''"),
        ("image", "image", "0", "image must be a whole number from 1 to 497, got '0'"),
        ("size", "size a", "2.5", "size a must be a number from 0.00 to 2.00 in steps of 0.05, got '2.5'"),
        ("size", "size a", "0.33", "size a must be a number from 0.00 to 2.00 in steps of 0.05, got '0.33'"),
        ("eps", "ε", "0,02", "such as 0.0300, got '0,02'"),
        ("eps", "ε", "-1", "such as 0.0300, got '-1'"),
        ("eps", "ε", "1e9", "such as 0.0300, got '1e9'"),
    ],
)
def test_what_is_typed_wrongly_is_said_and_changes_nothing(page, ask, control, name, text, sentence):
    before = ask(f"viewer.{control}.value")
    field(page, name).fill(text)
    field(page, name).press("Enter")
    problem = page.locator(f"{VIEWER} .nk-{control} [role=alert]")
    settle(page, lambda: problem.inner_text().endswith(sentence), 10, problem.inner_text)
    assert field(page, name).input_value() == text  # what was typed stays, to be corrected
    assert field(page, name).get_attribute("aria-invalid") == "true"
    page.wait_for_timeout(200)
    assert ask(f"viewer.{control}.value") == before
    slider(page, name).focus()
    page.keyboard.press("Home")
    page.keyboard.press("End")
    settle(page, lambda: problem.inner_text() == "")
    most = ask(f"10 ** viewer.{control}.max if viewer.{control}.log else viewer.{control}.max")
    settle(page, lambda: ask(f"viewer.{control}.value") == pytest.approx(most))
    assert field(page, name).get_attribute("aria-invalid") == "false"


def test_values_can_be_typed(page, ask):
    typed = {
        "direction i": ("direction", "7"),
        "image": ("image", "30"),
        "size a": ("size", "0.35"),
        "ε": ("eps", "0.0123"),
    }
    for name, (control, text) in typed.items():
        field(page, name).fill(text)
        field(page, name).press("Enter")
        settle(page, lambda control=control, text=text: ask(f"viewer.{control}.value") == float(text))
        assert slider(page, name).get_attribute("aria-valuetext") == field(page, name).input_value()
    settle(page, lambda: about(page).startswith("Direction 7 of 64"))
    assert "size a = 0.35" in about(page)


@pytest.mark.parametrize("theme", THEMES)
def test_everybody_can_use_both(page, theme):
    use_theme(page, theme)
    field(page, "image").fill("no number")
    field(page, "image").press("Enter")
    page.locator(f"{VIEWER} .nk-image [role=alert]").get_by_text("whole number").wait_for()
    assert axe_findings(page, VIEWER, MONITOR) == []
    field(page, "image").fill("1")
    field(page, "image").press("Enter")


def test_axe_sees_a_slider_and_a_picture_without_a_name(page):
    label, picture = page.locator(f"{VIEWER} .nk-eps label"), page.locator(f"{MONITOR} img").first
    name, alt = label.get_attribute("for"), picture.get_attribute("alt")
    assert name
    assert alt
    label.evaluate("label => label.removeAttribute('for')")
    picture.evaluate("picture => picture.removeAttribute('alt')")
    kinds = {finding.partition(":")[0] for finding in axe_findings(page, VIEWER, MONITOR)}
    label.evaluate("(label, name) => label.setAttribute('for', name)", name)
    picture.evaluate("(picture, alt) => picture.setAttribute('alt', alt)", alt)
    assert {"label", "image-alt"} <= kinds


@pytest.mark.parametrize("width", [700, 800, 1280, 1600])
def test_nothing_is_cut_off_at_any_width(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(500)
    for widget, pictures in ((VIEWER, 3), (MONITOR, 2)):
        assert page.locator(f"{widget} {PICTURE}").count() == pictures
        assert cut_off(page, f"{widget} :is(img, button, input, label, [role=status]):visible") == []
    page.set_viewport_size({"width": 1280, "height": 1250})


def test_a_stopped_run_goes_on_fills_the_matrix_and_stops_again(page, ask):
    status = page.locator(STATUS)
    assert status.inner_text().startswith("Stopped")
    drawn = pixels(page, f"{MONITOR} {PICTURE}")
    page.locator(f"{MONITOR} .nk-resume").click()
    settle(page, lambda: status.inner_text().startswith("Running"), 60)
    pid = ask("monitor.process.pid")
    assert is_there(pid)
    settle(page, lambda: "task 4 of 10" in status.inner_text(), 60)  # so the third is in the matrix
    learned = ask("[float(v) for v in monitor.snapshot.accuracy[2, :3]]")
    assert all(0 < value <= 100 for value in learned)
    assert ask("monitor._plots.numbers[2][2].get_text()") == f"{learned[2]:.1f}"
    assert pixels(page, f"{MONITOR} {PICTURE}") != drawn
    assert re.search(r"about \d+ (s|min)", status.inner_text())
    page.locator(f"{MONITOR} .nk-stop").click()
    settle(page, lambda: status.inner_text().startswith("Stopped"), 30)
    settle(page, lambda: not is_there(pid))
    assert page.locator(f"{MONITOR} .nk-resume").is_enabled()


def test_no_output_is_empty(page):
    for widget in (VIEWER, MONITOR):
        for picture in page.locator(f"{widget} {PICTURE}").all():
            picture.scroll_into_view_if_needed()
            settle(page, lambda picture=picture: shades(picture) > 20)
