"""Figures of methods beside each other: the numbers that stand in them."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from nesskit.errors import NesskitError
from nesskit.plots import plot_costs, plot_tradeoff
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
