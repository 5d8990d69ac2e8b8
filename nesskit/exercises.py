"""Exercises in a notebook, some of them not solved yet."""

from __future__ import annotations

from types import TracebackType


class Exercise:
    """The tests of an exercise that a student sees: an answer that is still missing is said, and the notebook goes on.

    ::

        with Exercise("01.1") as exercise:
            assert double(2) == 4, "twice two is four"
        if exercise.answered:
            print("Exercise 01.1 passed")

    Only a :class:`NotImplementedError` is caught, which the answer's cell raises as long as it is empty. A wrong answer
    fails as ever. What stands after the block is run in both cases: tests that give points begin there with
    ``assert exercise.answered``.

    Attributes:
        name: number of the exercise.
        answered: whether the block came to its end.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.answered = False

    def __enter__(self) -> Exercise:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self.answered = error is None
        if not isinstance(error, NotImplementedError):
            return False
        print(f"Exercise {self.name} is not solved yet: write your answer in the cell above, then run both cells.")
        return True
