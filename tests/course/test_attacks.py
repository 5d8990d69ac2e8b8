"""What a submission may try beside answering: it reaches nothing, gets nothing, and nobody else's marks suffer."""

import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from textwrap import dedent

import nbformat
import psutil
import pytest
from marks import feedback_of, points_of, read_marks
from sandboxes import PROBLEM, SANDBOX, needs_a_sandbox
from small_course import LEVEL, NAME, cell, small_notebook, write_course

from course import CourseError, grade, sandbox
from course.levels import NOTEBOOKS

pytestmark = pytest.mark.timeout(1200)
SECONDS = 10
# The others: make test-all.
EVERY_DAY = {
    "socket",
    "neighbour",
    "hidden tests",
    "writes",
    "forks",
    "calls",
    "the function itself",
    "swallows",
    "right",
}
RIGHT = "def double(x):\n    return 2 * x\n"


def answered(source):
    notebook = small_notebook()
    cell(notebook, "answer-01-1").source = dedent(source)
    return notebook


def hand_in(folder, student, notebook):
    path = folder / student / LEVEL / f"{NAME}.ipynb"
    path.parent.mkdir(parents=True)
    nbformat.write(notebook, path)
    return path


def daily(names):
    return [pytest.param(name, marks=() if name in EVERY_DAY else pytest.mark.every) for name in names]


def selected(request, names):
    """Those of ``names`` that the selected tests look at."""
    wanted = {item.callspec.params.get("student") for item in request.session.items if hasattr(item, "callspec")}
    return {name: value for name, value in names.items() if name in wanted}


class Place:
    """A course, what was handed in, a victim outside, and a server that listens."""

    def __init__(self, folder):
        self.folder = folder
        self.source = write_course(folder)
        self.course = next(self.source.glob("*/*.ipynb"))
        self.friend = hand_in(folder / "in", "friend", answered(RIGHT + "# my own idea"))
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(0)
        self.outside = folder / "broken"
        self.site = next(path for path in sys.path if path.endswith("site-packages"))


# name: source of the first answer, and what of it the student reads beside the first test
ATTACKS = {
    "socket": """
        import socket
        def double(x):
            socket.create_connection(("127.0.0.1", {place.server.getsockname}[1]), timeout=5)
            return 2 * x
        """,
    "neighbour": """
        def double(x):
            exec(open({friend!r}).read())
        """,
    "hidden tests": """
        def double(x):
            print(open({course!r}).read())
            return 2 * x
        """,
    "searches": """
        import os
        def find():
            for folder, _, files in os.walk("/"):
                if folder.startswith(("/proc", "/sys", "/dev", "/usr", {python!r})):
                    continue
                for name in files:
                    try:
                        text = open(os.path.join(folder, name), errors="replace").read(10**6)
                    except OSError:
                        continue
                    if "instead of " + "doubling" in text or "my own " + "idea" in text:
                        return os.path.join(folder, name)
        def double(x):
            assert find() is not None, "nothing of others is to be found"
            return 2 * x
        """,
    "writes": """
        from pathlib import Path
        def double(x):
            Path({outside!r}).write_text("broken")
            return 2 * x
        """,
    "changes Python": """
        from pathlib import Path
        def double(x):
            Path({site!r}, "broken.pth").write_text("import broken")
            return 2 * x
        """,
    "forks": """
        import os
        while True:
            os.fork()
        """,
    "eats memory": """
        def double(x):
            return bytearray(2**40) and 2 * x
        """,
    "loops": """
        def double(x):
            while True:
                pass
        """,
    "kills": """
        import os, signal
        for process in (os.getppid(), -1):
            os.kill(process, signal.SIGKILL)
        """,
    "other processes": """
        import os
        def double(x):
            own = {{int(name) for name in os.listdir("/proc") if name.isdigit()}}
            assert len(own) > 10, "only " + str(len(own)) + " processes to be seen"
            return 2 * x
        """,
    "environment": """
        import os
        def double(x):
            assert "SECRET_OF_THE_TEACHER" in os.environ, "no secret in the environment"
            return 2 * x
        """,
}
SEEN = {
    "socket": "ConnectionRefusedError",
    "neighbour": "FileNotFoundError",
    "hidden tests": "FileNotFoundError",
    "searches": "nothing of others is to be found",
    "writes": "FileNotFoundError",
    "changes Python": "Read-only file system",
    "forks": "NameError",
    "eats memory": "MemoryError",
    "loops": "CellTimeoutError",
    "kills": "NameError",
    "other processes": "processes to be seen",
    "environment": "no secret in the environment",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("attacked"))


