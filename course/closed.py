"""In the kernel of a submission: while a test runs, what the student wrote may not call the library.

Every exercise is to write something that the library can do as well or better; numpy and torch are enough for all of
them. So all of ``nesskit`` is closed to a student's functions while a test runs them, however they came by it; the
tests themselves, and functions of the notebook as it was released, may call it. Networks and tasks that a test hands
over can be used.

Loaded as an extension of IPython's. The grader calls :func:`begin` before each test, and :func:`end` after it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Frame = types.FrameType
TOOLS = ("builtins", "numpy", "numpy.linalg", "torch", "torch.linalg")  # what tests are written with
KNOWN = (types.BuiltinFunctionType, type, types.FunctionType)
HANDED_OVER = ("nesskit.networks", "nesskit.streams")  # methods of their objects stay open
STARTS = ("os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.system", "subprocess.Popen")
REFUSED = "application/vnd.grading.refused"
SPAWNS = "spawnv_passfds"
WRAPPED = ("__wrapped__", "__func__", "__self__", "func", "pyfunc")


class ClosedError(RuntimeError):
    """An exercise was to be written, and the library was called."""


class Guard:
    """Looks at every call while a test runs.

    Attributes:
        exercise: number of the exercise, empty between tests.
        refused: what a student's function called or did, in sentences.
    """

    def __init__(self, shell: Any) -> None:
        self.shell, self.publish = shell, shell.display_pub.publish
        found = importlib.util.find_spec("nesskit")
        self.library = str(Path(found.origin).parent) + os.sep if found and found.origin else ""
        self.cells: dict[str, str] = {}  # of every cell that was run: name of its code → checksum of its source
        self.exercise = ""
        self.released: frozenset[str] = frozenset()
        self.refused: list[str] = []
        self.changing = False
        self.tools: dict[str, dict[str, Any]] = {}  # functions of modules, as they were when they were first seen

    def remember(self, info: Any) -> None:
        """Keep whose the cell is that is about to run, and the tools as they were before it."""
        for name in TOOLS:
            if name in sys.modules and name not in self.tools:
                known = KNOWN[:2] if name == "builtins" else KNOWN  # IPython puts functions of its own there
                self.tools[name] = {
                    key: tool for key, tool in vars(sys.modules[name]).items() if isinstance(tool, known)
                }
        source = info.raw_cell
        name = self.shell.compile.get_code_name(source, self.shell.transform_cell(source), self.shell.execution_count)
        self.cells[name] = checksum(source)

    def begin(self, exercise: str, answers: list[str], released: list[str]) -> None:
        """Close the library to what the student wrote.

        Args:
            exercise: its number.
            answers: the names that the student was to define.
            released: checksums of cells as they were released, and of the tests.
        """
        self.exercise, self.released, self.refused = exercise, frozenset(released), []
        for name in answers:
            for part in _parts(self.shell.user_ns.get(name)):
                if str(getattr(part, "__module__", None) or "").partition(".")[0] == "nesskit":
                    self._refuse(f"{name} is {_called(part)}", raised=False)
        self._check_tools()
        self._trace(self.look)

    def end(self) -> list[str]:
        """Open the library again; what was refused meanwhile."""
        self._trace(None)
        self._check_tools()
        self.exercise = ""
        return self.refused

    def _check_tools(self) -> None:
        for module, functions in self.tools.items():
            for name, function in functions.items():
                now = getattr(sys.modules[module], name, None)
                if now is not function and not self._from(module, now):  # torch itself replaces some
                    self.refused.append(f"The tests of exercise {self.exercise} need {module}.{name} as it was.")

    def _from(self, module: str, value: Any) -> bool:
        """Whether a function is the module's own, and nothing in it was written in the notebook."""
        homes = str(getattr(value, "__module__", "")).split(".")[:1]
        codes = [getattr(part, "__code__", None) for part in _parts(value)]
        return homes == module.split(".")[:1] and not any(code and code.co_filename in self.cells for code in codes)

    def look(self, frame: Frame, event: str, argument: Any) -> None:
        """What Python calls at every call of a function that is written in Python.

        Raises:
            ClosedError: a student's function called the library, or started a process.
        """
        code = frame.f_code
        if code.co_name == SPAWNS:  # of multiprocessing's, which no audit sees
            self.audit("subprocess.Popen", ())
        if not code.co_filename.startswith(self.library) or _handed_over(frame):
            return
        if self._is_of_student(frame.f_back):
            module = frame.f_globals.get("__name__", "nesskit")
            name = frame.f_locals.get("name", "") if code.co_name == "__getattr__" else code.co_qualname
            self._refuse(f"it called {module}.{name}".replace(".<module>", ""))

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """What Python calls before it does certain things; nothing can take this away again.

        Raises:
            ClosedError: a student's function started a process, or put another function in the place of ours.
        """
        if not self.exercise or self.changing:
            return
        if event in STARTS or (event == "sys.settrace" and self._is_of_student(sys._getframe(1))):
            self._refuse(f"it called {event}")

    def _is_of_student(self, frame: Frame | None) -> bool:
        """Whether what the student wrote stands next in the stack, of all that belongs to somebody."""
        while frame is not None:
            name = frame.f_code.co_filename
            if name in self.cells:
                return self.cells[name] not in self.released
            if name.startswith(self.library):
                return False  # it was looked at when it was called
            frame = frame.f_back
        return threading.current_thread() is not threading.main_thread()

    def _refuse(self, what: str, raised: bool = True) -> None:
        sentence = f"Exercise {self.exercise} is to be written with numpy and torch, without nesskit: {what}."
        self.refused.append(sentence)
        self.publish({REFUSED: sentence})  # at once: what has left the kernel, nobody in it takes back
        if raised:
            raise ClosedError(sentence)

    def _trace(self, function: Any) -> None:
        self.changing = True
        sys.settrace(function)
        threading.settrace(function)
        self.changing = False


def checksum(source: str) -> str:
    """Of a cell's source."""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def _parts(value: Any) -> Iterator[Any]:
    """The value, and what it wraps."""
    seen: list[Any] = []
    while value is not None and not any(value is other for other in seen) and len(seen) < 20:
        seen.append(value)
        yield value
        value = next((inner for name in WRAPPED if (inner := getattr(value, name, None)) is not None), None)


def _called(value: Any) -> str:
    return f"{value.__module__}.{getattr(value, '__qualname__', type(value).__qualname__)}"


def _handed_over(frame: Frame) -> bool:
    """Whether a method of a network or a task is called."""
    code = frame.f_code
    if code.co_name in ("__init__", "__new__", "__post_init__") or code.co_varnames[:1] != ("self",):
        return False
    return type(frame.f_locals.get("self")).__module__.startswith(HANDED_OVER)


guard: Guard


def load_ipython_extension(shell: Any) -> None:
    """What IPython calls when the kernel starts."""
    global guard
    guard = Guard(shell)
    shell.events.register("pre_run_cell", guard.remember)
    sys.addaudithook(guard.audit)


def begin(exercise: str, answers: list[str], released: list[str]) -> None:
    """Close the library to what the student wrote; see :class:`Guard`."""
    guard.begin(exercise, answers, released)


def end(token: str, exercise: str) -> None:
    """Open the library again, and say what was refused while it was closed for ``exercise``."""
    closed = guard.exercise == exercise
    print(token + json.dumps(guard.end() if closed else [f"The tests of exercise {exercise} could not be guarded."]))
