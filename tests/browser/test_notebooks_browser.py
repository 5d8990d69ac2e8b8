"""Every notebook of the course as a student meets it: opened in JupyterLab in a real Chromium, Run All pressed."""

import shutil

import nbformat
import pytest
from pages import ROOT, THEMES, axe_findings, in_front, lab, open_page, run_all, settle, shades, use_theme

NOTEBOOKS = sorted(path.relative_to(ROOT / "notebooks") for path in (ROOT / "notebooks").glob("[0-9]*/*.ipynb"))
SCREENSHOTS = ROOT / "screenshots"
WHOLE = {"width": 1280, "height": 16_000}  # about the most that a browser draws: one picture shows a whole notebook
WIDGETS = ".jp-OutputArea-output > .jupyter-widgets"
SECONDS = 300  # on a machine that is busy with other tests


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """JupyterLab on a copy of the notebooks, without outputs: what is seen comes from this run, and stays here."""
    folder = tmp_path_factory.mktemp("course")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for path in NOTEBOOKS:
        remove_outputs(folder / "notebooks" / path)
    shutil.copytree(ROOT / "data" / "results", folder / "data" / "results")
    server = lab(folder)
    try:
        server.wait_until_up()
        yield server
    finally:
        server.stop()


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def remove_outputs(path):
    """Committed prompts look as if all cells had run already."""
    notebook = nbformat.read(path, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)


def wait_for_all_cells(page, server, path):
    """Until each cell has run, once and in order, and the kernel is idle; failing says which have not."""
    count = len(code_cells(nbformat.read(ROOT / "notebooks" / path, as_version=4)))
    wanted = [f"[{number}]:" for number in range(1, count + 1)]

    def seen():
        now = in_front(page)
        cells = zip(now.pop("prompts"), wanted, strict=False)
        outstanding = {number: shown for number, (shown, right) in enumerate(cells, 1) if shown != right}
        return f"Outstanding cells: {outstanding}; in front: {now}; kernels: {server.kernel_states()}; {page.errors}"

    def done():
        now = in_front(page)
        return now["prompts"] == wanted and now["kernel"] == "idle"

    settle(page, lambda: in_front(page)["prompts"][:1] != ["[ ]:"], 60, seen)  # Run All has arrived
    settle(page, done, SECONDS, seen, pause=250)  # seldom: the cells need the processor


@pytest.mark.every
@pytest.mark.timeout(2 * SECONDS)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_run_all_shows_everything_and_no_error(browser, server, path):
    page = open_page(browser, server.notebook_url(f"notebooks/{path}"))
    try:
        run_all(page, f"notebooks/{path}")
        wait_for_all_cells(page, server, path)
        page.set_viewport_size(WHOLE)  # only now: each change on a page of that size is drawn slowly
        page.wait_for_timeout(3000)  # widgets draw after their cell has ended
        SCREENSHOTS.mkdir(exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{path.stem}.png")
        for kind in ("error", "stderr"):
            assert page.locator(f'[data-mime-type="application/vnd.jupyter.{kind}"]').all_inner_texts() == []
        for widget in page.locator(WIDGETS).all():
            assert widget.bounding_box()["height"] > 40
        assert page.get_by_text("Error displaying widget").count() == 0
        for picture in page.locator(".nk-picture img").all():
            settle(page, lambda picture=picture: shades(picture) > 20)
        assert page.locator(".jp-RenderedImage img").count() == 0  # JupyterLab takes no description for these
        for picture in page.locator(".jp-RenderedHTML img").all():
            assert picture.evaluate("image => image.complete && image.naturalWidth > 50")
            assert picture.get_attribute("alt")
        assert page.errors == []  # before axe comes
        if page.locator(WIDGETS).count():
            for theme in reversed(THEMES):  # the light one last, as the next notebook begins with what is left
                use_theme(page, theme)
                assert axe_findings(page, WIDGETS) == []
    finally:
        page.close()
        server.shut_down_kernels()
