"""The static site: whole, of one piece, and without anything from elsewhere."""

import base64
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from urllib.parse import unquote, urlsplit

import nbformat
import numpy as np
import pytest

import nesskit
from course import CourseError
from course import site as making
from course.levels import all_notebooks, answer_cells, levels

pytestmark = pytest.mark.timeout(900)  # the first test waits for the build, which a busy machine makes long

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "object": "data"}


class Page(HTMLParser):
    """What one page names: its anchors, the links in it, what it loads, and its pictures."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loaded, self.pictures = {"", "top"}, [], [], []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.anchors |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag == "a" and values.get("href"):
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("next", "prev", "index", "search", "canonical"):
            self.loaded.append(values["href"])
        elif values.get(LOADED.get(tag, "")):
            self.loaded.append(values[LOADED[tag]])
        if tag == "img":
            self.pictures.append(values)


@pytest.fixture(scope="module")
def pages(site):
    """{path: Page} of everything that a reader can open."""
    found = [path for path in site.rglob("*.html") if "_static" not in path.relative_to(site).parts]
    return {path: Page(path) for path in found}


def test_every_link_and_anchor_leads_somewhere(site, pages):
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            is_slide = anchor.startswith("/")
            if not target.is_file() or not (is_slide or target not in pages or anchor in pages[target].anchors):
                dead.append(f"{path.relative_to(site)} → {link}")
    assert dead == []
    assert sum(len(page.links) for page in pages.values()) > 1000


def test_nothing_is_loaded_from_another_host(site, pages):
    elsewhere = [
        f"{path.relative_to(site)} loads {address}"
        for path, page in pages.items()
        for address in page.loaded
        if urlsplit(address).scheme not in ("", "data") or urlsplit(address).netloc
    ]
    for path in site.rglob("*.css"):
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"(?:@import\s+|url\()[\"']?((?:https?:)?//[^\"')\s]+)", text)
        elsewhere += [f"{path.relative_to(site)} loads {address}" for address in found]
    assert elsewhere == []


def test_what_a_page_loads_is_there(site, pages):
    missing = [
        f"{path.relative_to(site)} loads {address}"
        for path, page in pages.items()
        for address in page.loaded
        if urlsplit(address).scheme != "data" and not (path.parent / unquote(urlsplit(address).path)).is_file()
    ]
    assert missing == []


def test_every_notebook_is_a_page_between_others(site, pages):
    course = [path for notebooks in levels().values() for path in notebooks]
    in_order = [(site / path.relative_to(making.ROOT)).with_suffix(".html") for path in course]
    for before, after in pairwise(in_order):
        ways = re.findall(r'<a class="(left-prev|right-next)"\s+href="([^"]+)"', pages[after].text)
        assert {way for way, _ in ways} == {"left-prev", "right-next"}
        assert (after.parent / dict(ways)["left-prev"]).resolve() == before


def test_pictures_are_those_that_the_notebooks_keep(site):
    """Nothing was executed again: each picture is, byte by byte, in the site."""
    shown = {path.read_bytes() for path in (site / "_images").glob("*.png")}
    for path in all_notebooks():
        for cell in nbformat.read(path, 4).cells:
            for output in cell.get("outputs", []):
                if "image/png" in output.get("data", {}):
                    assert base64.b64decode(output["data"]["image/png"]) in shown, f"{path.name}, {cell.id}"


def test_every_picture_has_words(site, pages):
    silent = [
        f"{path.relative_to(site)}: {picture.get('src')}"
        for path, page in pages.items()
        for picture in page.pictures
        if not picture.get("alt") or picture["alt"].endswith(".png")
    ]
    assert silent == []


def test_every_public_name_is_documented(pages):
    anchors = set().union(*(page.anchors for page in pages.values()))
    public = {f"nesskit.{name}" for name in nesskit.__all__ if not name.startswith("_")}
    assert public - anchors == set()
    assert [name for name in anchors if re.match(r"nesskit\..*\b_[a-z]", name)] == []


def test_solutions_and_tests_are_folded(site, pages):
    for path in (path for notebooks in levels().values() for path in notebooks):
        page = pages[(site / path.relative_to(making.ROOT)).with_suffix(".html")]
        assert page.text.count("Show the solution") == len(answer_cells(nbformat.read(path, 4))) > 0
        assert "BEGIN SOLUTION" not in page.text
        assert "BEGIN HIDDEN" not in page.text


def test_the_search_knows_the_null_space(site):
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    null, space = (index["terms"][word] for word in ("null", "space"))  # the numbers of the pages with it
    both = {index["docnames"][number] for number in set(null) & set(space)}
    assert "notebooks/1_foundations/02_small_singular_values" in both


def test_every_symbol_says_its_shape_and_where_it_comes_from():
    text = (making.PAGES / "notation.md").read_text(encoding="utf-8")
    rows = [row.strip("| ").split(" | ") for row in re.findall(r"^\|.*\|$", text, re.MULTILINE)]
    symbols = [row for row in rows if row[0] != "symbol" and not row[0].startswith("---")]
    assert len(symbols) > 30
    assert [row[0] for row in symbols if len(row) != 4 or not row[1] or "notebooks/" not in row[3]] == []


def test_the_minutes_of_the_lesson_follow_each_other():
    text = (making.PAGES / "lesson_plan.md").read_text(encoding="utf-8")
    spans = [tuple(map(int, span)) for span in re.findall(r"^\| (\d+)–(\d+) \|", text, re.MULTILINE)]
    assert spans[0][0] == 0
    assert spans[-1][1] == 90
    assert all(end == start for (_, end), (start, _) in pairwise(spans))


def test_the_lesson_plan_names_slides_that_there_are(site, pages):
    text = (making.PAGES / "lesson_plan.md").read_text(encoding="utf-8")
    table = text.partition("## The plan")[2].partition("\n## ")[0]
    named = []
    for first, joined, last in re.findall(r"slides? (\d+)(?: (to|and) (\d+))?", table):
        named += range(int(first), int(last or first) + 1)
        assert not joined or joined == "to" or int(last) == int(first) + 1
    slides = len(re.findall(r"<h[12]>", pages[site / "slides" / "index.html"].text))
    assert named == list(range(2, slides + 1))  # the first is the title


def test_recorded_results_are_those_on_disk(site):
    text = (site / "recorded.html").read_text(encoding="utf-8")
    runs = [json.loads(path.read_text()) for path in (making.ROOT / "data/results/permuted-digits").glob("hat-*.json")]
    final = [run["accuracy"][-1] for run in runs]
    assert len(final) == 5
    assert f"{np.mean(final):.2f} ± {np.std(np.mean(final, axis=1), ddof=1):.2f}" in text


def test_the_site_is_light(site):
    assert sum(path.stat().st_size for path in site.rglob("*") if path.is_file()) < 60e6


def test_launch_links_stand_where_a_repository_is_named(monkeypatch):
    path = all_notebooks()[-1]
    assert "colab" not in making.page_notebook(path).cells[0].source.lower()
    monkeypatch.setattr(making, "REPOSITORY", "someone/nesskit")
    first = making.page_notebook(path).cells[0].source
    name = path.relative_to(making.ROOT).as_posix()
    assert first.startswith("# ")
    assert f"(https://colab.research.google.com/github/someone/nesskit/blob/main/{name})" in first
    assert f"(https://mybinder.org/v2/gh/someone/nesskit/main?labpath={name})" in first


def test_a_slide_that_wants_no_cell_is_named(tmp_path):
    chosen = tmp_path / "slides.toml"
    chosen.write_text('title = "t"\nsubtitle = "s"\n[[slide]]\ntitle = "Here"\nshow = ["01/nothing"]\n')
    with pytest.raises(CourseError, match=r"'Here' of slides\.toml wants 01/nothing"):
        making.slides(chosen, making.cells_of_course())


def test_what_is_no_site_is_not_overwritten(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CourseError, match="holds something else"):
        making.build(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "mine"
