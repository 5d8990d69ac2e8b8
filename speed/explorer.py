"""The threshold explorer: curves from moments, look-ups, a move in the kernel, key press or drag to pixels in Chromium.

Run: python speed/explorer.py            (everything; the browser part needs Chromium and playwright)
     python speed/explorer.py --kernel   (without a browser)
"""

from __future__ import annotations

import functools
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "browser"))

import pages

from nesskit import FrobeniusThreshold, LayerProfile, Moment, NetworkCurves, profile_layers, run
from nesskit.widgets import ThresholdExplorer
from nesskit.widgets.explorer.page import write_page

NETWORKS = {  # inputs and outputs of every layer
    "digits' MLP, 2 layers": [(64, 128), (128, 128)],
    "AlexNet, 5 layers": [(48, 64), (576, 128), (512, 256), (1024, 2048), (2048, 2048)],
    "ResNet18, 20 layers": [(27, 20)] + [(180, 20)] * 5 + [(360, 40)] * 5 + [(720, 80)] * 5 + [(1440, 160)] * 4,
}
KINDS = ("lab", "voila", "page")
MOVES = 40  # of the keyboard, and as many of the mouse
PAUSE = 150  # ms between two moves
NOTEBOOK = "notebooks/explorer.ipynb"
RUNS = {"digits": "permuted-digits", "AlexNet": "split-cifar100"}  # how the labels begin; the second is recorded
Figures = dict[str, float]
CUT, NUMBERS = ".nk-cut", ".nk-numbers tbody tr"
# From the moment at which the browser got the next event, by its own time stamp, until the frame after the one in which
# the cut was drawn elsewhere: by then the pixels are on the screen.
WATCH = """
kind => {
  window.shown = new Promise(done => addEventListener(kind, ({timeStamp}) => {
    const drawn = new MutationObserver(() => {
      drawn.disconnect();
      requestAnimationFrame(() => done(performance.now() - timeStamp));
    });
    drawn.observe(document.querySelector('.nk-grip'), {attributes: true});
  }, {capture: true, once: true}));
}
"""
# The same of all key presses to come, by the browser's own Event Timing: until the frame was presented. It counts in
# steps of 8 ms, and leaves out what took less than 16.
EVENT_TIMING = """
() => {
  const presented = window.presented = [];
  const note = list => presented.push(...list.getEntriesByName('keydown').map(({duration}) => duration));
  new PerformanceObserver(note).observe({type: 'event', durationThreshold: 16});
}
"""


def profiles_of(shapes: list[tuple[int, int]]) -> list[LayerProfile]:
    """Random profiles with spectra that fall as those of real layers do."""
    draw = np.random.default_rng(0)
    return [
        LayerProfile(
            f"layer{k}", 1, d, 5000, 1e4 * np.arange(1, d + 1.0) ** -2.5, draw.random(d), draw.random(d), outputs
        )
        for k, (d, outputs) in enumerate(shapes)
    ]


def seconds_from_moments(shapes: list[tuple[int, int]]) -> float:
    """From one moment a layer, with its weight and an update, to all curves: eigen-decompositions and sums."""
    moments, weights, updates = {}, {}, {}
    for k, (d, outputs) in enumerate(shapes):
        moments[f"layer{k}"] = Moment(d)
        moments[f"layer{k}"].update(torch.randn(2 * d, d, dtype=torch.float64) * torch.arange(1.0, d + 1) ** -0.5)
        weights[f"layer{k}"], updates[f"layer{k}"] = torch.randn(outputs, d), torch.randn(outputs, d)
    started = time.perf_counter()
    NetworkCurves.of(profile_layers(moments, weights, updates))
    return time.perf_counter() - started


def milliseconds(action: Callable[[float], object], repeats: int = 60) -> list[float]:
    """Of ``action`` at as many ε."""
    times = []
    for eps in np.geomspace(2e-4, 0.5, repeats):
        started = time.perf_counter()
        action(float(eps))
        times.append(1000 * (time.perf_counter() - started))
    return times


def report(figures: Figures, what: str, times: list[float], aim: str = "") -> None:
    figures[f"{what}, median ms"], figures[f"{what}, worst ms"] = statistics.median(times), max(times)
    print(f"  {what:48} median {statistics.median(times):7.2f} ms, worst {max(times):7.2f} ms{aim}")


def in_the_kernel() -> dict[str, Figures]:
    found: dict[str, Figures] = {}
    for name, shapes in NETWORKS.items():
        print(name)
        seconds = seconds_from_moments(shapes)
        figures = found[name] = {"all curves from given moments, s": seconds}
        print(f"  {'all curves from given moments':48} {seconds:7.2f} s (AlexNet < 10)")
        profiles = profiles_of(shapes)
        curves = NetworkCurves.of(profiles)
        curves.at(FrobeniusThreshold(0.1))
        explorer = ThresholdExplorer(profiles)
        look_up = functools.partial(_look_up, curves)
        report(figures, "any ε: all layers looked up", milliseconds(look_up), " (< 1)")
        report(
            figures, "a move of the browser, in the kernel", milliseconds(functools.partial(_move, explorer)), " (< 30)"
        )
    return found


