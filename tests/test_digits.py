"""The streams on scikit-learn's digits, against scikit-learn itself."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from nesskit import Examples, Task, load_stream
from nesskit.errors import DataError, UnknownNameError
from nesskit.streams.base import Normalisation, split_validation

STREAMS = {"permuted-digits": (10, 10), "split-digits": (5, 2), "rotated-digits": (10, 10)}


@pytest.mark.parametrize(("name", "size"), STREAMS.items())
def test_a_stream_has_the_tasks_and_classes_it_promises(name, size):
    stream = load_stream(name, seed=3)
    assert (len(stream), len(stream[0].classes)) == size
    for task in stream:
        assert set(task.train.y.tolist()) == set(range(size[1]))
        assert task.train.x.min() >= 0
        assert task.train.x.max() <= 1


def test_the_first_permuted_task_shows_the_digits_themselves():
    task = load_stream("permuted-digits", seed=0)[0]
    ours = np.concatenate([task.train.x, task.test.x])
    assert len(task.train.y) == 1300
    assert len(task.test.y) == 497
    np.testing.assert_allclose(sorted(ours.sum(1)), sorted((load_digits().data / 16).sum(1)), rtol=1e-6)


def test_later_permuted_tasks_show_the_same_digits_with_pixels_moved():
    first, second = load_stream("permuted-digits", seed=0)[:2]
    assert torch.equal(first.train.y, second.train.y)
    assert not torch.equal(first.train.x, second.train.x)
    assert torch.equal(first.train.x.sort(dim=1).values, second.train.x.sort(dim=1).values)


def test_three_pixels_are_zero_in_every_image():
    task = load_stream("permuted-digits", seed=0)[0]
    assert int((torch.cat([task.train.x, task.test.x]).amax(0) == 0).sum()) == 3


def test_split_digits_hold_each_digit_once():
    stream = load_stream("split-digits", seed=0)
    assert [task.classes for task in stream] == [("0", "1"), ("2", "3"), ("4", "5"), ("6", "7"), ("8", "9")]
    assert sum(len(task.train.y) for task in stream) == 1300
    assert sum(len(task.test.y) for task in stream) == 497


def test_the_sixth_rotation_is_a_quarter_turn():
    stream = load_stream("rotated-digits", seed=0)
    upright, turned = (stream[t].train.x.view(-1, 8, 8) for t in (0, 5))
    assert stream[5].name == "90 degrees"
    torch.testing.assert_close(turned, upright.rot90(1, dims=(1, 2)), atol=1e-5, rtol=0)


def test_a_seed_decides_everything():
    same, again, other = (load_stream("permuted-digits", seed=s)[4].train.x for s in (1, 1, 2))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_validation_is_taken_from_training_and_not_from_test():
    plain, shared = (load_stream("permuted-digits", seed=0, validation_share=share)[2] for share in (0, 0.2))
    assert len(shared.valid.y) == 260
    assert torch.equal(torch.cat([shared.train.x, shared.valid.x]), plain.train.x)
    assert torch.equal(shared.test.x, plain.test.x)


def test_checksums_name_the_data():
    (checksum,) = load_stream("split-digits").checksums.values()
    assert len(checksum) == 64


def test_a_misspelt_stream_is_told_the_nearest_name():
    with pytest.raises(UnknownNameError, match="did you mean 'split-digits'"):
        load_stream("split-digit")


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), "there is no sample"),
        (torch.zeros(2, 4), torch.tensor([0, 2]), r"labels run from 0 to 2, but 2 classes allow 0 … 1"),
        (torch.zeros(2, 4), torch.tensor([0, -1]), "labels run from -1 to 0"),
        (torch.full((2, 4), torch.nan), torch.tensor([0, 1]), "NaN or infinite"),
        (torch.full((2, 4), torch.inf), torch.tensor([0, 1]), "NaN or infinite"),
        (torch.zeros(3, 4), torch.tensor([0, 1]), "3 inputs but 2 labels"),
        (torch.zeros(2, 4), torch.tensor([0.0, 1.0]), "labels must be int64"),
    ],
)
def test_a_task_refuses_what_cannot_be_learned_from(x, y, message):
    good = Examples(torch.zeros(2, 4), torch.tensor([0, 1]))
    with pytest.raises(DataError, match=message) as caught:
        Task("birds", ("a", "b"), Examples(x, y), good, good)
    assert "task 'birds'" in str(caught.value)


def test_normalisation_of_a_pixel_by_hand():
    x = torch.tensor([[[[255, 0]], [[51, 51]]]], dtype=torch.uint8)  # one image of two channels, 1 × 2 pixels
    examples = Examples(x, torch.tensor([0]))
    task = Task("t", ("a",), examples, examples, examples, Normalisation((0.5, 0.1), (0.25, 0.1)))
    torch.testing.assert_close(task.normalise(x), torch.tensor([[[[2.0, -2.0]], [[1.0, 1.0]]]]))


def test_validation_split_keeps_every_example():
    examples = Examples(torch.arange(10.0).view(10, 1), torch.arange(10))
    train, valid = split_validation(examples, 0.3)
    assert train.y.tolist() == list(range(7))
    assert valid.y.tolist() == [7, 8, 9]
