"""Which sandbox tests can grade in: bubblewrap's where it works, none elsewhere."""

import pytest

from course import CourseError
from course.sandbox import BUBBLEWRAP, NONE, check


def _problem():
    try:
        check(BUBBLEWRAP)
    except CourseError as error:
        return str(error)
    return ""


PROBLEM = _problem()
SANDBOX = NONE if PROBLEM else BUBBLEWRAP
needs_a_sandbox = pytest.mark.skipif(bool(PROBLEM), reason=PROBLEM)
