"""The threshold explorer in a real Chromium, in JupyterLab and as a Voilà page: what a person sees is what is true."""

import math
import time

import pytest
from pages import is_there, pixels, settle

from nesskit import FrobeniusThreshold, load_run, profiles_by_task
from nesskit.analysis.spectra import OwnCoordinates
from nesskit.widgets.explorer.source import find_runs

SLIDER, CUT = ".nk-eps input[type=range]", ".nk-cut"
ROWS = ".nk-numbers tbody tr"
PICTURE = ".nk-pictures"


def displayed(page, rule="frobenius"):
    """(ε, rank) as the page says."""
    row = page.locator(f"{ROWS}[data-rule={rule}]")
    return float(row.get_attribute("data-eps")), int(row.locator("td").first.inner_text().split()[0])


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
    assert page.locator(".nk-spectrum .nk-curve").count() == page.locator(".nk-layer-button").count() == 2
    for curve in page.locator(".nk-curve").all():
        assert curve.bounding_box()["width"] > 50


def test_every_control_and_picture_says_what_it_is(page):
    said = page.locator(".nk-view").aria_snapshot()
    for part in (
        'combobox "Run"',
        'combobox "Task"',
        'slider "ε₁"',
        'slider "ε₁, the cut"',
        'button "Layer layers.0: ',
    ):
        assert part in said
    (eps, rank) = displayed(page)
    assert page.locator(SLIDER).get_attribute("aria-valuetext") == f"{float(f'{eps:.3g}'):g}"  # not its exponent
    assert f"leaves the {rank} smallest of 192 free" in page.locator(".nk-spectrum").get_attribute("aria-label")
    assert page.locator(ROWS).get_by_role("cell").nth(4).inner_text().split()[0] in page.locator(
        ".nk-frontier"
    ).get_attribute("aria-label")


@pytest.mark.parametrize("handle", [SLIDER, CUT])
def test_the_cut_moves_by_keyboard_and_every_rank_is_right(page, explorer_page, workplace, handle):
    _, server = explorer_page
    page.locator(handle).focus()
    with server.kernel() as ask:
        for key, times in (("Right", 1), ("Right", 12), ("Left", 30), ("Right", 5), ("Left", 2)):
            (eps, _), drawn = displayed(page), pixels(page, PICTURE)
            for _ in range(times):
                page.keyboard.press(f"Arrow{key}")
            wanted = eps * 10 ** (0.01 * (times if key == "Right" else -times))
            settle(page, lambda wanted=wanted: displayed(page)[0] == pytest.approx(wanted, rel=1e-6))
            eps, rank = displayed(page)
            assert float(page.locator(".nk-readout").input_value()) == pytest.approx(eps, rel=0.01)
            assert rank == expected_rank(workplace, eps)
            settle(page, lambda eps=eps: ask("explorer.threshold.eps") == eps)
            assert ask("explorer.readings[0].rank") == rank
            settle(page, lambda drawn=drawn: pixels(page, PICTURE) != drawn)


def test_the_kernel_moves_the_page(page, explorer_page):
    _, server = explorer_page
    with server.kernel() as ask:
        ask("explorer.set(eps=0.0123)")
        settle(page, lambda: displayed(page)[0] == 0.0123)
        assert page.locator(".nk-readout").input_value() == "0.0123"


def test_the_slider_moves_by_mouse(page, workplace):
    before = displayed(page)
    box = page.locator(SLIDER).bounding_box()
    page.mouse.click(box["x"] + 0.4 * box["width"], box["y"] + box["height"] / 2)
    settle(page, lambda: displayed(page)[0] < before[0] / 2)  # far from where the kernel has put it
    eps, rank = displayed(page)
    assert rank == expected_rank(workplace, eps)


