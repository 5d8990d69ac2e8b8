"""The explorer on a page without a kernel, in a real Chromium: its numbers are those of nesskit.analysis."""

from itertools import pairwise

import pytest
from pages import settle

from nesskit import NetworkCurves, load_run, profiles_by_task
from nesskit.analysis.interference import curve_of_energies
from nesskit.runs.results import load_result
from nesskit.widgets.explorer.source import find_runs
from nesskit.widgets.explorer.state import RULES
from nesskit.widgets.explorer.view import SCRIPT

ROW = ".nk-numbers tbody tr"
TEXT_ENDS = """span => {
    const text = document.createRange();
    text.selectNodeContents(span);
    return text.getBoundingClientRect().right;
}"""
NUMBERS = ("rank", "interference", "bound", "energy", "trainable")


@pytest.fixture
def page(plain_page):
    yield plain_page
    assert plain_page.errors == []


@pytest.fixture(scope="module")
def module(browser):
    """A page on which ``nk`` is the module, for its mathematics alone."""
    page = browser.new_page()
    load = (
        "async text => { window.nk = await import(URL.createObjectURL(new Blob([text], {type: 'text/javascript'}))); }"
    )
    page.evaluate(load, SCRIPT.read_text(encoding="utf-8"))
    return page


def recorded(workplace, word):
    """(label, curves by task) of the first run with ``word`` in its label."""
    label, path = next((label, path) for label, path in find_runs(workplace / "runs").items() if word in label)
    found = load_result(path) if path.suffix == ".json" else load_run(path)
    return label, {task: NetworkCurves.of(same) for task, same in profiles_by_task(found.profiles).items()}


@pytest.mark.parametrize("word", ["permuted-digits, ness-private", "split-cifar100", "rotated-digits"])
@pytest.mark.parametrize("rule", RULES)
def test_its_numbers_are_those_of_the_analysis(page, workplace, word, rule):
    label, by_task = recorded(workplace, word)
    page.locator(".nk-run select").select_option(label)
    page.locator(".nk-rule select").select_option(rule)
    for task, layer, eps in ((1, 0, 0.004), (2, None, 0.02), (max(by_task), None, 0.3), (1, 1, 0.001), (1, None, 1.0)):
        name = "" if layer is None else by_task[task].names[layer]
        page.locator(".nk-task select").select_option(str(task))
        page.locator(".nk-layer select").select_option(name)
        page.locator(".nk-readout").fill(str(eps))
        page.locator(".nk-readout").press("Enter")
        settle(page, lambda eps=eps: page.locator(ROW).get_attribute("data-eps") == f"{eps:g}")
        curves = by_task[task]
        wanted = (curves[name] if name else curves).at(RULES[rule](eps))
        settle(page, lambda wanted=wanted: page.locator(ROW).get_attribute("data-rank") == str(wanted.rank))
        shown = {number: float(page.locator(ROW).get_attribute(f"data-{number}")) for number in NUMBERS}
        for number, field in zip(NUMBERS, (*NUMBERS[:3], "energy_share", "trainable"), strict=True):
            assert shown[number] == pytest.approx(getattr(wanted, field), rel=1e-6, abs=1e-12)


def test_its_curves_are_those_of_the_analysis(page, module, workplace):
    """Every rank of every layer, every ε of the network, and their knees, from the same vectors."""
    _, by_task = recorded(workplace, "permuted-digits, ness-private")
    curves = by_task[3]
    profiles = [curve.profile for curve in curves.layers]
    vectors = [[p.sigma_squared.tolist(), p.update_energy.tolist(), p.weight_energy.tolist()] for p in profiles]
    make = """vectors => window.curves = vectors.map(([sigmaSquared, updateEnergy, weightEnergy], layer) =>
        new nk.LayerCurve({layer, rank: 0, outputs: 1, sigmaSquared, updateEnergy, weightEnergy}))"""
    module.evaluate(f"vectors => {{ ({make})(vectors); }}", vectors)
    as_lists = "({interference, energyKept, outputNorm}) => [[...interference], [...energyKept], outputNorm]"
    for number, profile in enumerate(profiles):
        ours = curve_of_energies(profile.sigma_squared, profile.update_energy, profile.weight_energy)
        theirs = module.evaluate(f"({as_lists})(curves[{number}])")
        same(ours, theirs)
        assert module.evaluate(f"nk.knee(curves[{number}])") == ours.knee
    for name, rule in RULES.items():
        ours = curves.frontier(rule)
        same(ours, module.evaluate(f"({as_lists})(nk.frontier(curves, '{name}'))"))
        assert module.evaluate(f"nk.knee(nk.frontier(curves, '{name}'))") == ours.knee


