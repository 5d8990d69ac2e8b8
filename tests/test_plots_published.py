"""The published results as a figure: every line is there, in order, and the words agree."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from nesskit import plots
from nesskit.errors import NesskitError
from nesskit.report.results_table import published
from nesskit.runs.record import Run


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


@pytest.mark.parametrize("benchmark", ["split-cifar100", "five-datasets", "split-miniimagenet"])
def test_every_line_stands_in_the_figure_the_best_on_top(benchmark):
    lines = published(benchmark)
    accuracy, transfer = plots.plot_published(lines).axes
    names = [label.get_text() for label in accuracy.get_yticklabels()]
    best_last = sorted(lines, key=lambda line: line.accuracy[0])
    assert names == [line.label for line in best_last]
    means = [container[0].get_xdata()[0] for container in accuracy.containers]
    assert means == [line.accuracy[0] for line in best_last]
    shown = [container[0].get_xdata()[0] for container in transfer.containers]
    beyond = [text.get_text() for text in transfer.texts]
    assert len(shown) + len(beyond) == len(lines)
    assert all(any(f"{line.transfer[0]:g}" in text for text in beyond) or line.transfer[0] in shown for line in lines)


def test_the_whole_range_leaves_nothing_at_the_edge():
    _, transfer = plots.plot_published(published("split-cifar100"), whole=True).axes
    assert not transfer.texts
    assert -30.0 in [container[0].get_xdata()[0] for container in transfer.containers]


def test_the_words_name_the_first_the_last_and_the_places_of_the_method():
    text = plots.describe_published(published("split-cifar100"))
    assert "12 published results" in text
    assert "from SGP with 75.99 %" in text
    assert "down to OWM with 50.94 %" in text
    assert "NESS stands at place 6 and 7." in text


def run_with(accuracy, transfer):
    run = Run.new({"method": "ness"}, {}, {}, ["first", "second"])
    run.accuracy = np.array([[accuracy - transfer, np.nan], [accuracy, accuracy]])
    return run


def test_our_seeds_stand_beside_a_published_line():
    line = published("split-cifar100")[0]
    runs = [run_with(71.0, 0.5), run_with(72.0, -0.5)]
    accuracy, transfer = plots.plot_beside_published(runs, line).axes
    theirs, ours = (container[0].get_xdata()[0] for container in accuracy.containers)
    assert (theirs, ours) == (72.46, 71.5)
    assert [list(line.get_xdata()) for line in accuracy.get_lines() if line.get_marker() == "|"] == [[71.0, 72.0]]
    assert [container[0].get_xdata()[0] for container in transfer.containers] == [0.03, 0.0]
    text = plots.describe_beside_published(runs, line)
    assert "our 2 seeds" in text
    assert "ACC 71.50 ± 0.71 against 72.46 ± 0.26, 3.7 published deviations below" in text
    assert "BWT 0.00 ± 0.71 against 0.03 ± 0.40, 0.1 published deviations below." in text


def test_one_seed_beside_a_line_without_a_deviation():
    (line,) = [line for line in published("split-cifar100") if line.label == "HAT"]
    plots.plot_beside_published([run_with(71.0, 0.5)], line)
    text = plots.describe_beside_published([run_with(71.0, 0.5)], line)
    assert "our one seed" in text
    assert text.endswith("BWT 0.50 against 0.00 ± 0.00.")


def test_no_run_beside_a_published_line_is_an_error():
    for function in (plots.plot_beside_published, plots.describe_beside_published):
        with pytest.raises(NesskitError, match="no run to put beside"):
            function([], published("split-cifar100")[0])


def test_nothing_published_is_an_error():
    for function in (plots.plot_published, plots.describe_published):
        with pytest.raises(NesskitError, match="no published result"):
            function(published("split-digits"))
