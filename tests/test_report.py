"""The HTML report: that it stands alone, says what the numbers say, and hides nothing."""

import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest

from nesskit.errors import NesskitError
from nesskit.experiments.configure import configure
from nesskit.experiments.remarks import remarks
from nesskit.report.page import write_report
from nesskit.report.picture import report_figure, save_picture
from nesskit.runs.comparison import Comparison
from nesskit.runs.record import EpochRecord, Run
from nesskit.spectra.profile import LayerProfile

nan = np.nan
FINETUNE = np.array([[90.0, nan, nan], [70.0, 88.0, nan], [60.25, 71.5, 92.0]])
NESS = np.array([[90.0, nan, nan], [89.5, 86.0, nan], [89.0, 85.5, 90.0]])
JOINT = np.array([[nan, nan, nan], [nan, nan, nan], [96.0, 97.0, 98.0]])


def make_run(accuracy=NESS, method="ness", seed=0, tasks=None, status="finished", **config):
    names = tasks or [f"task {t}" for t in range(len(accuracy))]
    settings = {"stream": "toy", "method": method, "seed": seed, "training": {"epochs": 2, "lr": 0.125}} | config
    environment = {"nesskit": "0.1.0", "commit": "abc123def", "device": "cpu (x86_64)", "threads": 2, "torch": "2.13"}
    run = Run.new(settings, environment, {"toy data": "f" * 64}, list(names))
    run.accuracy, run.status, run.seconds = np.array(accuracy, dtype=float), status, 12.34
    run.history = [EpochRecord(t, e, 2.0 / (e + 1), None, None, 0.125) for t in range(len(names)) for e in range(2)]
    return run


def stopped_run():
    run = make_run(np.where(np.arange(3)[:, None] < 2, FINETUNE, nan), "finetune", status="stopped")
    run.status_reason = "interrupted from the keyboard"
    return run


def profiled_run():
    run = make_run()
    vector = np.ones(8)
    run.profiles = [LayerProfile("conv1", task, 8 - 3 * task, 10, vector, vector, vector) for task in (1, 2)]
    run.memory = {"moments": 163840, "old data": 0}
    return run


THREE = [make_run(FINETUNE, "finetune"), make_run(NESS, "ness"), make_run(JOINT, "joint")]


class Page(HTMLParser):
    """What of a page the tests ask about."""

    def __init__(self, text):
        super().__init__()
        self.headings, self.pictures, self.ids, self.words, self.tags = [], [], [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "svg":
            self.pictures.append(attributes)
        if "id" in attributes:
            self.ids.append(attributes["id"])

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


def report(tmp_path, runs, **options):
    text = write_report(runs, tmp_path / "report.html", **options).read_text(encoding="utf-8")
    return text, Page(text)


def test_the_page_stands_alone(tmp_path):
    text, page = report(tmp_path, [profiled_run(), *THREE[::2]])
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", text)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed"}
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_every_number_of_the_comparison_is_there(tmp_path):
    runs = [*THREE, make_run(FINETUNE - 2, "finetune", seed=1), make_run(NESS + 1, "ness", seed=1)]
    comparison = Comparison.of(runs)
    _, page = report(tmp_path, comparison)
    for row in comparison.table()[1]:
        for cell in row[1:]:
            assert cell in page.text
    assert "differences to fine-tuning are paired by seed" in page.text


def test_every_figure_says_what_it_shows(tmp_path):
    _, page = report(tmp_path, [profiled_run(), *THREE[::2]])
    assert len(page.pictures) == 1 + 1 + 3 + 1  # over time, final, matrices, free ranks
    labels = [picture["aria-label"] for picture in page.pictures]
    assert all(picture["role"] == "img" and len(picture["aria-label"]) > 20 for picture in page.pictures)
    assert any("ACC 74.6 %, BWT −23.1 points" in label for label in labels)
    assert any("conv1 2 of 8" in label for label in labels)


def test_headings_are_in_order_and_ids_are_unique(tmp_path):
    _, page = report(tmp_path, THREE)
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(later - earlier <= 1 for earlier, later in zip(page.headings, page.headings[1:], strict=False))
    assert len(set(page.ids)) == len(page.ids)


def test_the_reading_says_what_the_numbers_say(tmp_path):
    _, page = report(tmp_path, THREE)
    assert "Fine-tuning ends at 74.6 % on average over 3 tasks and lost 23.1 points on earlier tasks." in page.text
    assert "NESS ends at 88.2 %, 13.6 points above fine-tuning, and lost 0.8 points on earlier tasks." in page.text
    assert "Joint training, which sees all tasks at once, reaches 97.0 %." in page.text
    assert "means over seeds" not in page.text


def test_of_many_methods_the_reading_tells_of_the_first_the_highest_and_the_lowest(tmp_path):
    matrices = {
        name: NESS - shift for name, shift in (("ness", 2), ("gpm", 3), ("sgp", 1), ("trgp", 0), ("ewc", 9), ("owm", 4))
    }
    _, page = report(tmp_path, [make_run(matrix, method) for method, matrix in matrices.items()])
    assert "6 methods on" in page.text
    assert all(f"{name} ends at" in page.text for name in ("NESS", "TRGP", "EWC"))
    assert not any(f"{name} ends at" in page.text for name in ("GPM", "SGP", "OWM"))
    assert "The table has all 6 methods." in page.text


