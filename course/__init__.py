"""What keeps the notebooks of the course executed, releases them to students and grades what comes back."""

from __future__ import annotations


class CourseError(ValueError):
    """Something that the person at the command line can put right: one sentence that says what and how."""
