"""The site in a real Chromium: it loads nothing from elsewhere, sets formulas, is searched and open to everybody."""

import functools
import http.server
import threading

import pytest
from axe_playwright_python.sync_playwright import Axe

from course.levels import all_notebooks

pytestmark = pytest.mark.timeout(900)  # the first test waits for the build, which a busy machine makes long

SOME = [
    "index.html",
    "course.html",
    "notation.html",
    "glossary.html",
    "lesson_plan.html",
    "api/spectra.html",
    "notebooks/1_foundations/02_small_singular_values.html",
    "search.html",
    "slides/index.html",
]
OF_THEIR_OWN = ("slides/index", "explorer")  # which know nothing of the site's themes
GRAVE = ("serious", "critical")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address(site):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module", params=["light", "dark"])
def reader(request, browser, address):
    """A page in one theme; what it asks other hosts for, and its errors, are noted (and no answer comes)."""
    theme = request.param
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, color_scheme=theme)
    context.add_init_script(f"localStorage.setItem('mode', '{theme}'); localStorage.setItem('theme', '{theme}')")
    page = context.new_page()
    page.theme, page.elsewhere, page.errors = theme, [], []

    def only_here(route):
        if route.request.url.startswith((address, "data:", "blob:")):
            return route.continue_()
        page.elsewhere.append(route.request.url)
        return route.abort()

    page.route("**/*", only_here)
    page.on("console", lambda said: page.errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    yield page
    context.close()


def visit(page, address, path):
    """Open a page and wait until its formulas are set."""
    page.elsewhere.clear()
    page.errors.clear()
    page.goto(f"{address}/{path}", wait_until="load")
    if page.locator(".math").count():
        page.evaluate("MathJax.startup.promise.then(() => true)")
        assert page.locator("mjx-container").count() >= page.locator(".math").count()
        assert page.locator("mjx-merror").count() == 0


def findings(page):
    """What axe calls serious or critical, one line each. In the dark only colours are other ones."""
    options = {"resultTypes": ["violations"]}
    if page.theme == "dark":
        options["runOnly"] = ["color-contrast", "link-in-text-block"]
    found = Axe().run(page, options=options).response["violations"]
    return [f"{v['id']}: {node['html'][:200]}" for v in found if v["impact"] in GRAVE for node in v["nodes"]]


def is_fit(page, address, path):
    visit(page, address, path)
    if path.removesuffix(".html") not in OF_THEIR_OWN:
        assert page.locator("html").get_attribute("data-theme") == page.theme
    assert page.errors == []  # before axe comes, which looks for imported style sheets beside the page
    assert page.elsewhere == []
    assert findings(page) == []


@pytest.mark.parametrize("path", SOME)
def test_a_page_is_open_to_everybody_and_loads_nothing_from_elsewhere(reader, address, path):
    is_fit(reader, address, path)


@pytest.mark.every
@pytest.mark.timeout(1200)
def test_every_page_is_open_to_everybody_and_loads_nothing_from_elsewhere(reader, address, site):
    paths = [path.relative_to(site) for path in sorted(site.rglob("*.html"))]
    paths = [path.as_posix() for path in paths if "_static" not in path.parts]
    assert len(paths) > len(all_notebooks()) + len(SOME)
    for path in paths:
        is_fit(reader, address, path)


def test_axe_sees_what_is_wrong(reader, address):
    """The kind of fault that the pages above do not have, in both themes."""
    visit(reader, address, "index.html")
    reader.evaluate("Object.assign(document.querySelector('article p').style, {color: '#888', background: '#777'})")
    assert any(finding.startswith("color-contrast") for finding in findings(reader))


def test_the_search_finds_the_null_space(reader, address):
    visit(reader, address, "search.html?q=null+space")
    reader.locator("#search-results ul.search li").first.wait_for()
    links = reader.locator("#search-results a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
    assert any("02_small_singular_values" in link for link in links)
    assert reader.elsewhere == []


def test_whoever_uses_the_keyboard_sees_where_they_are(reader, address):
    visit(reader, address, "notebooks/1_foundations/02_small_singular_values.html")
    seen = set()
    for _ in range(25):
        reader.keyboard.press("Tab")
        name, outline, shadow = reader.evaluate(
            """() => {
                const at = document.activeElement, style = getComputedStyle(at);
                const outline = style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0;
                return [at.outerHTML.slice(0, 80), outline, style.boxShadow !== "none"];
            }"""
        )
        assert outline or shadow, f"nothing shows that the focus is on {name}"
        seen.add(name)
    assert len(seen) > 15


def test_slides_turn_by_keyboard_and_show_their_figures(reader, address):
    visit(reader, address, "slides/index.html")
    reader.keyboard.press("ArrowRight")
    picture = reader.locator("section.present img")
    picture.wait_for()
    assert picture.evaluate("picture => picture.naturalWidth") > 300
    reader.wait_for_function("location.hash === '#/1'")
    inside = "all => all.every(each => each.scrollHeight <= 700)"
    assert reader.locator(".slides > section > section").evaluate_all(inside), "a slide is taller than the screen"