def same(ours, theirs):
    interference, energy, norm = theirs
    assert interference == pytest.approx(ours.interference.tolist(), rel=1e-6, abs=1e-9)
    assert energy == pytest.approx(ours.energy_kept.tolist(), rel=1e-6, abs=1e-12)
    assert norm == pytest.approx(ours.output_norm, rel=1e-6)


def test_steps_of_the_slider(module):
    steps = module.evaluate("Array.from({length: 501}, (_, k) => nk.onStep(10 ** (-5 + k / 100) * 1.001))")
    assert steps == pytest.approx([10 ** (-5 + k / 100) for k in range(501)], rel=1e-12)
    assert module.evaluate("[1e-9, 7.0].map(nk.onStep)") == [1e-5, 1.0]


def test_numbers_are_written_as_people_write_them(module):
    shares = {8.8e-11: "< 0.001 %", 0.0: "0 %", 0.00012: "0.012 %", 0.0123: "1.2 %", 0.666: "66.6 %", 1.0: "100 %"}
    written = module.evaluate("shares => shares.map(nk.percent)", list(shares))
    assert [text.replace("\u00a0", " ") for text in written] == list(shares.values())
    values = {0.0251: "0.0251", 1e-5: "0.00001", 3.2e-7: "3.2 · 10⁻⁷", 1e-12: "10⁻¹²", 0.0: "0", 12345.0: "12300"}
    assert module.evaluate("values => values.map(nk.number)", list(values)) == list(values.values())


@pytest.mark.parametrize("width", [700, 800, 1280, 1600])
def test_it_fills_the_width_and_loses_nothing(page, width):
    page.set_viewport_size({"width": width, "height": 1250})
    settle(page, lambda: page.locator(".nk-spectrum").bounding_box()["width"] <= width)
    page.wait_for_timeout(200)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    right = [box["x"] + box["width"] for box in (part.bounding_box() for part in page.locator(".nk-picture").all())]
    assert max(right) > 0.95 * width
    for one, other in pairwise(page.locator(f"{ROW} span").all()):  # no text runs into the next cell
        assert one.evaluate(TEXT_ENDS) < other.evaluate("s => s.getBoundingClientRect().x")


def test_it_says_where_training_is_and_offers_none(page):
    assert "Training needs a kernel" in page.locator(".nk-note").inner_text()
    assert page.locator(".nk-train").count() == 0


def test_it_asks_nobody(browser, plain_page):
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(plain_page.url)
    page.locator(ROW).wait_for()
    page.close()
    assert asked == [plain_page.url]


def test_it_is_dark_where_the_page_is(page):
    def brightness():
        colour = page.locator(".nk-view").evaluate("e => getComputedStyle(e).color")
        return sum(map(float, colour[4:-1].split(",")))

    assert brightness() < 200
    page.emulate_media(color_scheme="dark")
    settle(page, lambda: brightness() > 600)
    page.emulate_media(color_scheme="light")
    settle(page, lambda: brightness() < 200)


def test_it_is_dark_where_a_transparent_frame_says_so(page):
    """As on Colab, where the page shines through the frame of an output."""
    dark, explorer = "document.body.style.background = '{}'; document.documentElement.{}", page.locator(".nk-explorer")
    page.evaluate(dark.format("transparent", "setAttribute('theme', 'dark')"))
    settle(page, lambda: "nk-dark" in explorer.get_attribute("class"))
    page.evaluate(dark.format("", "removeAttribute('theme')"))
    settle(page, lambda: "nk-dark" not in explorer.get_attribute("class"))