def test_the_cut_is_dragged_on_the_spectrum(page, explorer_page, workplace):
    _, server = explorer_page

    def place(eps):
        """Where the spectrum of all layers has ε, from two of its labelled lines."""
        lines = [
            (
                float(tick.text_content()),
                tick.evaluate("t => t.getBoundingClientRect().y + t.getBoundingClientRect().height / 2"),
            )
            for tick in page.locator(".nk-spectrum .nk-tick[text-anchor=end]").all()
        ]
        (one, y), (other, z) = lines[0], lines[-1]
        box = page.locator(".nk-spectrum").bounding_box()
        share = math.log(eps / one) / math.log(other / one)
        return box["x"] + 0.6 * box["width"], y + share * (z - y)

    page.mouse.move(*place(0.1))
    page.mouse.down()
    settle(page, lambda: displayed(page)[0] == pytest.approx(0.1, rel=0.1))
    page.mouse.move(*place(0.003), steps=8)
    page.mouse.up()
    settle(page, lambda: displayed(page)[0] == pytest.approx(0.003, rel=0.1))
    eps, rank = displayed(page)
    assert rank == expected_rank(workplace, eps)
    with server.kernel() as ask:
        settle(page, lambda: ask("explorer.state.eps") == eps)
    page.mouse.move(*place(0.1))  # let go: the cut stays
    page.wait_for_timeout(150)
    assert displayed(page)[0] == eps


def test_the_edge_of_the_null_space_is_dragged(page):
    page.locator(".nk-layer select").select_option("layers.0")
    settle(page, lambda: "of 64" in page.locator(ROWS).inner_text())
    grip = page.locator(".nk-grip").bounding_box()
    axes = page.locator(".nk-spectrum .nk-axis").bounding_box()
    x, y = grip["x"] + grip["width"] / 2, axes["y"] + 20
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(axes["x"] + 30.2 / 64 * axes["width"], y, steps=5)
    page.mouse.up()
    settle(page, lambda: abs(displayed(page)[1] - (64 - 30)) <= 1)  # as near as the slider's steps allow
    page.locator(".nk-layer select").select_option("")
    settle(page, lambda: "of 192" in page.locator(ROWS).inner_text())


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("0,02", "ε₁ = 0,02 has a comma: write it with a point, 0.02"),
        ("0", "ε₁ = 0 is out of range: choose one between 0.00001 and 1"),
        ("-1", "ε₁ = -1 is out of range"),
        ("1e9", "ε₁ = 1e9 is out of range"),
        ("small", 'ε₁ = "small" is not a number: write for example 0.02'),
        ("", "is not a number"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(page, typed, sentence):
    before, readout, alert = displayed(page), page.locator(".nk-readout"), page.get_by_role("alert")
    readout.fill(typed)
    readout.press("Enter")
    settle(page, lambda: sentence in alert.inner_text())
    settle(page, lambda: page.locator(".nk-train").is_disabled())
    assert displayed(page) == before
    readout.fill("2e-2")
    readout.press("Enter")
    settle(page, lambda: displayed(page)[0] == 0.02)
    settle(page, lambda: alert.inner_text() == "")  # drawn in the next frame: ε was often 0.02 before, too
    settle(page, lambda: page.locator(".nk-train").is_enabled())


def test_twenty_quick_presses_leave_no_queue(page, explorer_page):
    typed, _ = displayed(page)
    page.locator(SLIDER).focus()
    page.keyboard.press("ArrowRight")  # from what was typed to a value that the slider has
    settle(page, lambda: displayed(page)[0] > typed)
    start, _ = displayed(page)
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    pressed = time.monotonic()
    settle(page, lambda: displayed(page)[0] == pytest.approx(start * 10**0.2, rel=1e-6))
    assert time.monotonic() - pressed < 2.0
    drawn = pixels(page, PICTURE)
    page.wait_for_timeout(300)
    assert pixels(page, PICTURE) == drawn


def test_both_rules_stand_side_by_side(page, explorer_page):
    page.locator(".nk-both").click()
    settle(page, lambda: page.locator(ROWS).count() == 2)
    (eps, frobenius), (same, nuclear) = displayed(page), displayed(page, "nuclear")
    assert eps == same
    assert nuclear > frobenius
    page.locator(".nk-both").click()
    settle(page, lambda: page.locator(ROWS).count() == 1)


def test_a_layer_is_chosen_by_menu_and_by_its_small_spectrum(page):
    page.locator(".nk-layer select").select_option(label="layers.0")
    settle(page, lambda: "of 64" in page.locator(ROWS).inner_text())
    page.locator(".nk-layer-button").nth(1).click()
    settle(page, lambda: "of 128" in page.locator(ROWS).inner_text())
    assert page.locator(".nk-layer-button").nth(1).get_attribute("aria-pressed") == "true"
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
