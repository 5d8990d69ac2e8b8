"""Figures: the numbers and colours that stand in them."""

import colorsys
import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from nesskit import plots
from nesskit.errors import NesskitError
from nesskit.runs.record import EpochRecord, Run
from nesskit.settings import METHOD_SETTINGS
from nesskit.spectra.profile import LayerProfile

nan = np.nan
MATRIX = np.array([[90.0, nan, nan], [91.5, 80.0, nan], [60.25, 80.0, 70.0]])
JOINT = np.array([[nan, nan, nan], [nan, nan, nan], [96.0, 97.0, 98.0]])


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    plt.close("all")


def make_run(accuracy, method="ness", seed=0):
    count = len(accuracy)
    run = Run.new({"method": method, "seed": seed}, {}, {}, [f"task number {t}" for t in range(count)])
    run.accuracy, run.status = np.asarray(accuracy, dtype=float), "finished"
    return run


def cells(ax):
    """(row, column) → (colour, text, colour of the text)."""
    texts = {t.get_position(): t for t in ax.texts}
    found = {}
    for patch in ax.patches:
        x, y = patch.get_x() + patch.get_width() / 2, patch.get_y() + patch.get_height() / 2
        text = texts[round(x), round(y)]
        found[round(y), round(x)] = patch.get_facecolor()[:3], text.get_text(), to_rgb(text.get_color())
    return found


def hue(colour):
    return 360 * colorsys.rgb_to_hsv(*colour)[0]


def saturation(colour):
    return colorsys.rgb_to_hsv(*colour)[1]


# --- the accuracy matrix


def test_every_measured_cell_shows_its_number_and_the_others_are_empty():
    drawn = cells(plots.plot_accuracy_matrix(MATRIX))
    assert {place: text for place, (_, text, _) in drawn.items()} == {
        (0, 0): "90.0",
        (1, 0): "91.5",
        (1, 1): "80.0",
        (2, 0): "60.2",
        (2, 1): "80.0",
        (2, 2): "70.0",
    }


def test_grey_when_learned_blue_where_gained_orange_where_lost_pale_grey_where_unchanged():
    drawn = {place: colour for place, (colour, _, _) in cells(plots.plot_accuracy_matrix(MATRIX)).items()}
    assert all(saturation(drawn[t, t]) < 0.15 for t in range(3))
    assert 190 < hue(drawn[1, 0]) < 230
    assert 15 < hue(drawn[2, 0]) < 45
    assert saturation(drawn[2, 1]) < 0.1
    assert min(drawn[2, 1]) > max(drawn[2, 2]) + 0.1


# What eyes see that lack a kind of cone, in linear light (Machado, Oliveira and Fernandes 2009, severity 1).
WITHOUT_GREEN_CONES = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
WITHOUT_RED_CONES = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])  # of linear sRGB


def seen(colour, eye):
    """CIE L*, a*, b* (white D65) of an sRGB colour, as an eye with these cones sees it."""
    channels = np.asarray(colour)
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    x, y, z = XYZ @ np.clip(np.asarray(eye) @ linear, 0, 1) / XYZ.sum(axis=1)
    f = [np.cbrt(t) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29 for t in (x, y, z)]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def difference(one, other, eye):
    """ΔE (CIE 1976): about 2.3 is just noticeable."""
    return np.linalg.norm(seen(one, eye) - seen(other, eye))


@pytest.mark.parametrize("eye", [np.eye(3), WITHOUT_GREEN_CONES, WITHOUT_RED_CONES], ids=["all", "no green", "no red"])
def test_gained_and_lost_differ_for_every_eye(eye):
    for points, least in ((1, 10), (5, 25), (25, 60)):
        colours = plots.cell_colours([[50.0, nan, nan], [50.0 + points, 50.0, nan], [50.0 - points, 50.0, 50.0]])
        gained, lost, unchanged, learned = colours[1, 0], colours[2, 0], colours[2, 1], colours[2, 2]
        assert difference(gained, lost, eye) > least
        for colour in (gained, lost):
            assert difference(colour, learned, eye) > 10
            assert difference(colour, unchanged, eye) > 5


def test_green_and_red_would_look_alike_without_green_cones():
    """What the test above would find: a green and a red cell of five points' depth."""
    green, red = (0.703, 0.889, 0.841), (0.919, 0.753, 0.721)
    assert difference(green, red, np.eye(3)) > 30
    assert difference(green, red, WITHOUT_GREEN_CONES) < 15