def test_a_single_run_names_the_task_that_lost_most(tmp_path):
    _, page = report(tmp_path, THREE[0])
    assert "Most was lost on task 1 (task 0): 90.0 % when it was learned, 60.2 % at the end." in page.text
    assert "74.58" in page.text
    assert "Training" in page.text
    assert "0.125 throughout" in page.text


def test_joint_training_has_no_backward_transfer(tmp_path):
    text, _ = report(tmp_path, THREE)
    assert re.search(r"joint training</th><td>1</td><td>97.00</td><td>–</td>", text)
    assert "nan" not in Page(text).text.lower().split()


def test_names_from_outside_stay_text(tmp_path):
    hostile = ["<script>x", "$a_{b}$ & $", '"><img>']
    runs = [make_run(tasks=hostile), make_run(FINETUNE, "finetune", tasks=hostile, note="<img src=x>")]
    text, page = report(tmp_path, runs, title="<script>title</script>")
    assert "<script" not in text
    assert not page.tags & {"script", "img"}
    assert "<script>title</script>" in page.text
    assert "<img src=x>" in page.text
    assert "$a_{b}$ & $" in page.text  # beneath a matrix, and not read as a formula


def test_free_ranks_with_their_share_and_memory(tmp_path):
    _, page = report(tmp_path, profiled_run())
    assert "5 (62%)" in page.text
    assert "2 (25%)" in page.text
    assert "moments" in page.text
    assert "163.8 kB" in page.text
    assert "old data" not in page.text


def test_provenance_is_complete(tmp_path):
    _, page = report(tmp_path, THREE)
    for value in ("training.lr", "0.125", "abc123def", "cpu (x86_64)", "threads", "2.13", "f" * 64, "12.3", "finished"):
        assert value in page.text


def test_settings_that_differ_stand_beside_each_other(tmp_path):
    text, _ = report(tmp_path, THREE)
    assert "Settings: what differs" in text
    assert re.search(r"method</th><td>finetune</td><td>ness</td><td>joint</td>", text)


def test_runs_that_are_not_finished_are_marked(tmp_path):
    text, page = report(tmp_path, [THREE[1], stopped_run()])
    assert "fine-tuning, seed 0: stopped: interrupted from the keyboard: 2 of 3 tasks learned." in page.text
    assert "fine-tuning (unfinished)</th>" in text
    assert "Fine-tuning stands, after 2 of 3 tasks, at 79.0 %" in page.text
    assert "below NESS" not in page.text
    assert "got differently far" in page.text


def test_a_run_that_has_only_begun_has_a_report(tmp_path):
    run = make_run(np.full((3, 3), nan), status="running")
    run.history = run.history[:1]
    _, page = report(tmp_path, run)
    assert "NESS has no result yet." in page.text
    assert "unfinished: 0 of 3 tasks learned" in page.text
    _, page = report(tmp_path, [run, stopped_run()])
    assert "NESS (unfinished)" in page.text


def test_reduced_and_changed_runs_are_marked(tmp_path):
    settings = configure("permuted-digits", "ness", seed=3, epochs=2, lr=0.5).to_dict()
    run = make_run()
    run.config = settings | {"tasks": 3}
    found = remarks(run)
    assert "reduced to the first 3 tasks of the benchmark" in found
    assert "reduced, epochs = 2 (preset: 30)" in found
    assert "lr = 0.5 (preset: 0.05)" in found
    text, _ = report(tmp_path, [run, make_run(FINETUNE, "finetune")])
    assert "NESS (reduced)</th>" in text
    whole = make_run()
    whole.config = configure("permuted-digits", "ness", seed=3).to_dict()
    assert remarks(whole) == []


def test_runs_of_different_benchmarks_are_not_compared_in_silence(tmp_path):
    _, page = report(tmp_path, [make_run(), make_run(FINETUNE, "finetune", stream="other")])
    assert "different benchmarks" in page.text


def test_one_task_and_different_numbers_of_tasks(tmp_path):
    one = make_run([[80.0]], "gpm")
    _, page = report(tmp_path, one)
    assert "GPM ends at 80.0 % on its only task." in page.text
    report(tmp_path, [one, *THREE])


def test_the_same_runs_give_the_same_bytes(tmp_path):
    first, _ = report(tmp_path, THREE)
    second, _ = report(tmp_path, THREE)
    assert first == second


def test_what_cannot_be_written_is_a_clear_error_and_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(NesskitError, match="cannot write"):
        write_report(THREE, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(NesskitError, match="no run"):
        write_report([], tmp_path / "report.html")


def test_the_one_picture_shows_fine_tuning_and_ness(tmp_path):
    figure = report_figure([THREE[2], THREE[1], THREE[0], make_run(NESS - 1, "gpm")])
    over_time, *matrices = figure.axes
    assert len(over_time.get_lines()) == 4
    assert [ax.get_title(loc="left").split("\n")[0] for ax in matrices] == ["fine-tuning", "NESS"]
    assert len(report_figure(THREE[2]).axes) == 2
    for name in ("picture.png", "picture.svg"):
        path = save_picture(THREE, tmp_path / "new folder" / name)
        assert path.stat().st_size > 1000
    with pytest.raises(NesskitError, match=r"\.png, \.svg or \.pdf"):
        save_picture(THREE, tmp_path / "picture.txt")


def test_no_figure_is_left_open(tmp_path):
    before = plt.get_fignums()
    report(tmp_path, THREE)
    save_picture(THREE, tmp_path / "picture.png")
    assert plt.get_fignums() == before
