import numpy as np
import pytest

from nesskit.errors import NesskitError
from nesskit.runs import metrics

NAN = float("nan")
THREE = [
    [80, NAN, NAN],
    [84, 90, NAN],
    [60, 85, 95],
]
INTERRUPTED = [  # after the second of three tasks
    [80, NAN, NAN],
    [84, 90, NAN],
    [NAN, NAN, NAN],
]
JOINT = [[NAN] * 3, [NAN] * 3, [60, 85, 95]]
NOT_STARTED = [[NAN] * 3] * 3


@pytest.mark.parametrize(
    ("accuracy", "average", "backward", "forgetting", "learning"),
    [
        (THREE, 80, (-20 - 5) / 2, (24 + 5) / 2, (80 + 90 + 95) / 3),
        (INTERRUPTED, 87, 4, -4, 85),
        (JOINT, 80, NAN, NAN, NAN),
        ([[70]], 70, NAN, NAN, 70),
        (NOT_STARTED, NAN, NAN, NAN, NAN),
        (np.empty((0, 0)), NAN, NAN, NAN, NAN),
    ],
    ids=["three tasks", "interrupted", "joint", "one task", "not started", "no tasks"],
)
def test_summary_of_a_hand_worked_matrix(accuracy, average, backward, forgetting, learning):
    expected = {
        "average_accuracy": average,
        "backward_transfer": backward,
        "forgetting": forgetting,
        "learning_accuracy": learning,
    }
    assert metrics.summary(accuracy) == pytest.approx(expected, nan_ok=True)
    assert {name: getattr(metrics, name)(accuracy) for name in expected} == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        (metrics.final_accuracy, [60, 85, 95]),
        (metrics.backward_transfer_per_task, [-20, -5]),
        (metrics.forgetting_per_task, [24, 5]),
        (metrics.learning_accuracy_per_task, [80, 90, 95]),
    ],
)
def test_measures_per_task_of_a_hand_worked_matrix(measure, expected):
    assert measure(THREE).tolist() == expected


def test_measures_per_task_of_joint_training_compare_nothing():
    assert metrics.final_accuracy(JOINT).tolist() == [60, 85, 95]
    for measure in (metrics.backward_transfer_per_task, metrics.forgetting_per_task):
        assert np.isnan(measure(JOINT)).tolist() == [True, True]


def test_measures_of_nothing_learned_are_empty():
    for measure in (metrics.final_accuracy, metrics.backward_transfer_per_task, metrics.forgetting_per_task):
        assert len(measure(NOT_STARTED)) == 0


def test_measures_leave_the_matrix_alone():
    matrix = np.array(THREE, dtype=float)
    metrics.learning_accuracy_per_task(matrix)[:] = 0
    metrics.final_accuracy(matrix)[:] = 0
    np.testing.assert_array_equal(matrix, THREE)


def test_transfer_compares_with_networks_trained_alone():
    alone = [82, 88, 92]
    assert metrics.transfer_per_task(THREE, alone).tolist() == [-2, 2, 3]
    assert metrics.transfer(THREE, alone) == 1
    assert metrics.transfer_per_task(INTERRUPTED, alone).tolist() == [-2, 2]


@pytest.mark.parametrize("alone", [[82, 88], [[82, 88, 92]], 82])
def test_transfer_needs_one_reference_a_task(alone):
    with pytest.raises(NesskitError, match="each of 3 tasks"):
        metrics.transfer(THREE, alone)


@pytest.mark.parametrize("shape", [(2, 3), (3,), (2, 2, 2)])
def test_a_matrix_that_is_not_square_is_an_error(shape):
    with pytest.raises(NesskitError, match="must be square"):
        metrics.average_accuracy(np.zeros(shape))
