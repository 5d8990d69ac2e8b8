"""Where a submission's code runs: a kernel in a sandbox of bubblewrap's, which the grader talks to through a folder.

Inside there is no network, no other process, and of the disk only what Python and the library need, all of it
read-only: neither the checkout, with its hidden tests, nor anybody's work. Tests come in one by one, as messages. What
a submission writes goes to memory of a limited size. Memory, processes and sizes of files are limited, too: each
process by the kernel of the system, all of them together by :class:`Watch`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.manager import AsyncKernelManager
from traitlets import Instance, Unicode

from course import CourseError

ROOT = Path(__file__).parent.parent
BUBBLEWRAP, NONE = "bubblewrap", "none"
HOME = "/submission"  # where a submission runs: empty, in memory
COURSE = "/course"  # where it finds the library
MIB = 2**20
MOST_MEMORY = 4096 * MIB  # resident, of all processes of a submission together
MOST_ADDRESSES = 3 * MOST_MEMORY  # of one process: torch maps more than it uses
MOST_PROCESSES = 64  # processes
MOST_TASKS = 512  # processes and threads, where the system counts them: it does not for root
MOST_FILE = 64 * MIB
MOST_FILES = 256 * MIB  # in memory, in each of three folders
MOST_SOCKETS = MIB  # in the folder of the sockets, the only one that a submission can write to on the disk
MISSING = (
    "grading needs bubblewrap, which keeps what students wrote away from your files: install it "
    "(apt-get install bubblewrap), or say SANDBOX=none to run their code with all your rights"
)


def check(sandbox: str) -> None:
    """Raise where ``sandbox`` does not work here.

    Raises:
        CourseError: there is no such sandbox, bubblewrap is not installed, or this system does not let it work.
    """
    if sandbox not in (BUBBLEWRAP, NONE):
        raise CourseError(f"there is no sandbox '{sandbox}': say {BUBBLEWRAP} or {NONE}")
    if sandbox == NONE:
        return
    if shutil.which("bwrap") is None:
        raise CourseError(MISSING)
    inside = ["/usr/bin/env", "prlimit", "--core=0", sys.executable, "-c", "import nesskit"]
    line = [*_walls(), "--setenv", "PYTHONPATH", COURSE, "--", *inside]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        raise CourseError(f"bubblewrap does not work on this system ({said}): mend that, or say SANDBOX=none")


def works() -> bool:
    """Whether submissions can be graded in a sandbox here."""
    try:
        check(BUBBLEWRAP)
    except CourseError:
        return False
    return True


def command(folder: Path, fonts: Path) -> list[str]:
    """What stands before the command of a kernel whose sockets lie in ``folder``; ``fonts``: see :func:`find_fonts`."""
    limits = {"as": MOST_ADDRESSES, "nproc": MOST_TASKS, "fsize": MOST_FILE, "core": 0}
    inside = Path(HOME, fonts.name)  # matplotlib wants to write beside the list, and may: that is in memory
    return [
        *_walls(),
        *("--bind", str(folder), str(folder)),
        *(part for path in fonts.iterdir() for part in ("--ro-bind", str(path), str(inside / path.name))),
        *("--remount-ro", "/", "--remount-ro", "/dev"),
        *(part for pair in environment(COURSE, inside).items() for part in ("--setenv", *pair)),
        *("--chdir", HOME, "--", "/usr/bin/env", "prlimit"),
        *(f"--{name}={value}" for name, value in limits.items()),
    ]


def environment(packages: str, fonts: Path) -> dict[str, str]:
    """Variables for a kernel that finds ``course`` and ``nesskit`` in ``packages``."""
    return {
        "PYTHONPATH": packages,
        "MPLCONFIGDIR": str(fonts),
        "OMP_NUM_THREADS": "1",  # several submissions at a time
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def find_fonts(folder: Path) -> None:
    """Let matplotlib look for fonts once and keep its list in ``folder``, for all kernels to come."""
    folder.mkdir(parents=True)
    line = [sys.executable, "-c", "import matplotlib.font_manager"]
    subprocess.run(line, env={**os.environ, "MPLCONFIGDIR": str(folder)}, capture_output=True, check=True)


def _walls() -> list[str]:
    """bubblewrap with what can be seen inside, but for the folder of the sockets."""
    arguments = ["bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"]
    arguments += ["--cap-drop", "ALL", "--hostname", "grading", "--clearenv"]
    for place in map(Path, ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")):
        if place.is_symlink():
            arguments += ["--symlink", str(place.readlink()), str(place)]
        elif place.is_dir():
            arguments += ["--ro-bind", str(place), str(place)]
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    for folder in ("/dev/shm", "/tmp", HOME):  # first: Python may lie in one of them
        arguments += ["--size", str(MOST_FILES), "--tmpfs", folder]
    for source, target in _bound():
        arguments += ["--ro-bind", str(source), str(target)]
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    variables = {"HOME": HOME, "USER": "student", "LANG": "C.UTF-8", "PATH": path}
    return [*arguments, *(part for name, value in variables.items() for part in ("--setenv", name, value))]


def _bound() -> Iterator[tuple[Path, Path | str]]:
    """(outside, inside) of everything that can be read.

    Raises:
        CourseError: the checkout lies in what Python needs.
    """
    library = importlib.util.find_spec("nesskit")
    if library is None or library.origin is None:
        raise CourseError("nesskit is not installed: make setup")
    prefixes = (Path(sys.prefix), Path(sys.base_prefix))
    python = {Path("/usr"), *prefixes, *(path.resolve() for path in prefixes)}
    yield from ((path, path) for path in sorted(python))
    if any(ROOT.resolve().is_relative_to(path) for path in python):
        raise CourseError(f"{ROOT} lies in a folder that every submission can read: move the checkout elsewhere")
    if Path("/etc/alternatives").is_dir():
        yield Path("/etc/alternatives"), "/etc/alternatives"
    yield Path(library.origin).parent, f"{COURSE}/nesskit"
    for name in ("course/__init__.py", "course/closed.py", "data/results"):
        if (ROOT / name).exists():
            yield ROOT / name, f"{COURSE}/{name}"


class SandboxedKernel(AsyncKernelManager):
    """A kernel that is reached through sockets in ``folder``, in a sandbox unless ``sandbox`` is "none".

    Attributes:
        fonts: the folder of :func:`find_fonts`.
        watch: what looks after the kernel while it runs in a sandbox.
    """

    sandbox = Unicode(BUBBLEWRAP)
    folder = Instance(Path)
    fonts = Instance(Path)
    watch: Watch | None = None

    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        """The command, inside its walls."""
        inside: list[str] = super().format_kernel_cmd(extra_arguments)
        return inside if self.sandbox == NONE else [*command(self.folder, self.fonts), *inside]

    async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]  # its base is typed by decorators
        """Start the kernel; interrupts reach it as messages, since signals stop at the walls."""
        assert self.kernel_spec is not None
        self.kernel_spec.interrupt_mode = "message"
        own = {**os.environ, **environment(str(ROOT), self.fonts)}
        nowhere = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
        await super().start_kernel(env=own, **nowhere, **{**options, "cwd": str(self.folder)})
        if self.sandbox != NONE:
            self.watch = Watch(getattr(self.provisioner, "pid"), self.folder)  # noqa: B009  # local ones have it
            self.watch.start()


class Watch(threading.Thread):
    """Looks after all processes of a sandbox together, and ends it where they take too much.

    Attributes:
        reason: why it was ended, for the student.
    """

    def __init__(self, pid: int, folder: Path | None = None, every: float = 0.1) -> None:
        super().__init__(daemon=True)
        self.process, self.folder, self.every = psutil.Process(pid), folder, every
        self.reason = ""

    def run(self) -> None:
        """Look until the sandbox has ended."""
        ended = threading.Event()
        while not ended.wait(self.every):
            try:
                if self.process.status() == psutil.STATUS_ZOMBIE:
                    return
                self.reason = self._too_much()
                if self.reason:
                    self.process.kill()  # and with it goes everything inside
                    return
            except psutil.NoSuchProcess:
                return

    def _too_much(self) -> str:
        processes = self.process.children(recursive=True)
        if len(processes) > MOST_PROCESSES:
            return f"It started more than {MOST_PROCESSES} processes."
        if sum(map(_resident, processes)) > MOST_MEMORY:
            return f"It took more than {MOST_MEMORY // MIB} MiB of memory."
        if self.folder is not None and sum(entry.stat().st_size for entry in os.scandir(self.folder)) > MOST_SOCKETS:
            return "It wrote to the folder of its sockets."
        return ""


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
