"""The run panel in a real Chromium, in JupyterLab: used by keyboard, watched, at every width and in both themes."""

import os
import re
import signal
from contextlib import suppress
from datetime import datetime

import pytest
from pages import THEMES, axe_findings, cut_off, is_there, lab, open_in_lab, settle, use_theme, write_notebook

CELL = """
from nesskit.widgets import RunPanel

panel = RunPanel("split-digits", seeds=(0, 1), epochs=4000, device="cpu", runs="runs")
panel
"""
PANEL = ".nk-run-panel"
STATUS = f"{PANEL} .nk-status [role=status]"
EPOCHS = "epochs must be a whole number from 1 to 100000, such as 20, got "
SEEDS = "seeds must be whole numbers from 0 to 9223372036854775807 with one comma between two of them, "
SEEDS += "such as 1, 2, 3, got "


@pytest.fixture(scope="module")
def workspace(browser, tmp_path_factory):
    """(page, server, pids) with the panel on it; the processes in ``pids`` are ended at the end."""
    folder, pids = tmp_path_factory.mktemp("panel"), []
    write_notebook([CELL], folder / "panel.ipynb")
    server = lab(folder)
    try:
        server.wait_until_up()
        page = open_in_lab(browser, server, "panel.ipynb")
        page.locator(f"{PANEL} .nk-start").wait_for(timeout=90_000)
        yield page, server, pids
    finally:
        server.stop()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def page(workspace):
    return workspace[0]


@pytest.fixture
def ask(workspace):
    with workspace[1].kernel() as ask:
        yield ask


@pytest.fixture
def running(workspace, page, ask):
    """The pid of a process that trains the panel's first seed; it is started by keyboard if none does."""
    status = page.locator(STATUS)
    if not status.count() or not status.inner_text().startswith("Running"):
        button = page.locator(f"{PANEL} .nk-resume" if status.count() else f"{PANEL} .nk-start")
        settle(page, button.is_enabled, 30)
        button.focus()
        page.keyboard.press("Enter")
        status.wait_for(timeout=30_000)
        settle(page, lambda: status.inner_text().startswith("Running"), 60, status.inner_text)
    pid = ask("panel.monitor.process.pid")
    workspace[2].append(pid)
    return pid


def typed(page, name, text):
    """Type ``text`` into a field of the panel, found by its name, and go on by the tabulator."""
    field = page.locator(PANEL).get_by_role("textbox", name=name)
    field.fill(text)
    field.press("Tab")
    return field


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [("epochs", text, f"{EPOCHS}'{text}'") for text in ("1e9", "3.7", "0,02", "0", "-1", "")]
    + [("seeds", text, f"{SEEDS}'{text}'") for text in ("1,,2", "1.5", "-1", "", "1e3", "9223372036854775808")],
)
def test_what_makes_no_sense_is_said_and_waits_to_be_corrected(page, name, text, sentence):
    start, notice = page.locator(f"{PANEL} .nk-start"), page.locator(f"{PANEL} .nk-notice")
    field = typed(page, name, text)
    settle(page, lambda: notice.inner_text() == sentence, 10, notice.inner_text)
    assert start.is_disabled()
    assert field.input_value() == text
    typed(page, name, {"epochs": "4000", "seeds": "0, 1"}[name])
    settle(page, lambda: start.is_enabled() and notice.inner_text() == "", 10, notice.inner_text)


def test_the_tabulator_goes_through_all_that_can_be_chosen_to_start(page):
    panel = page.locator(PANEL)
    panel.get_by_role("combobox", name="preset").focus()
    for role, name in (("combobox", "method"), ("combobox", "device"), ("textbox", "seeds"), ("textbox", "epochs")):
        page.keyboard.press("Tab")
        assert panel.get_by_role(role, name=name).evaluate("it => it === document.activeElement"), name
    page.keyboard.press("Tab")
    assert panel.get_by_role("button", name="Start").evaluate("it => it === document.activeElement")


def test_menus_are_chosen_from_by_arrow_keys(page, ask):
    menu = page.locator(PANEL).get_by_role("combobox", name="method")
    first = ask("panel.method.value")
    menu.focus()
    page.keyboard.press("ArrowDown")
    settle(page, lambda: ask("panel.method.value") != first)
    page.keyboard.press("ArrowUp")
    settle(page, lambda: ask("panel.method.value") == first)


