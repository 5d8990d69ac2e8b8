"""Every notebook of the course as a student meets it: opened in JupyterLab in a real Chromium, Run All pressed."""

import re
import shutil

import pytest
from pages import ROOT, lab, open_page, run_all, settle, shades

NOTEBOOKS = sorted(path.relative_to(ROOT / "notebooks") for path in (ROOT / "notebooks").glob("[0-9]*/*.ipynb"))
SCREENSHOTS = ROOT / "screenshots"
WHOLE = {"width": 1280, "height": 16_000}  # about the most that a browser draws: one picture shows a whole notebook
SECONDS = 300  # on a machine that is busy with other tests


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """JupyterLab on a copy of the notebooks: what they write stays out of the checkout."""
    folder = tmp_path_factory.mktemp("course")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    shutil.copytree(ROOT / "data" / "results", folder / "data" / "results")
    server = lab(folder)
    try:
        server.wait_until_up()
        yield server
    finally:
        server.stop()


def prompts(page):
    return [text.strip() for text in page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()]


@pytest.mark.every
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_run_all_shows_everything_and_no_error(browser, server, path):
    page = open_page(browser, f"{server.url}/lab/tree/notebooks/{path}", **WHOLE)
    try:
        run_all(page)
        settle(page, lambda: all(re.fullmatch(r"\[\d+\]:", prompt) for prompt in prompts(page)), SECONDS)
        page.wait_for_timeout(3000)  # widgets draw after their cell has ended
        SCREENSHOTS.mkdir(exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{path.stem}.png")
        for kind in ("error", "stderr"):
            assert page.locator(f'[data-mime-type="application/vnd.jupyter.{kind}"]').all_inner_texts() == []
        for widget in page.locator(".jp-OutputArea-output > .jupyter-widgets").all():
            assert widget.bounding_box()["height"] > 40
        assert page.get_by_text("Error displaying widget").count() == 0
        for canvas in page.locator(".jupyter-matplotlib-canvas-div canvas").all()[
            ::2
        ]:  # above each lies one for the mouse
            settle(page, lambda canvas=canvas: shades(canvas) > 20)
        for picture in page.locator(".jp-RenderedImage img").all():
            assert picture.evaluate("image => image.complete && image.naturalWidth > 50")
        assert page.errors == []
    finally:
        page.close()
