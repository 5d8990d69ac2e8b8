"""The threshold explorer without a browser: what it reads is what filters say, and problems become sentences."""

import base64
import csv
import io
import json
import re
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from pictures import read_picture
from torch import nn

from nesskit import (
    FrobeniusThreshold,
    Limits,
    Moment,
    NuclearThreshold,
    TaskModel,
    collect_moments,
    fit,
    load_run,
    load_stream,
    profiles_by_task,
    run,
)
from nesskit.analysis.spectra import OwnCoordinates
from nesskit.errors import NesskitError
from nesskit.methods import NESS
from nesskit.plots import contrast
from nesskit.runs.results import load_result, record_run
from nesskit.settings import NESSSettings, TrainingSettings
from nesskit.widgets import RunPanel, ThresholdExplorer
from nesskit.widgets.explorer.page import explorer_page, write_page
from nesskit.widgets.explorer.source import find_runs, load_source
from nesskit.widgets.explorer.state import State
from nesskit.widgets.explorer.training import accuracy_table
from nesskit.widgets.explorer.view import SCRIPT, STYLES

SHORT = {"epochs": 2, "network_widths": (16, 12)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run with every direction free, one of two tasks that NESS restricts, and one without profiles."""
    folder = tmp_path_factory.mktemp("runs")
    run("permuted-digits", filter=FrobeniusThreshold(1.0), runs=folder, progress=False, **SHORT)
    run("split-digits", filter=NuclearThreshold(0.01), runs=folder, progress=False, **SHORT)
    run("split-digits", method="finetune", runs=folder, progress=False, **SHORT)
    return folder


@pytest.fixture
def explorer(runs):
    return ThresholdExplorer("permuted-digits", runs=runs)


def finish(panel, seconds=90):
    deadline = time.monotonic() + seconds
    while panel.poll():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def moments_and_model():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    return model, collect_moments(model, [torch.randn(40, 6)])


@pytest.mark.parametrize("rule", [FrobeniusThreshold, NuclearThreshold])
@pytest.mark.parametrize("eps", [1e-4, 0.004, 0.02, 0.1, 1.0])
def test_ranks_are_those_of_the_filter(explorer, runs, rule, eps):
    explorer.set(rule=rule.name, eps=eps, task=3)
    (folder,) = (runs / "permuted-digits" / "ness").iterdir()
    profiles = profiles_by_task(load_run(folder).profiles)[3]
    ranks = tuple(rule(eps).null_rank(OwnCoordinates(p.sigma_squared**0.5)) for p in profiles)
    (reading,) = explorer.readings
    assert reading.ranks == ranks
    assert reading.rank == sum(ranks)


def test_a_layer_is_read_as_its_curve_says(explorer):
    explorer.set(layer="layers.1", eps=0.05)
    (reading,) = explorer.readings
    curve = explorer.source.curves[1]["layers.1"]
    assert reading.interference == pytest.approx(curve.interference[reading.rank])
    assert reading.energy_share == pytest.approx(curve.energy_share[reading.rank])
    assert reading.interference <= reading.bound
    assert (reading.dimension, reading.trainable) == (16, 12 * reading.rank)


def test_both_rules_stand_side_by_side_at_one_eps(explorer):
    explorer.set(side_by_side=True, eps=0.01)
    frobenius, nuclear = explorer.readings
    assert (frobenius.rule, nuclear.rule) == (FrobeniusThreshold(0.01), NuclearThreshold(0.01))
    assert nuclear.rank > frobenius.rank


def test_what_moves_in_the_browser_moves_the_kernel_s_state(explorer):
    explorer.view.set_state({"eps": 0.2, "layer": "layers.1", "task": 3, "rule": "nuclear"})
    assert explorer.state == State("nuclear", 0.2, 3, "layers.1")
    assert explorer.threshold == NuclearThreshold(0.2)
    assert explorer.train_button.description == "Train nuclear ε = 0.2"
    (reading,) = explorer.readings
    assert reading.rank == explorer.source.curves[3]["layers.1"].at(NuclearThreshold(0.2)).rank


def test_nothing_is_trained_while_what_was_typed_makes_no_sense(explorer):
    explorer.view.set_state({"problem": "ε₁ = 0 is out of range"})
    assert explorer.train_button.disabled
    explorer.view.set_state({"problem": "", "eps": 0.02})
    assert not explorer.train_button.disabled


def test_the_browser_is_sent_the_profiles_to_the_last_digit(explorer, runs):
    (folder,) = (runs / "permuted-digits" / "ness").iterdir()
    profiles = load_run(folder).profiles
    sent = explorer.view.source["profiles"]
    for name in ("sigma_squared", "update_energy", "weight_energy"):
        vectors = np.concatenate([getattr(profile, name) for profile in profiles])
        assert np.array_equal(np.frombuffer(sent[name]), vectors)
    assert sent["layer"] == [profile.layer for profile in profiles]
    assert sent["rank"] == [profile.rank for profile in profiles]
    assert explorer.view.source["tasks"][0] == [1, "task 2 (permutation 1)"]


def colours(theme):
    """The colours of the style sheet under a selector, by name."""
    block = re.search(rf"^{re.escape(theme)} {{(.*?)^}}", STYLES.read_text(encoding="utf-8"), re.S | re.M)[1]
    return {name: to_rgb(value) for name, value in re.findall(r"--nk-([\w-]+): (#[0-9a-f]{6})", block)}


@pytest.mark.parametrize("theme", [".nk-explorer", ".nk-explorer.nk-dark"])
def test_text_is_legible_in_both_themes(theme):
    found = colours(theme)
    assert len(found) == 12
    for text in ("ink", "muted", "error", "frobenius", "nuclear", "relative"):
        for paper in ("paper", "chosen"):
            assert contrast(found[text], found[paper]) >= 4.5, (text, paper)


def test_the_page_holds_every_recorded_run_and_asks_no_other_host(tmp_path):
    page = write_page(tmp_path / "explorer.html", tmp_path / "runs").read_text(encoding="utf-8")
    held = json.loads(re.search(r'<script type="application/json" id="runs">(.*?)</script>', page, re.S)[1])
    assert list(held) == list(find_runs(tmp_path / "runs"))
    label, path = next((label, path) for label, path in find_runs(tmp_path).items() if "cifar100" in label)
    recorded = np.concatenate([profile.sigma_squared for profile in load_result(path).profiles])
    packed = base64.b64decode(held[label]["profiles"]["sigma_squared"])
    assert np.array_equal(np.frombuffer(packed, np.float32), recorded)
    assert (held[label]["rule"], held[label]["eps"]) == ("nuclear", 0.001)
    assert set(re.findall(r"https?://[^\s\"]+", page)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)


def test_a_label_ends_no_script(runs):
    (folder,) = (runs / "permuted-digits" / "ness").iterdir()
    page = explorer_page({"</script><b>": load_source(folder)})
    assert page.count("</script>") == 2


def test_a_page_of_nothing_and_a_page_that_cannot_be_written_are_one_sentence(tmp_path):
    with pytest.raises(NesskitError, match="no run with layer profiles"):
        write_page(tmp_path / "explorer.html", tmp_path, tmp_path)
    with pytest.raises(NesskitError, match="cannot write"):
        write_page(tmp_path / "nowhere" / "explorer.html", tmp_path)


def test_a_restricted_run_says_so_and_starts_at_its_own_threshold(runs):
    explorer = ThresholdExplorer("split-digits", runs=runs)
    assert (explorer.state.rule, explorer.state.eps) == ("nuclear", 0.01)
    assert "every direction is free" in explorer.base_note.value
    assert explorer.base_menu.value == "split-digits"


def test_a_static_figure_for_pages_without_a_kernel(explorer, tmp_path):
    for one in (explorer, ThresholdExplorer(runs=tmp_path)):
        bundle, _ = one._repr_mimebundle_()
        alt, picture = read_picture(bundle)
        assert alt
        assert picture.shape[1] > 800  # as wide as a page
        assert bundle["text/plain"] == "ThresholdExplorer"  # no address, nothing that depends on the runs
        assert "application/vnd.jupyter.widget-view+json" in bundle


def test_on_colab_it_names_the_manager_that_can_show_it(explorer, monkeypatch):
    assert explorer._repr_mimebundle_()[1] == {}
    manager, asked = "https://colab.example/manager.min.js", []
    output = SimpleNamespace(
        enable_custom_widget_manager=lambda: asked.append(True), _widgets=SimpleNamespace(_installed_url=manager)
    )
    monkeypatch.setitem(sys.modules, "google.colab.output", output)
    bundle, metadata = explorer._repr_mimebundle_()
    view = "application/vnd.jupyter.widget-view+json"
    assert bundle[view]["model_id"] == explorer.model_id
    assert metadata == {view: {"colab": {"custom_widget_manager": {"url": manager}}}}
    panel = RunPanel("split-digits")  # as every widget of ours
    bundle, metadata = panel._repr_mimebundle_()
    assert bundle[view]["model_id"] == panel.model_id
    assert metadata == {view: {"colab": {"custom_widget_manager": {"url": manager}}}}
    ThresholdExplorer([])
    assert asked == [True]  # by the first widget, without a word in a notebook


def test_the_module_and_its_colours_need_nothing_from_elsewhere(explorer):
    """Colab, Voilà and a plain page load both as texts, and have no colours of JupyterLab's."""
    script, styles = explorer.view._esm, explorer.view._css
    assert script == SCRIPT.read_text(encoding="utf-8")
    assert styles == STYLES.read_text(encoding="utf-8")
    assert not re.search(r"^\s*import\b|\bimport\(|\brequire\(|\bdefine\(|@import|url\(", script + styles, re.M)
    assert not re.search(r"var\(--jp-[\w-]+\)", styles)  # one without a value beside it


def test_without_runs_it_offers_to_make_one(tmp_path):
    explorer = ThresholdExplorer("split-digits", runs=tmp_path, results=tmp_path / "results")
    assert explorer.message.startswith("No run of split-digits with layer profiles lies in")
    assert explorer.source is None
    explorer.base_button.click()
    finish(explorer.training)
    assert explorer.message == ""
    assert explorer.source.label == "split-digits, all directions free, seed 0"
    assert explorer._base.layout.display == "none"


def test_recorded_runs_can_be_chosen_without_training(runs, tmp_path):
    restricted = load_run(next((runs / "split-digits" / "ness").iterdir()))
    path = record_run(restricted, tmp_path / "results")
    explorer = ThresholdExplorer("split-digits", runs=tmp_path / "runs", results=tmp_path / "results")
    assert explorer.message == ""
    label = f"split-digits, nuclear ε = 0.01, seed 0, recorded on {restricted.environment['device']}"
    assert explorer.choices == {label: path}
    assert explorer.source.label == label
    assert label.partition("on ")[2] in explorer.train_note.value
    assert "every direction is free" in explorer.base_note.value
    from_folder = ThresholdExplorer("split-digits", runs=runs, results=tmp_path / "results")
    assert list(from_folder.choices.values()) == [restricted.folder, path]  # what is here comes first
    for recorded, original in zip(explorer.readings, from_folder.readings, strict=True):
        assert recorded.ranks == original.ranks
        assert recorded.interference == pytest.approx(original.interference, rel=1e-4)


def test_recorded_runs_of_one_name_can_all_be_chosen(runs, tmp_path):
    path = record_run(load_run(next((runs / "split-digits" / "ness").iterdir())), tmp_path / "results")
    for there in (path, path.with_suffix(".npz")):
        there.with_stem("the same once more").write_bytes(there.read_bytes())
    found = find_runs(tmp_path, "split-digits", tmp_path / "results")
    assert set(found.values()) == {path, path.with_stem("the same once more")}


def test_a_recorded_run_whose_files_are_damaged_is_one_sentence(runs, tmp_path):
    path = record_run(load_run(next((runs / "split-digits" / "ness").iterdir())), tmp_path / "results")
    path.with_suffix(".npz").write_bytes(b"PK")
    explorer = ThresholdExplorer(runs=tmp_path / "runs", results=tmp_path / "results")
    assert explorer.message.startswith(f"{path.with_suffix('.npz')} holds no layer profiles: ")
    path.write_text("{}")
    explorer = ThresholdExplorer(runs=tmp_path / "runs", results=tmp_path / "results")
    assert list(explorer.choices) == [f"split-digits/{path.stem}"]
    assert "its provenance is incomplete" in explorer.message


def test_the_whole_runs_of_the_paper_s_benchmark_are_ready(tmp_path):
    explorer = ThresholdExplorer("split-cifar100", runs=tmp_path)
    seeds = [re.search(r"seed (\d+), recorded on cuda \(NVIDIA H100", label) for label in explorer.choices]
    assert {found[1] for found in seeds if found} >= {"1", "2", "3", "4", "37"}
    assert (explorer.state.rule, explorer.state.eps) == ("nuclear", 0.001)
    assert explorer.readings[0].ranks == (3, 333, 207, 818, 1904)  # what the run itself freed for its second task
    assert explorer.source.settings.preset == "nesskit-sgdm"  # as the preset is called whose settings it has


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eps": 7.0}, "ε = 7 is out of range: choose one between 1e-05 and 1"),
        ({"eps": float("nan")}, "ε = nan is out of range"),
        ({"layer": "layers.9"}, "there is no profile of layer 'layers.9'; there are layers.0, layers.1"),
        ({"rule": "frobenus"}, "frobenius"),
        ({"task": 0}, "there is no profile of task 0"),
    ],
)
def test_bad_choices_are_said_in_the_widget(explorer, change, message):
    before = explorer.state
    explorer.set(**change)
    assert message in explorer.message
    assert explorer.view.message == explorer.message  # which the browser reads out
    assert explorer.state == before
    explorer.set(eps=0.03)
    assert explorer.message == ""