@pytest.fixture(scope="module")
def graded(request, place):
    """Everybody in one go."""
    names = {
        "friend": str(place.friend),
        "course": str(place.course),
        "outside": str(place.outside),
        "site": place.site,
        "python": (sys.prefix, sys.base_prefix),
    }
    for student, source in selected(request, ATTACKS).items():
        source = source.replace("{place.server.getsockname}[1]", str(place.server.getsockname()[1]))
        for name, value in names.items():
            source = source.replace(f"{{{name}!r}}", "*" * (name == "python") + repr(value))
        hand_in(place.folder / "in", student, answered(source.replace("{{", "{").replace("}}", "}")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRET_OF_THE_TEACHER", "42")
        return grade.grade(place.folder / "in", place.folder / "out", place.source, seconds=SECONDS)


@needs_a_sandbox
@pytest.mark.parametrize("student", daily(ATTACKS))
def test_an_attack_costs_its_exercise_and_nothing_else(graded, student):
    row = read_marks(graded)[student, NAME]
    assert (points_of(row), row["note"]) == ([0, 3], "")
    page = graded.parent / "feedback" / student / LEVEL / f"{NAME}.html"
    *_, said = feedback_of(page, "test-01-1").split('print("Exercise 01.1 passed")', 1)
    assert SEEN[student] in said


@needs_a_sandbox
def test_everyone_elses_marks_and_files_are_unharmed(graded, place):
    assert points_of(read_marks(graded)["friend", NAME]) == [2, 3]
    assert "my own idea" in place.friend.read_text()
    assert len(read_marks(graded)) == len(list((place.folder / "in").iterdir()))


@needs_a_sandbox
def test_nothing_was_reached(graded, place):
    with pytest.raises(BlockingIOError):
        place.server.accept()
    assert not place.outside.exists()
    assert not Path(place.site, "broken.pth").exists()
    pages = [page for page in graded.parent.glob("feedback/*/*/*.html") if page.parts[-3] != "friend"]
    assert pages
    for page in pages:
        assert "my own idea" not in page.read_text(encoding="utf-8")


@needs_a_sandbox
def test_no_process_is_left_behind(graded, place):
    ours = [process for process in psutil.Process().children(recursive=True) if process.name() in ("bwrap", "sleep")]
    assert not [process for process in ours if process.status() != psutil.STATUS_ZOMBIE]


@needs_a_sandbox
def test_a_submission_sees_the_library_and_its_own_empty_folder(tmp_path, place):
    """The walls themselves, asked from inside."""
    fonts, sockets = tmp_path / "fonts", tmp_path / "sockets"
    fonts.mkdir()
    sockets.mkdir()
    code = "import os, nesskit; print(os.getcwd(), os.listdir(), os.listdir('/course'), os.listdir('/course/course'))"
    done = subprocess.run(
        [*sandbox.command(sockets, fonts), sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{sandbox.HOME} [")
    assert "closed.py" in done.stdout
    assert "grade.py" not in done.stdout


@needs_a_sandbox
@pytest.mark.parametrize(
    ("limit", "value", "code", "reason"),
    [
        ("MOST_MEMORY", 200 * sandbox.MIB, "x = b'x' * (300 * 2**20)", "MiB of memory"),
        (
            "MOST_PROCESSES",
            4,
            "import subprocess; x = [subprocess.Popen(['sleep', '60']) for _ in range(9)]",
            "processes",
        ),
        ("MOST_SOCKETS", 1000, "open(SOCKETS + '/much', 'w').write('x' * 5000)", "folder of its sockets"),
    ],
)
def test_a_sandbox_that_takes_too_much_is_ended_as_a_whole(tmp_path, monkeypatch, limit, value, code, reason):
    monkeypatch.setattr(sandbox, limit, value)
    fonts, sockets = tmp_path / "fonts", tmp_path / "sockets"
    fonts.mkdir()
    sockets.mkdir()
    code = f"SOCKETS = {str(sockets)!r}\n{code}\nimport time\ntime.sleep(60)"
    process = subprocess.Popen([*sandbox.command(sockets, fonts), sys.executable, "-c", code])
    watch = sandbox.Watch(process.pid, sockets)
    children = watch.process.children
    watch.start()
    began = time.monotonic()
    process.wait()
    assert time.monotonic() - began < 50  # by itself it would sleep for a minute
    watch.join()
    assert reason in watch.reason
    assert not [child for child in _safely(children) if child.is_running()]


def _safely(children):
    try:
        return children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def test_without_bubblewrap_grading_is_refused_with_the_way_out(place, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CourseError, match=r"install it \(apt-get install bubblewrap\), or say SANDBOX=none"):
        grade.grade(place.friend.parents[2], tmp_path / "out", place.source)
    assert not (tmp_path / "out").exists()


def test_an_unknown_sandbox_is_refused(place, tmp_path):
    with pytest.raises(CourseError, match="there is no sandbox 'box': say bubblewrap or none"):
        grade.grade(place.friend.parents[2], tmp_path / "out", place.source, sandbox="box")


def test_a_checkout_within_what_submissions_can_read_is_refused(monkeypatch):
    monkeypatch.setattr(sandbox, "ROOT", Path("/usr/src/nesskit"))
    with pytest.raises(CourseError, match="every submission can read: move the checkout elsewhere"):
        list(sandbox._bound())


def test_grading_without_a_sandbox_is_told_in_red(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(grade, "say", said.append)
    source = write_course(tmp_path)
    (tmp_path / "in" / "anna").mkdir(parents=True)
    grade.grade(tmp_path / "in", tmp_path / "out", source, sandbox="none")
    assert said[0] == f"\033[31m{grade.WITHOUT}\033[0m"
    assert not re.search("sandbox", "".join(said[1:]))


# What a student might do to get points for what the library or the tests can do: no answer of one's own, no points.
USES = """
import nesskit
def total(values):
    {body}
"""
CHEATS = {
    "calls": USES.format(body="return nesskit.forgetting(A) * 0 + sum(values)"),
    "another name": "from nesskit import forgetting as my_own\ntotal = lambda v: my_own(A) * 0 + sum(v)\n",
    "imports inside": USES.format(
        body="from nesskit.runs.metrics import forgetting; return forgetting(A) * 0 + sum(values)"
    ),
    "through map": USES.format(body="return next(map(nesskit.forgetting, [A])) * 0 + sum(values)"),
    "through exec": USES.format(body="exec('nesskit.forgetting(A)', globals()); return sum(values)"),
    "caught": USES.format(
        body="\n    ".join(["try:", "    nesskit.forgetting(A)", "except Exception: pass", "return sum(values)"])
    ),
    "erases": "import course.closed\n"
    + USES.format(
        body="\n    ".join(
            [
                "try:",
                "    nesskit.forgetting(A)",
                "except Exception: course.closed.guard.refused.clear()",
                "return sum(values)",
            ]
        )
    ),
    "in a thread": "import threading\n"
    + USES.format(
        body="t = threading.Thread(target=nesskit.forgetting, args=(A,)); t.start(); t.join(); return sum(values)"
    ),
    "in a process": "import subprocess, sys\n"
    + USES.format(body="subprocess.run([sys.executable, '-c', 'import nesskit']); return sum(values)"),
    "untraced": "import sys\n" + USES.format(body="sys.settrace(None); return nesskit.forgetting(A) * 0 + sum(values)"),
    "the function itself": "import nesskit\ntotal = nesskit.forgetting\n",
    "a partial one": "import functools, nesskit\ntotal = functools.partial(nesskit.forgetting)\n",
    "in a helper": "import nesskit\nhelp = lambda: nesskit.forgetting(A)\ntotal = lambda v: help() * 0 + sum(v)\n",
    "swallows": "get_ipython().set_custom_exc((AssertionError,), lambda *a, **k: None)\ndef total(values): return 1\n",
    "no runs": "total = lambda v: 1\nasync def nothing(*a, **k): pass\nget_ipython().run_cell_async = nothing\n",
    "builtins": "import builtins\nbuiltins.sum = lambda v: 7\ndef total(values): return sum(values)\n",
}
HONEST = {
    "right": "def total(values):\n    return sum(values)\n",
    "looks outside of tests": "import nesskit\nprint(nesskit.forgetting(A))\ntotal = lambda v: sum(v)\n",
}


@pytest.fixture(scope="module")
def cheated(request, tmp_path_factory):
    """A course whose hidden test of the second exercise has its truth from the library, and those who cheat in it."""
    folder = tmp_path_factory.mktemp("cheated")
    notebook = small_notebook()
    cell(notebook, "test-01-2").source += (
        "\n### BEGIN HIDDEN TESTS\nimport nesskit\n"
        'assert nesskit.forgetting(A) == total([20.0]), "the library says otherwise"\n### END HIDDEN TESTS\n'
    )
    imports = next(cell for cell in notebook.cells if cell.id == "imports")
    imports.source = "import math\nimport numpy as np\nA = np.array([[90, np.nan], [70, 95]])"
    source = write_course(folder, notebook)
    for student, answer in selected(request, CHEATS | HONEST).items():
        own = nbformat.reads(nbformat.writes(notebook), as_version=4)
        cell(own, "answer-01-2").source = answer
        hand_in(folder / "in", student, own)
    return grade.grade(folder / "in", folder / "out", source, seconds=SECONDS, sandbox=SANDBOX)


@pytest.mark.parametrize("student", daily(CHEATS))
def test_the_librarys_answer_is_no_answer(cheated, student):
    assert points_of(read_marks(cheated)[student, NAME]) == [2, 0]
    page = cheated.parent / "feedback" / student / LEVEL / f"{NAME}.html"
    said = feedback_of(page, "test-01-2")
    if student not in ("swallows", "no runs", "builtins"):
        assert "Exercise 01.2 is to be written with numpy and torch, without nesskit: " in said


@pytest.mark.parametrize("student", daily(HONEST))
def test_an_own_answer_gets_its_points_where_the_test_asks_the_library(cheated, student):
    assert points_of(read_marks(cheated)[student, NAME]) == [2, 3]


@needs_a_sandbox
@pytest.mark.every
def test_an_exercise_of_the_course_is_not_won_by_the_library_or_by_the_solution_in_the_checkout(tmp_path):
    """Notebook 01: both would be right in every digit."""
    (path,) = NOTEBOOKS.glob("1_foundations/01_*.ipynb")
    answers = {
        "library": "def forgetting(A):\n    return nesskit.forgetting(A)\n",
        "checkout": f"""import json
for one in json.load(open({str(path)!r}))["cells"]:
    if one["metadata"].get("nbgrader", {{}}).get("grade_id") == "answer-01-3":
        exec("".join(one["source"]))
""",
    }
    for student, answer in answers.items():
        notebook = nbformat.read(path, as_version=4)
        cell(notebook, "answer-01-3").source = answer
        copy = tmp_path / "in" / student / "1_foundations" / path.name
        copy.parent.mkdir(parents=True)
        nbformat.write(notebook, copy)
    table = grade.grade(tmp_path / "in", tmp_path / "out")
    for student in answers:
        assert points_of(read_marks(table)[student, path.stem]) == [2, 2, 0]


def test_the_reason_for_a_missing_sandbox_is_one_sentence():
    assert "\n" not in PROBLEM
