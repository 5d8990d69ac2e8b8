"""A folder with a short recorded run and the explorer's notebook, and the pages that show it."""

import importlib.util
import shutil

import pytest
from pages import ROOT, chromium, find_chromium, lab, open_in_lab, open_page, voila

from nesskit import FrobeniusThreshold, Limits, run
from nesskit.widgets.explorer.page import write_page

EXPLORER = ".nk-explorer"


def reason_to_skip():
    if find_chromium() is None:
        return "no chromium, chromium-browser or google-chrome on PATH: the tests in a real browser are left out"
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed: the tests in a real browser are left out"
    return ""


def pytest_collection_modifyitems(items):
    reason = reason_to_skip()
    for item in items:
        if reason and "browser" in item.path.parts:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """Two tasks of a run whose training would take long enough to be stopped."""
    folder = tmp_path_factory.mktemp("jupyter")
    everything = FrobeniusThreshold(1.0)
    run("permuted-digits", filter=everything, epochs=60, runs=folder / "runs", limits=Limits(tasks=2), progress=False)
    (folder / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "explorer.ipynb", folder / "notebooks")
    return folder


@pytest.fixture(scope="session")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def plain_page(browser, workplace):
    """The explorer on a page without a kernel: the run of the workplace, and every recorded one."""
    return open_page(browser, write_page(workplace / "explorer.html", workplace / "runs").as_uri())


@pytest.fixture(scope="session", params=["lab", pytest.param("voila", marks=pytest.mark.every)])
def explorer_page(request, browser, workplace):
    """(page, server) with the explorer on it, in JupyterLab and as a Voilà page."""
    folder = workplace / request.param
    shutil.copytree(workplace / "notebooks", folder / "notebooks")
    shutil.copytree(workplace / "runs", folder / "runs")
    server = lab(folder) if request.param == "lab" else voila(folder, "notebooks/explorer.ipynb")
    try:
        server.wait_until_up()
        if request.param == "lab":
            page = open_in_lab(browser, server, "notebooks/explorer.ipynb")
        else:
            page = open_page(browser, server.url)
        page.locator(f"{EXPLORER} .nk-numbers tbody tr").wait_for(timeout=60_000)
        page.locator(f"{EXPLORER} .nk-spectrum .nk-curve").first.wait_for(timeout=60_000)
        yield page, server
    finally:
        server.stop()