def test_bad_sources_are_said_in_the_widget(runs, tmp_path):
    model, moments = moments_and_model()
    other = {"elsewhere": Moment(6)}
    never_run = {**moments, "2": Moment(5)}
    wider = {**moments, "0": Moment(7)}
    wider["0"].update(torch.randn(4, 7))
    (finetune,) = (runs / "split-digits" / "finetune").iterdir()
    cases = [
        (ThresholdExplorer(finetune, runs=tmp_path), "has no layer profiles"),
        (ThresholdExplorer(load_run(finetune), runs=tmp_path), "has no layer profiles"),
        (ThresholdExplorer(model, other, runs=tmp_path), "no partner for"),
        (ThresholdExplorer(model, never_run, runs=tmp_path), "layer '2' was never run"),
        (ThresholdExplorer(model, wider, runs=tmp_path), "belong to different layers or models"),
        (ThresholdExplorer(model, runs=tmp_path), "needs the moments of its old inputs"),
        (ThresholdExplorer([], runs=tmp_path), "there are no layer profiles"),
        (ThresholdExplorer("permutted-digits", runs=tmp_path), "no benchmark and no run folder 'permutted-digits'"),
        (ThresholdExplorer(tmp_path, runs=tmp_path), "no run lies in"),
    ]
    for explorer, message in cases:
        assert message in explorer.message
        assert explorer.source is None
        assert explorer.readings == ()
        explorer.set(eps=0.1)  # nothing to move, and nothing breaks


