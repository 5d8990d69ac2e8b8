"""The threshold explorer in a real Chromium, in JupyterLab and as a Voilà page: what a person sees is what is true."""

import time

import pytest
from pages import is_there, pixels, settle, shades

from nesskit import FrobeniusThreshold, load_run, profiles_by_task
from nesskit.analysis.spectra import OwnCoordinates
from nesskit.widgets.explorer.source import find_runs

SLIDER = ".nk-eps [role=slider]"
ROWS = ".nk-numbers tbody tr"
CANVAS = ".nk-explorer .jupyter-matplotlib-canvas-div canvas"


def displayed(page, rule="frobenius"):
    """(ε, rank) as the page says."""
    row = page.locator(f"{ROWS}[data-rule={rule}]")
    return float(row.get_attribute("data-eps")), int(row.locator(".nk-rank").inner_text())


def expected_rank(workplace, eps, task=1):
    """Straight from the recorded spectra, by the filter's own ``null_rank``."""
    (folder,) = [path for label, path in find_runs(workplace / "runs").items() if "all directions free" in label]
    profiles = profiles_by_task(load_run(folder).profiles)[task]
    spectra = [OwnCoordinates(profile.sigma_squared**0.5) for profile in profiles]
    return sum(FrobeniusThreshold(eps).null_rank(spectrum) for spectrum in spectra)


@pytest.fixture
def page(explorer_page):
    page, _ = explorer_page
    page.locator(".nk-eps").scroll_into_view_if_needed()
    yield page
    assert page.errors == []


def test_the_page_is_not_empty(page):
    assert page.locator(ROWS).count() == 1
    assert page.locator(f"{SLIDER}").get_attribute("aria-valuenow") is not None
    canvas = page.locator(CANVAS).first
    settle(page, lambda: shades(canvas) > 20)  # a drawing, not one blank colour


def test_the_slider_moves_by_keyboard_and_every_rank_is_right(page, explorer_page, workplace):
    _, server = explorer_page
    page.locator(SLIDER).focus()
    with server.kernel() as ask:
        for key, times in (("Right", 1), ("Right", 12), ("Left", 30), ("Right", 5), ("Left", 2)):
            (eps, _), drawn, lines = displayed(page), pixels(page, CANVAS), ask("explorer.view.line_data()")
            for _ in range(times):
                page.keyboard.press(f"Arrow{key}")
            wanted = eps * 10 ** (0.01 * (times if key == "Right" else -times))
            settle(page, lambda wanted=wanted: displayed(page)[0] == pytest.approx(wanted, rel=1e-6))
            eps, rank = displayed(page)
            assert float(page.locator(".nk-eps .widget-readout").inner_text()) == pytest.approx(eps, rel=0.01)
            assert rank == expected_rank(workplace, eps)
            assert ask("explorer.view.line_data()")["height frobenius"] == [eps, eps] != lines["height frobenius"]
            settle(page, lambda drawn=drawn: pixels(page, CANVAS) != drawn)


def test_the_slider_moves_by_mouse(page, workplace):
    before = displayed(page)
    box = page.locator(".nk-eps .noUi-base").bounding_box()
    page.mouse.click(box["x"] + 0.62 * box["width"], box["y"] + box["height"] / 2)
    settle(page, lambda: displayed(page) != before)
    eps, rank = displayed(page)
    assert rank == expected_rank(workplace, eps)


def test_the_cut_is_dragged_on_the_spectrum(page, explorer_page, workplace):
    _, server = explorer_page
    with server.kernel() as ask:
        ax = "explorer.view.spectrum.ax"
        high, low = ask(f"[[float(v) for v in {ax}.transData.transform((50, eps))] for eps in (0.1, 0.003)]")
        height = ask("float(explorer.view.canvas.figure.bbox.height)")
        ratio = ask("float(explorer.view.canvas.device_pixel_ratio)")
        box = page.locator(CANVAS).first.bounding_box()

        def place(point):
            return box["x"] + point[0] / ratio, box["y"] + (height - point[1]) / ratio

        page.mouse.move(*place(high))
        page.mouse.down()
        settle(page, lambda: displayed(page)[0] == pytest.approx(0.1, rel=0.1))
        page.mouse.move(*place(low), steps=8)
        settle(page, lambda: displayed(page)[0] < 0.01)  # a browser may leave out the last of several fast motions
        page.mouse.up()
        settle(page, lambda: displayed(page)[0] == pytest.approx(0.003, rel=0.1))
        page.wait_for_timeout(150)
        eps, rank = displayed(page)
        assert eps == pytest.approx(0.003, rel=0.1)
        assert rank == expected_rank(workplace, eps)
        assert ask("explorer.view.line_data()")["height frobenius"][0] == eps
        assert float(page.locator(SLIDER).get_attribute("aria-valuenow")) == pytest.approx(-2.5, abs=0.1)
        page.mouse.move(*place(high))  # let go: the cut stays
        page.wait_for_timeout(150)
        assert displayed(page)[0] == eps


def test_twenty_quick_presses_leave_no_queue(page, explorer_page):
    page.locator(SLIDER).focus()
    start, _ = displayed(page)
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    pressed = time.monotonic()
    settle(page, lambda: displayed(page)[0] == pytest.approx(start * 10**0.2, rel=1e-6))
    assert time.monotonic() - pressed < 2.0
    drawn = pixels(page, CANVAS)
    page.wait_for_timeout(300)
    assert pixels(page, CANVAS) == drawn


def test_both_rules_stand_side_by_side(page, explorer_page):
    page.locator(".nk-both").click()
    settle(page, lambda: page.locator(ROWS).count() == 2)
    (eps, frobenius), (same, nuclear) = displayed(page), displayed(page, "nuclear")
    assert eps == same
    assert nuclear > frobenius
    page.locator(".nk-both").click()
    settle(page, lambda: page.locator(ROWS).count() == 1)


def test_a_layer_is_chosen_by_menu(page):
    page.locator(".nk-layer select").select_option(label="layers.0")
    settle(page, lambda: "of 64" in page.locator(ROWS).inner_text())
    page.locator(".nk-layer select").select_option(label="all layers")
    settle(page, lambda: "of 192" in page.locator(ROWS).inner_text())


def test_train_fills_the_matrix_and_stop_ends_the_process(page, explorer_page):
    page.locator(".nk-train").click()
    status = page.locator(".nk-status span")
    settle(page, lambda: status.count() == 1 and status.get_attribute("data-pid"), 30)
    pid = int(status.get_attribute("data-pid"))
    assert is_there(pid)
    filled = page.locator(".nk-matrix td:not(:empty)")
    settle(page, lambda: filled.count() >= 3, 60)  # two tasks at least
    before = displayed(page)
    page.locator(SLIDER).focus()
    page.keyboard.press("ArrowLeft")  # the kernel is free while the run goes on
    settle(page, lambda: displayed(page) != before, 5)
    page.locator(".nk-stop").click()
    settle(page, lambda: page.locator(".nk-history tbody tr").count() == 1, 30)
    assert "stopped after" in page.locator(".nk-history").inner_text()
    settle(page, lambda: not is_there(pid))
    assert filled.count() < 55  # of ten tasks
    page.locator(".nk-save").click()
    page.get_by_text("saved as").wait_for()
