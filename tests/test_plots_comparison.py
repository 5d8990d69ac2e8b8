"""Figures of methods beside each other: the numbers that stand in them."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from nesskit.errors import NesskitError
from nesskit.plots import method_looks, plot_costs, plot_private_numbers, plot_tradeoff
from nesskit.runs.record import Run

nan = np.nan
ONE = np.array([[90.0, nan], [80.0, 70.0]])  # ACC 75, BWT -10
OTHER = np.array([[90.0, nan], [88.0, 70.0]])  # ACC 79, BWT -2
JOINT = np.array([[nan, nan], [96.0, 98.0]])


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def run_of(method, seconds, memory):
    run = Run.new({"method": method, "seed": 0}, {}, {}, ["one", "two"])
    run.accuracy, run.status, run.seconds, run.memory = ONE, "finished", seconds, memory
    return run


def test_a_dot_is_a_mean_over_seeds_and_its_bars_are_standard_deviations():
    ax = plot_tradeoff({"ness": [ONE, OTHER], "gpm": [ONE], "joint": [JOINT]})
    dot, spread_x, spread_y = ax.containers[0].lines[0], *ax.containers[0].lines[2]
    assert dot.get_xydata().tolist() == [[-6, 77]]
    std = np.std([-10, -2], ddof=1)
    np.testing.assert_allclose(spread_x.get_segments()[0][:, 0], [-6 - std, -6 + std])
    np.testing.assert_allclose(spread_y.get_segments()[0][:, 1], [77 - np.std([75, 79], ddof=1), 77 + 2 * 2**0.5])
    assert ax.containers[1].lines[0].get_xydata().tolist() == [[-10, 75]]
    assert [line.get_ydata()[0] for line in ax.lines if line.get_gid() == "joint"] == [97]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["joint training", "NESS", "GPM"]


def test_costs_are_means_over_runs():
    runs = {
        "ness": [run_of("ness", 2.0, {"moments": 1500}), run_of("ness", 4.0, {"moments": 1500, "old data": 1000})],
        "finetune": [run_of("finetune", 1.0, {})],
    }
    seconds, kept = plot_costs(runs)
    assert [bar.get_width() for bar in seconds.patches] == [3, 1]
    assert [bar.get_width() for bar in kept.patches] == [2000, 0]
    assert [text.get_text() for text in kept.texts] == ["2.0 kB", "nothing"]
    assert [tick.get_text() for tick in seconds.get_yticklabels()] == ["NESS", "fine-tuning"]


def test_costs_of_no_run_are_refused():
    with pytest.raises(NesskitError, match="no run whose costs"):
        plot_costs({})


def lines_of(ax):
    """{label: (line, segments of its bars)}."""
    return {bars.get_label(): (bars.lines[0], bars.lines[2][0].get_segments()) for bars in ax.containers}


def test_accuracy_over_private_numbers_is_a_mean_over_seeds_from_nothing_on():
    ax = plot_private_numbers({"scale": {2048: [90.0], 0: [80.0, 86.0], 32: [88.0, 88.0]}, "network": {65: [50.0]}})
    line, bars = lines_of(ax)["scale"]
    assert line.get_xydata().tolist() == [[0, 83], [32, 88], [2048, 90]]
    std = np.std([80, 86], ddof=1)
    np.testing.assert_allclose([segment[:, 1] for segment in bars], [[83 - std, 83 + std], [88, 88], [90, 90]])
    assert ax.get_xlim()[0] < 0 < 10 < ax.get_xlim()[1]  # zero has a place beside powers of ten
    places = ax.transData.transform([(number, 0) for number in (0, 10, 100, 1000)])[:, 0]
    assert places[1] - places[0] < places[2] - places[1]
    np.testing.assert_allclose(places[3] - places[2], places[2] - places[1])
    other = lines_of(ax)["network"][0]
    assert (other.get_color(), other.get_marker()) != (line.get_color(), line.get_marker())


def test_methods_keep_their_looks_over_private_numbers():
    ax = plot_private_numbers({"trgp": {100: [70.0]}, "adapter": {100: [60.0]}, "ness": {0: [71.0]}})
    lines = {label: line for label, (line, _) in lines_of(ax).items()}
    assert list(lines) == ["TRGP", "adapter", "NESS"]
    for name, label in (("trgp", "TRGP"), ("ness", "NESS")):
        look = method_looks([name])[name]
        assert (lines[label].get_color(), lines[label].get_marker()) == (look.colour, look.marker)


@pytest.mark.parametrize("ways", [{}, {"scale": {}}, {"scale": {0: [80.0], 4: []}}])
def test_a_way_without_accuracies_is_refused(ways):
    with pytest.raises(NesskitError, match="no accuracy to draw"):
        plot_private_numbers(ways)