def test_profiles_and_runs_in_memory(runs):
    (folder,) = (runs / "permuted-digits" / "ness").iterdir()
    loaded = load_run(folder)
    states = [
        ThresholdExplorer(source, runs=runs / "none") for source in (loaded, loaded.profiles, folder, str(folder))
    ]
    assert len({explorer.readings for explorer in states}) == 1


def test_a_model_in_memory():
    model, moments = moments_and_model()
    explorer = ThresholdExplorer(model, moments, runs="nowhere")
    assert explorer.message == ""
    explorer.set(layer="0", eps=1.0)
    assert explorer.readings[0].energy_share == pytest.approx(1.0)
    assert explorer.train_button.disabled
    assert "train=" in explorer.train_note.value
    updates = {"0": torch.zeros(5, 6), "2": torch.zeros(3, 5)}
    nothing = ThresholdExplorer((model, moments), updates=updates, runs="nowhere")
    assert np.isnan(nothing.readings[0].energy_share)


def test_a_model_in_memory_trains_in_the_foreground():
    stream = load_stream("split-digits", seed=0).first(2)

    def make_model():
        torch.manual_seed(0)
        backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU())
        return TaskModel(backbone, 8, [2, 2])

    def train(rule, listeners):
        return fit(make_model(), stream, NESS(NESSSettings(rule)), TrainingSettings(epochs=1), listeners=listeners)

    model = make_model()
    moments = collect_moments(model.backbone, [stream[0].normalise(stream[0].train.x)])
    explorer = ThresholdExplorer(model.backbone, moments, train=train, runs="nowhere")
    assert "waits until it is done" in explorer.train_note.value
    explorer.train_button.click()
    (trial,) = explorer.training.history
    assert trial.status == "finished"
    assert explorer.training.accuracy.shape == (2, 2)
    assert not explorer.train_button.disabled