def test_the_more_a_task_changed_the_deeper_its_colour_up_to_25_points():
    def depth(points):
        return saturation(plots.cell_colours([[50.0, nan], [50.0 + points, 50.0]])[1, 0])

    for sign in (1, -1):
        depths = [depth(sign * points) for points in (0.2, 1, 5, 10, 25)]
        assert depths == sorted(depths)
        assert depths[0] < 0.2 < 0.6 < depths[-1]
        assert depth(sign * 40) == pytest.approx(depths[-1])


@pytest.mark.parametrize("points", [-60, -20, -15, -12, -10, -8, -5, -1, 0, 1, 5, 20, 60])
def test_numbers_are_readable_on_their_colour(points):
    drawn = cells(plots.plot_accuracy_matrix([[50.0, nan], [min(50.0 + points, 100.0), 50.0]]))
    assert all(plots.contrast(ink, colour) >= 4.5 for colour, _, ink in drawn.values())


def test_contrast_of_known_colours():
    assert plots.contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert plots.contrast(to_rgb("#777777"), (1, 1, 1)) == pytest.approx(4.48, abs=0.01)


def test_joint_training_is_drawn_in_grey():
    drawn = cells_of_joint(plots.plot_accuracy_matrix(JOINT))
    assert [text for _, text in drawn] == ["96.0", "97.0", "98.0"]
    assert all(saturation(colour) < 0.1 for colour, _ in drawn)


def cells_of_joint(ax):
    return [(patch.get_facecolor()[:3], text.get_text()) for patch, text in zip(ax.patches, ax.texts, strict=False)]


def test_a_run_that_was_stopped_shows_the_rows_it_has():
    partial = np.where(np.arange(3)[:, None] < 2, MATRIX, nan)
    ax = plots.plot_accuracy_matrix(make_run(partial))
    assert set(cells(ax)) == {(0, 0), (1, 0), (1, 1)}
    assert ax.get_title(loc="left") == "NESS\nACC 85.8 %, BWT +1.5"


def test_nothing_measured_is_an_empty_matrix():
    ax = plots.plot_accuracy_matrix(np.full((4, 4), nan))
    assert not ax.patches
    assert "nothing measured" in ax.get_title(loc="left")


@pytest.mark.parametrize("tasks", [1, 2, 5, 10, 20])
def test_numbers_fit_into_their_cells(tasks):
    matrix = np.where(np.tri(tasks, dtype=bool), 100.0, nan)
    ax = plots.plot_accuracy_matrix(matrix)
    ax.figure.canvas.draw()
    for patch, text in zip(ax.patches, ax.texts, strict=True):
        assert text.get_window_extent().width < patch.get_window_extent().width
        assert text.get_fontsize() >= 6


def test_axes_say_what_rows_and_columns_are():
    ax = plots.plot_accuracy_matrix(MATRIX, tasks=["MNIST", "$x$ <b>", "SVHN"], title="a $title")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("task", "after learning task")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["1", "2", "3"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["MNIST", r"\$x\$ <b>", "SVHN"]  # no formula
    ax.figure.canvas.draw()


def test_what_is_no_accuracy_matrix_is_refused():
    with pytest.raises(NesskitError, match="square"):
        plots.plot_accuracy_matrix([[1.0, 2.0]])


def test_the_words_for_a_matrix_hold_its_measures_and_the_task_that_lost_most():
    text = plots.describe_accuracy_matrix(MATRIX, ["a", "b", "c"])
    assert "ACC 70.1 %, BWT −14.9 points" in text
    assert "task 1 (a): 90.0 % when it was learned, 60.2 % at the end" in text
    assert "together" in plots.describe_accuracy_matrix(JOINT)
    assert "ACC 97.0 %" in plots.describe_accuracy_matrix(JOINT)
    assert "No task lost" in plots.describe_accuracy_matrix([[50.0, nan], [51.0, 50.0]])
    assert "first 1 of 2" in plots.describe_accuracy_matrix([[50.0, nan], [nan, nan]])
    assert "nothing" in plots.describe_accuracy_matrix(np.full((2, 2), nan))


# --- accuracy over time


def test_lines_are_means_over_seeds_of_the_mean_over_tasks_so_far():
    other = MATRIX - 4
    ax = plots.plot_accuracy_over_time({"finetune": [make_run(MATRIX), make_run(other, seed=1)], "joint": JOINT})
    line, joint = ax.get_lines()
    so_far = np.array([90.0, (91.5 + 80) / 2, (60.25 + 80 + 70) / 3])
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 3])
    np.testing.assert_allclose(line.get_ydata(), so_far - 2)
    np.testing.assert_allclose(joint.get_ydata(), [97, 97])
    assert joint.get_linestyle() == "--"
    (band,) = ax.collections
    vertices = band.get_paths()[0].vertices
    spread = np.std([0, 4], ddof=1)
    assert vertices[:, 1].max() == pytest.approx(so_far[0] - 2 + spread)