def _look_up(curves: NetworkCurves, eps: float) -> None:
    curves.at(FrobeniusThreshold(eps))


def _move(explorer: ThresholdExplorer, eps: float) -> None:
    explorer.view.set_state({"eps": eps})


def in_the_browser(kind: str, folder: Path) -> Figures:
    """Of both runs, on a page of one kind."""
    figures: Figures = {}
    place = folder / kind
    shutil.copytree(folder / "notebooks", place / "notebooks")
    (place / "runs").symlink_to(folder / "runs")
    server = None if kind == "page" else pages.lab(place) if kind == "lab" else pages.voila(place, NOTEBOOK)
    try:
        if server is not None:
            server.wait_until_up()
        with pages.chromium() as browser:
            if kind == "lab":
                page = pages.open_in_lab(browser, server, NOTEBOOK)
            else:
                address = server.url if server else write_page(place / "page.html", folder / "runs").as_uri()
                page = pages.open_page(browser, address)
            page.locator(NUMBERS).wait_for(timeout=60_000)
            for network, benchmark in RUNS.items():
                choose(page, benchmark)
                what = f"{kind}, {network}"
                page.evaluate(EVENT_TIMING)
                report(figures, f"{what}: key press to changed pixels", key_presses(page), " (median < 50)")
                presented = [16.0] * MOVES + page.evaluate("() => window.presented")
                report(figures, f"{what}: the same by Event Timing, at most", presented[-MOVES:])
                report(figures, f"{what}: drag to changed pixels", drags(page), " (median < 50)")
                settled = figures[f"{what}: after 20 quick presses settled, ms"] = quick_presses(page)
                print(f"  {what}: after 20 quick presses settled in {settled:.0f} ms")
    finally:
        if server is not None:
            server.stop()
    return figures


def choose(page: Any, benchmark: str) -> None:
    """Show the first run of ``benchmark``, and wait until the page has come to rest."""
    menu = page.locator(".nk-run select")
    label = next(text for text in menu.locator("option").all_inner_texts() if text.startswith(benchmark))
    menu.select_option(label)
    page.wait_for_timeout(3000)
    assert page.locator(".nk-run select").input_value() == label


def key_presses(page: Any) -> list[float]:
    """Milliseconds of each arrow key, half of them to the right."""
    page.locator(CUT).focus()

    def press(number: int) -> None:
        page.keyboard.press("ArrowRight" if number < MOVES // 2 else "ArrowLeft")

    return [_shown(page, "keydown", press, number) for number in range(MOVES)]


def drags(page: Any) -> list[float]:
    """Milliseconds of each move of the mouse that has taken hold of the cut, half of them downwards."""
    grip = page.locator(".nk-grip").bounding_box()
    x, y = grip["x"] + grip["width"] / 2, grip["y"] + grip["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()

    def move(number: int) -> None:
        page.mouse.move(x, y + 2 * min(number + 1, MOVES - number - 1))

    times = [_shown(page, "pointermove", move, number) for number in range(MOVES)]
    page.mouse.up()
    return times


def quick_presses(page: Any) -> float:
    """Milliseconds from the last of twenty key presses without a pause until the numbers are right."""
    page.locator(CUT).focus()
    eps = float(page.locator(NUMBERS).get_attribute("data-eps"))
    for _ in range(20):
        page.keyboard.press("ArrowRight")
    pressed = time.perf_counter()
    while abs(float(page.locator(NUMBERS).get_attribute("data-eps")) / (eps * 10**0.2) - 1) > 1e-3:
        assert time.perf_counter() - pressed < 10
    return 1000 * (time.perf_counter() - pressed)


def _shown(page: Any, kind: str, act: Callable[[int], None], number: int) -> float:
    page.evaluate(WATCH, kind)
    act(number)
    shown: float = page.evaluate("() => window.shown")
    page.wait_for_timeout(PAUSE)
    return shown


def measure(quick: bool = False) -> dict[str, Any]:
    """In the kernel, and in Chromium where there is one; ``quick`` leaves the browser out."""
    figures: dict[str, Any] = dict(in_the_kernel())
    if quick or pages.find_chromium() is None:
        return figures
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run("permuted-digits", filter=FrobeniusThreshold(1.0), epochs=5, runs=folder / "runs", progress=False)
        (folder / "notebooks").mkdir()
        shutil.copy(pages.ROOT / "notebooks" / "explorer.ipynb", folder / "notebooks")
        for kind in KINDS:
            print(f"{kind} in Chromium")
            figures[f"Chromium, {kind}"] = in_the_browser(kind, folder)
    return figures


if __name__ == "__main__":
    measure(quick="--kernel" in sys.argv)