@pytest.mark.parametrize("width", [700, 800, 1280, 1600])
@pytest.mark.usefixtures("running")
def test_nothing_is_cut_off_at_any_width(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.wait_for_timeout(500)
    widths = "pictures => pictures.map(picture => picture.getBoundingClientRect().width)"
    pictures = page.locator(f"{PANEL} img")
    settle(page, lambda: min(pictures.evaluate_all(widths)) > 200)
    assert pictures.count() == 2
    assert cut_off(page, f"{PANEL} :is(img, table, button, input, select, [role=status]):visible") == []
    page.set_viewport_size({"width": 1280, "height": 900})


@pytest.mark.usefixtures("running")
def test_the_pictures_fill_the_width_that_there_is(page):
    page.set_viewport_size({"width": 1280, "height": 900})
    page.wait_for_timeout(500)
    left, right = (picture.bounding_box() for picture in page.locator(f"{PANEL} .nk-picture img").all())
    assert left["x"] + left["width"] <= right["x"]  # beside each other
    assert left["y"] == pytest.approx(right["y"], abs=2)
    assert left["height"] == pytest.approx(right["height"], rel=0.05)
    panel = page.locator(PANEL).bounding_box()
    assert right["x"] + right["width"] - left["x"] > 0.9 * min(panel["width"], 960)


@pytest.mark.usefixtures("running")
def test_the_heads_of_the_table_stand_over_their_columns(page):
    begins = """table => [...table.rows].map(row => [...row.cells].map(cell => {
        const text = document.createRange();
        text.selectNodeContents(cell);
        return cell.textContent ? text.getBoundingClientRect().left : null;
    }))"""
    table = page.locator(f"{PANEL} .nk-seeds table")
    table.wait_for(timeout=30_000)
    heads, *rows = table.evaluate(begins)
    assert len(heads) == 4
    assert len(rows) == 2
    for row in rows:
        assert len(row) == 4
        for head, cell in zip(heads, row, strict=True):
            assert cell is None or cell == pytest.approx(head, abs=1)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("state", ["waiting", "running"])
def test_everybody_can_use_it(request, page, state, theme):
    if state == "running":
        request.getfixturevalue("running")
    use_theme(page, theme)
    assert axe_findings(page, PANEL) == []


def test_axe_sees_a_field_without_a_name_and_pale_text(page):
    use_theme(page, THEMES[0])
    page.evaluate(
        """() => {
            document.querySelector(".nk-run-panel .nk-choose-device select").setAttribute("id", "another");
            document.querySelector(".nk-run-panel .nk-time").style.color = "#999";
        }"""
    )
    kinds = {finding.partition(":")[0] for finding in axe_findings(page, PANEL)}
    assert {"select-name", "color-contrast"} <= kinds
    page.evaluate(
        """() => {
            const select = document.querySelector(".nk-run-panel .nk-choose-device select");
            select.id = document.querySelector(".nk-run-panel .nk-choose-device label").htmlFor;
            document.querySelector(".nk-run-panel .nk-time").style.color = "";
        }"""
    )


def test_a_run_whose_process_was_killed_is_interrupted_and_goes_on(page, ask, running):
    status = page.locator(STATUS)
    os.kill(running, signal.SIGKILL)
    settle(page, lambda: status.inner_text().startswith("Interrupted"), 30, status.inner_text)
    assert "It can go on from its last checkpoint" in status.inner_text()
    resume = page.locator(f"{PANEL} .nk-resume")
    settle(page, resume.is_enabled)
    resume.focus()
    page.keyboard.press("Enter")
    settle(page, lambda: status.inner_text().startswith("Running"), 60, status.inner_text)
    assert ask("panel.monitor.process.pid") != running
    assert not is_there(running)


def test_a_page_whose_kernel_has_died_says_when_it_last_heard(workspace, page, ask, running):
    """The last test of this file: the kernel is gone afterwards."""
    assert page.errors == []
    status = page.locator(STATUS)
    kernel = ask("__import__('os').getpid()")
    os.kill(kernel, signal.SIGKILL)
    os.kill(running, signal.SIGKILL)
    settle(page, lambda: not is_there(kernel), 30)
    page.wait_for_timeout(1500)
    (events,) = workspace[1].folder.glob("runs/split-digits/*/*/events.jsonl")
    said = re.search(r"Last heard at (\d\d):(\d\d):(\d\d)\.$", status.inner_text())
    assert said, status.inner_text()
    hours, minutes, seconds = map(int, said.groups())
    last = datetime.fromtimestamp(events.stat().st_mtime)
    behind = (last.hour * 3600 + last.minute * 60 + last.second) - (hours * 3600 + minutes * 60 + seconds)
    assert 0 <= behind % 86_400 <= 5  # the page looks twice a second, and a busy machine a little later
