"""What a grading wrote: marks and feedback, as tests ask for them."""

import csv
import html
import re


def read_marks(path):
    """{(student, notebook): line of grades.csv}."""
    with path.open(newline="", encoding="utf-8") as stream:
        return {(row["student"], row["notebook"]): row for row in csv.DictReader(stream)}


def points_of(row):
    """The points of the exercises, one after another."""
    return [float(value) for key, value in row.items() if key.startswith("exercise_") and value]


def feedback_of(path, grade_id):
    """The text that a student sees in and under a test cell."""
    text = path.read_text(encoding="utf-8")
    (start,) = [found.end() for found in re.finditer(f'<section class="graded [a-z]+" id="{grade_id}">', text)]
    return html.unescape(re.sub("<[^>]+>", "", text[start : text.index("</section>", start)]))