def test_training_goes_into_the_history_and_the_csv(runs, tmp_path):
    explorer = ThresholdExplorer("permuted-digits", runs=runs)
    for eps in (0.1, 0.001):
        explorer.set(eps=eps)
        explorer.train_button.click()
        assert explorer.train_button.disabled
        finish(explorer.training)
        assert not explorer.train_button.disabled
    assert [trial.rule for trial in explorer.training.history] == ["frobenius:0.1", "frobenius:0.001"]
    assert load_run(explorer.training.history[0].folder).config["options"]["filter"] == "frobenius:0.1"
    assert explorer.training.table.value.count("<tr>") == 3
    path = explorer.training.save_history(tmp_path / "deep" / "history.csv")
    rows = list(csv.DictReader(io.StringIO(path.read_text())))
    assert [float(row["ACC"]) for row in rows] == [trial.ACC for trial in explorer.training.history]
    assert any("ε = 0.1" in label for label in explorer.choices)
    assert explorer.source.label.endswith("all directions free, seed 0")  # what is shown stays


def test_a_child_that_fails_says_why(runs, tmp_path):
    explorer = ThresholdExplorer("permuted-digits", runs=runs)
    explorer.training.runs = tmp_path / "file"
    explorer.training.runs.write_text("in the way")
    explorer.train_button.click()
    finish(explorer.training)
    assert "this run failed" in explorer.training.status.value
    assert explorer.training.history == []
    assert not explorer.train_button.disabled


def test_a_stop_is_heard_even_before_the_first_epoch(tmp_path):
    limits = Limits(tasks=2)
    everything = FrobeniusThreshold(1.0)
    run("permuted-digits", filter=everything, epochs=40, limits=limits, runs=tmp_path, progress=False)
    explorer = ThresholdExplorer(runs=tmp_path)
    explorer.train_button.click()
    explorer.training.stop_button.click()
    finish(explorer.training)
    (trial,) = explorer.training.history
    assert trial.status == "stopped after 0 of 10 tasks"


def test_the_accuracy_table_says_every_number():
    table = accuracy_table([[90.0, np.nan], [80.0, 95.5]], ["a", "b <c>"], "NESS")
    assert [number in table for number in (">90.0<", ">80.0<", ">95.5<")] == [True] * 3
    assert "b &lt;c&gt;" in table
    assert "ACC 87.8 %" in table


def test_states_are_plain_values():
    state = State(eps=0.02, side_by_side=True)
    assert state.rules == (FrobeniusThreshold(0.02), NuclearThreshold(0.02))
    assert State("nuclear", 0.02, side_by_side=True).rules == state.rules[::-1]