def test_one_seed_has_no_band():
    assert not plots.plot_accuracy_over_time({"ness": MATRIX}).collections


def test_lines_are_named_at_their_ends_and_names_do_not_collide():
    close = {"ness": MATRIX, "gpm": MATRIX + 0.01, "finetune": MATRIX - 20}
    ax = plots.plot_accuracy_over_time(close)
    ax.figure.canvas.draw()
    assert ax.get_legend() is None
    assert {t.get_text() for t in ax.texts} == {"NESS", "GPM", "fine-tuning"}
    boxes = sorted((t.get_window_extent() for t in ax.texts), key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in itertools.pairwise(boxes))


def test_many_lines_and_lines_that_end_early_get_a_legend():
    many = {label: MATRIX + 0.01 * k for k, label in enumerate(plots.METHOD_LOOKS)}
    assert plots.plot_accuracy_over_time(many).get_legend() is not None
    partial = np.where(np.arange(3)[:, None] < 2, MATRIX, nan)
    assert plots.plot_accuracy_over_time({"ness": MATRIX, "gpm": partial}).get_legend() is not None


def test_a_mean_over_seeds_needs_all_of_them():
    partial = np.where(np.arange(3)[:, None] < 2, MATRIX, nan)
    (line,) = plots.plot_accuracy_over_time({"ness": [MATRIX, partial]}).get_lines()
    assert np.isfinite(line.get_ydata()).tolist() == [True, True, False]


def test_seeds_with_different_numbers_of_tasks_are_refused():
    with pytest.raises(NesskitError, match="same number of tasks"):
        plots.plot_accuracy_over_time({"ness": [MATRIX, MATRIX[:2, :2]]})


@pytest.mark.parametrize(
    ("given", "expected"), [([0, 1, 50], [-4.5, 5.5, 50]), ([3, 3, 3], [-7, 3, 13]), ([20, 0], [20, 0]), ([5], [5])]
)
def test_spread_apart(given, expected):
    np.testing.assert_allclose(plots.spread_apart(given, 10), expected)


# --- the other figures


def test_final_accuracy_shows_one_dot_a_task_and_method():
    ax = plots.plot_final_accuracy({"finetune": [MATRIX, MATRIX - 4], "joint": JOINT})
    points = [container.lines[0] for container in ax.containers]
    np.testing.assert_allclose(points[0].get_ydata(), MATRIX[-1] - 2)
    np.testing.assert_allclose(points[1].get_ydata(), JOINT[-1])
    assert np.abs(points[0].get_xdata() - np.arange(3)).max() < 0.5
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["fine-tuning", "joint training"]


def test_task_curves_begin_where_each_task_was_learned():
    axes = plots.plot_task_curves([MATRIX, MATRIX - 4])
    assert [ax.get_title(loc="left") for ax in axes] == ["task 1", "task 2", "task 3"]
    for task, ax in enumerate(axes):
        level, curve = ax.get_lines()
        np.testing.assert_allclose(curve.get_xdata(), np.arange(task, 3) + 1)
        np.testing.assert_allclose(curve.get_ydata(), MATRIX[task:, task] - 2)
        assert level.get_ydata()[0] == MATRIX[task, task] - 2
    assert len({ax.get_ylim() for ax in axes}) == 1
    low, high = axes[0].get_ylim()
    assert low < 60.25 - 4
    assert high > 91.5


def test_the_words_of_task_curves_name_what_gained_and_what_lost():
    matrix = np.array([[90.0, nan, nan], [91.5, 80.0, nan], [60.25, 85.0, 70.0]])
    text = plots.describe_task_curves([matrix])
    assert "each of 3 tasks" in text
    assert "Task 2 gained most: from 80.0 % to 85.0 %." in text
    assert "Most was lost on task 1: 90.0 % when it was learned, 60.2 % at the end." in text
    assert "gained" not in plots.describe_task_curves(MATRIX)  # from 80 to 80


def run_of(epochs):
    run = make_run(MATRIX)
    run.history = [EpochRecord(t, e, 1.0, None, None, 0.1) for t, count in enumerate(epochs) for e in range(count)]
    return run


