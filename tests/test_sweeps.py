"""Sweeps as figures: what is drawn is what was measured, the best is marked, and the command line writes it."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.image import imread

from nesskit.cli import main
from nesskit.errors import NesskitError
from nesskit.plots.sweeps import describe_sweep, plot_sweep, save_sweep
from nesskit.runs.comparison import Estimate
from nesskit.runs.record import Run
from nesskit.runs.sweep import Sweep, SweepPoint

nan = np.nan
ACCURACIES = {"nuclear:0.01": [80.0, 82.0], "nuclear:0.001": [90.0, 94.0], "nuclear:0.1": [70.0, 70.0]}


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def run_with(final):
    """A run of two tasks whose validation accuracy is ``final`` on both at the end; task 1 began at 95 %."""
    run = Run.new({}, {}, {}, ["a", "b"])
    run.valid_accuracy = np.array([[95.0, nan], [final, final]])
    return run


def sweep_of(accuracies):
    return Sweep.of({rule: [run_with(final) for final in finals] for rule, finals in accuracies.items()})


def part(ax, gid):
    return next(artist for artist in ax.get_children() if artist.get_gid() == gid)


def test_lines_are_means_over_seeds_by_rising_value_on_a_log_axis():
    accuracy, transfer = plot_sweep(sweep_of(ACCURACIES))
    for ax, expected in ((accuracy, [92.0, 81.0, 70.0]), (transfer, [-3.0, -14.0, -25.0])):
        line = part(ax, "sweep nuclear")
        np.testing.assert_allclose(line.get_xdata(), [0.001, 0.01, 0.1])
        np.testing.assert_allclose(line.get_ydata(), expected)
        assert ax.get_xscale() == "log"
    assert accuracy.get_ylabel() == "validation ACC (%)"
    assert transfer.get_ylabel() == "validation BWT (%)"
    assert "nuclear" in transfer.get_xlabel()


def test_bands_are_one_standard_deviation_and_missing_for_a_single_seed():
    (vertices,) = [path.vertices for path in part(plot_sweep(sweep_of(ACCURACIES))[0], "band nuclear").get_paths()]
    std = np.std([90, 94], ddof=1)
    heights = vertices[vertices[:, 0] == 0.001, 1]
    assert (heights.min(), heights.max()) == (pytest.approx(92 - std), pytest.approx(92 + std))
    single = plot_sweep(sweep_of({"nuclear:0.01": [80.0], "nuclear:0.1": [70.0]}))
    assert not [artist for ax in single for artist in ax.get_children() if str(artist.get_gid()).startswith("band")]


def test_the_best_is_marked_on_both_axes_and_named():
    accuracy, transfer = plot_sweep(sweep_of(ACCURACIES))
    assert [part(ax, "best").get_xydata().tolist() for ax in (accuracy, transfer)] == [[[0.001, 92.0]], [[0.001, -3.0]]]
    assert accuracy.get_title(loc="left") == "best: nuclear:0.001, ACC 92.00 ± 2.83 %, BWT −3.0"
    assert "nuclear:0.1: ACC 70.00" in describe_sweep(sweep_of(ACCURACIES))


def test_every_rule_has_its_line_and_a_value_of_zero_a_linear_axis():
    axes = plot_sweep(sweep_of({"rank:0": [80.0], "rank:10": [85.0], "frobenius:0.01": [83.0]}))
    np.testing.assert_allclose(part(axes[0], "sweep rank").get_xdata(), [0, 10])
    np.testing.assert_allclose(part(axes[0], "sweep frobenius").get_xdata(), [0.01])
    assert axes[0].get_xscale() == "linear"
    assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["rank", "frobenius"]


def test_a_single_task_has_no_transfer_and_is_drawn_all_the_same():
    point = SweepPoint("soft:0.01:frobenius", Estimate.of([90.0]), Estimate.of([nan]))
    axes = plot_sweep(Sweep((point,)))
    axes[0].figure.canvas.draw()
    assert point.value == 0.01
    assert axes[0].get_title(loc="left") == "best: soft:0.01:frobenius, ACC 90.00 %"


def test_nothing_to_draw_and_nowhere_to_write_are_said_in_words(tmp_path):
    with pytest.raises(NesskitError, match="a sweep needs one filter at least"):
        plot_sweep(Sweep(()))
    (tmp_path / "file").write_text("")
    with pytest.raises(NesskitError, match="cannot write"):
        save_sweep(sweep_of(ACCURACIES), tmp_path / "file" / "plot.png")


def test_the_style_does_not_leak_and_no_figure_stays_open(tmp_path):
    before = mpl.rcParams.copy()
    picture = imread(save_sweep(sweep_of(ACCURACIES), tmp_path / "new" / "plot.png"))
    assert picture.shape[0] > 500
    assert len(np.unique(picture.reshape(-1, picture.shape[-1]), axis=0)) > 20
    assert mpl.rcParams == before
    assert plt.get_fignums() == []


def test_the_command_writes_the_plot_beside_the_table(tmp_path, capsys):
    main(["sweep", "split-digits", "--grid", "0.01,0.3", "--seeds", "1", "--runs", str(tmp_path)])
    plot = tmp_path / "split-digits" / "sweep-frobenius.png"
    assert plot.with_suffix(".csv").exists()
    assert imread(plot).shape[0] > 500
    assert f"plot:  {plot}" in capsys.readouterr().out


def test_the_table_is_never_overwritten_by_the_plot(tmp_path):
    output = tmp_path / "sweep.png"
    with pytest.raises(SystemExit) as caught:
        main(["sweep", "split-digits", "--grid", "0.01,0.3", "--output", str(output), "--runs", str(tmp_path)])
    assert "--output is the CSV" in str(caught.value.code)
    assert not (tmp_path / "split-digits").exists()
