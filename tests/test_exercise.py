"""An exercise that is not solved yet is said; everything else that goes wrong still goes wrong."""

import pytest

from nesskit import Exercise


def test_an_answer_that_passes_is_silent(capsys):
    with Exercise("01.1") as exercise:
        assert not exercise.answered
    assert exercise.answered
    assert capsys.readouterr().out == ""


def test_a_missing_answer_is_one_sentence_and_the_cell_goes_on(capsys):
    with Exercise("03.2") as exercise:
        raise NotImplementedError
    assert not exercise.answered
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Exercise 03.2 is not solved yet: ")


@pytest.mark.parametrize("error", [AssertionError("twice two is four"), ValueError("oh"), KeyboardInterrupt()])
def test_a_wrong_answer_is_not_excused(error):
    with pytest.raises(type(error)), Exercise("01.1") as exercise:
        raise error
    assert not exercise.answered