def test_epochs_show_every_run_and_their_mean():
    runs = [run_of([3, 5, 2]), run_of([5, 5, 4])]
    ax = plots.plot_epochs(runs)
    np.testing.assert_allclose([line.get_ydata() for line in ax.get_lines()], [[3, 5, 2], [5, 5, 4]])
    np.testing.assert_allclose([segment[0][1] for segment in ax.collections[0].get_segments()], [4, 5, 3])
    text = plots.describe_epochs(runs)
    assert "in 2 runs: from 2 to 5, 4 on average; fewest in task 3 with 3, most in task 2 with 5." in text


def test_epochs_of_nothing_or_of_unlike_runs_are_an_error():
    for runs in ([], [make_run(MATRIX), make_run(MATRIX[:2, :2])]):
        for function in (plots.plot_epochs, plots.describe_epochs):
            with pytest.raises(NesskitError, match="the same number of tasks"):
                function(runs)


def history(tasks=2, epochs=3, valid=None):
    return [
        EpochRecord(t, e, 1.0 / (e + 1) + t, valid, None, 0.1 / (t + 1)) for t in range(tasks) for e in range(epochs)
    ]


def test_loss_curves_break_between_tasks():
    ax = plots.plot_loss(history())
    first, second = (line for line in ax.get_lines() if len(line.get_xdata()) == 3)
    np.testing.assert_allclose(first.get_ydata(), [1, 1 / 2, 1 / 3])
    np.testing.assert_allclose(second.get_xdata(), [4, 5, 6])
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2"]
    assert ax.get_legend() is None


def test_validation_loss_and_learning_rate():
    assert [t.get_text() for t in plots.plot_loss(history(valid=0.5)).get_legend().get_texts()] == [
        "training",
        "validation",
    ]
    rates = np.concatenate([line.get_ydata() for line in plots.plot_learning_rate(history()).get_lines()[:2]])
    np.testing.assert_allclose(rates, [0.1] * 3 + [0.05] * 3)


def test_epochs_of_joint_training_belong_to_all_tasks():
    records = [EpochRecord(4, e, 1.0, None, None, 0.1) for e in range(2)]
    assert [t.get_text() for t in plots.plot_loss(records).get_xticklabels()] == ["all"]


def profile(layer, task, rank, dimension=4):
    vector = np.ones(dimension)
    return LayerProfile(layer, task, rank, 10, vector, vector, vector)


def test_free_ranks_stand_in_their_cells_and_deepen_with_their_share():
    ax = plots.plot_free_rank([profile("a", 1, 4), profile("b", 1, 4, 8), profile("a", 2, 0), profile("b", 2, 1, 8)])
    drawn = cells(ax)
    assert {place: text for place, (_, text, _) in drawn.items()} == {
        (0, 0): "4",
        (1, 0): "4",
        (0, 1): "0",
        (1, 1): "1",
    }
    assert saturation(drawn[0, 0][0]) > saturation(drawn[1, 0][0]) > saturation(drawn[1, 1][0])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a, d = 4", "b, d = 8"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["2", "3"]


# --- the style


def test_no_figure_changes_the_settings_of_matplotlib():
    before = dict(mpl.rcParams)
    plots.plot_accuracy_matrix(MATRIX)
    plots.plot_accuracy_over_time({"ness": MATRIX})
    with plots.style():
        assert mpl.rcParams["axes.spines.top"] is False
    assert dict(mpl.rcParams) == before


def test_figures_go_where_they_are_told():
    _, axes = plt.subplots(1, 2)
    assert plots.plot_accuracy_matrix(MATRIX, ax=axes[0]) is axes[0]
    assert plots.plot_final_accuracy({"ness": MATRIX}, axes[1]) is axes[1]


def test_methods_differ_without_colour_and_keep_their_look():
    looks = plots.METHOD_LOOKS
    assert looks.keys() == METHOD_SETTINGS.keys()
    assert len({(look.colour, look.line) for look in looks.values()}) == len(looks)
    assert len({look.marker for look in looks.values()}) == len(looks)
    chosen = plots.method_looks(["ness (eps=0.01)", "finetune", "ness (eps=0.02)", "ness (eps=0.03)"])
    assert chosen["finetune"] == looks["finetune"]
    assert chosen["ness (eps=0.01)"] == looks["ness"]
    assert {look.colour for label, look in chosen.items() if label != "finetune"} == {looks["ness"].colour}
    assert len({(look.colour, look.line) for look in chosen.values()}) == 4


@pytest.mark.parametrize(
    ("label", "name"),
    [("ness", "NESS"), ("ness (eps=0.1)", "NESS (eps=0.1)"), ("a-gem", "A-GEM"), ("my method", "my method")],
)
def test_display_names(label, name):
    assert plots.display_name(label) == name
