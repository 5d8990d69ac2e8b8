"""JupyterLab and Voilà as real processes, the kernel behind a page, and Chromium: what browser tests drive."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
from jupyter_client import BlockingKernelClient

ROOT = Path(__file__).parents[2]
CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
    "notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight are on the page, too
}


def find_chromium():
    """The browser that is there, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Jupyter:
    """A server on a folder, with settings and connection files of its own."""

    def __init__(self, folder, command):
        self.folder, self.port = Path(folder), free_port()
        self.runtime = self.folder / "runtime"
        self.runtime.mkdir()
        for name, values in SETTINGS.items():
            settings = self.folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            settings.parent.mkdir(parents=True, exist_ok=True)
            settings.write_text(json.dumps(values))
        self.url = f"http://127.0.0.1:{self.port}"
        places = {
            name: str(self.folder / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR")
        }
        environment = {
            **os.environ,
            **places,
            "JUPYTER_RUNTIME_DIR": str(self.runtime),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        self.log = (self.folder / "server.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command(self)], cwd=self.folder, env=environment, stdout=self.log, stderr=self.log
        )

    def wait_until_up(self, seconds=60):
        deadline = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/api/status", timeout=2) as answer:
                    return answer.status
            except urllib.error.HTTPError as answer:  # Voilà has no such page, but it answers
                return answer.code
            except OSError:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                assert time.monotonic() < deadline, "the server did not start"
                time.sleep(0.1)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.log.close()

    def notebook_url(self, notebook):
        """Where JupyterLab shows a notebook in a workspace of its own: a shared one brings back earlier notebooks."""
        return f"{self.url}/lab/workspaces/{Path(notebook).stem}/tree/{notebook}"

    def sessions(self):
        """What the server says of each notebook's kernel."""
        with urllib.request.urlopen(f"{self.url}/api/sessions", timeout=30) as answer:
            return json.load(answer)

    def kernel_states(self):
        """{notebook: state of its kernel}."""
        return {session["path"]: session["kernel"]["execution_state"] for session in self.sessions()}

    def shut_down_kernels(self):
        """End every kernel: closing a page leaves it, with its memory and whatever it still computes."""
        for session in self.sessions():
            request = urllib.request.Request(f"{self.url}/api/sessions/{session['id']}", method="DELETE")
            urllib.request.urlopen(request, timeout=60).close()

    @contextmanager
    def kernel(self):
        """Ask the newest kernel of this server: a function from an expression to its value."""
        connection = max(self.runtime.rglob("kernel-*.json"), key=lambda path: path.stat().st_mtime)
        client = BlockingKernelClient(connection_file=str(connection))
        client.load_connection_file()
        client.start_channels()

        def ask(expression):
            text = f"__import__('json').dumps({expression})"
            done = client.execute("", silent=True, store_history=False, user_expressions={"value": text})
            while True:
                reply = client.get_shell_msg(timeout=30)
                if reply["parent_header"].get("msg_id") == done:
                    break
            value = reply["content"]["user_expressions"]["value"]
            assert value["status"] == "ok", value
            return json.loads(eval(value["data"]["text/plain"]))

        try:
            yield ask
        finally:
            client.stop_channels()


def lab(folder):
    """JupyterLab on ``folder``."""
    return Jupyter(
        folder,
        lambda server: [
            "jupyterlab",
            "--no-browser",
            "--ip=127.0.0.1",
            "--allow-root",
            f"--port={server.port}",
            "--IdentityProvider.token=",
            "--ServerApp.disable_check_xsrf=True",  # so that shut_down_kernels needs no cookie
            "--LabApp.expose_app_in_browser=True",  # for in_front
            "--ServerApp.port_retries=0",
            f"--ServerApp.root_dir={server.folder}",
            f"--LabApp.user_settings_dir={server.folder / 'settings'}",
            f"--LabApp.workspaces_dir={server.folder / 'workspaces'}",
        ],
    )


def voila(folder, notebook):
    """One notebook as a Voilà page."""
    return Jupyter(
        folder,
        lambda server: [
            "voila",
            str(notebook),
            "--no-browser",
            "--Voila.ip=127.0.0.1",
            f"--port={server.port}",
            f"--Voila.connection_dir_root={server.runtime}",
        ],
    )


@contextmanager
def chromium():
    """A browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=CHROMIUM_FLAGS)
        try:
            yield browser
        finally:
            browser.close()


HARMLESS = (  # what a page without internet and with other extensions says anyway
    "font-awesome",
    "Font Awesome",
    "fontawesome",
    "cdnjs",
    "nbdime",
    "nbgrader",
    "The getter for the shared module is not a function",  # Voilà, beside the extensions of nbdime and nbgrader
    "favicon",
    "net::ERR_INTERNET_DISCONNECTED",
    "net::ERR_NAME_NOT_RESOLVED",
)


def open_page(browser, address, width=1280, height=1250):
    """A page that notes its errors in ``page.errors``."""
    page = browser.new_page(viewport={"width": width, "height": height})
    page.errors = []

    def note(text):
        if not any(word in text for word in HARMLESS):
            page.errors.append(text)

    page.on("console", lambda message: note(f"{message.text} {message.location}") if message.type == "error" else None)
    page.on("pageerror", lambda error: note(str(error)))
    page.on("crash", lambda: note("the page crashed"))
    page.goto(address)
    return page


IN_FRONT = """() => {
    const panel = window.jupyterapp?.shell?.currentWidget;
    if (!panel?.sessionContext || !panel.context.isReady) return {notebook: "", kernel: "", cells: 0, prompts: []};
    return {
        notebook: panel.context.path,
        kernel: panel.sessionContext.kernelDisplayStatus,
        cells: panel.content.widgets.filter(cell => cell.model.type === "code").length,
        prompts: [...panel.node.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map(each => each.textContent.trim()),
    };
}"""


def in_front(page):
    """The notebook in front as JupyterLab itself knows it: its path, kernel's state, code cells and their prompts."""
    return page.evaluate(IN_FRONT)


def run_all(page, notebook):
    """Run All in JupyterLab, once ``notebook`` is in front with its own kernel idle (earlier it is lost silently)."""

    def ready():
        now = in_front(page)
        return now["notebook"] == notebook and now["kernel"] == "idle" and len(now["prompts"]) == now["cells"] > 0

    settle(page, ready, 120, lambda: f"{notebook} is not ready to run: {in_front(page)}")
    page.locator("#jp-MainMenu").get_by_text("Run", exact=True).click()
    page.locator('.lm-Menu-item[data-command="runmenu:run-all"]').click()


def open_in_lab(browser, server, notebook):
    """A page with the notebook (a path from the server's folder) in JupyterLab, Run All pressed."""
    page = open_page(browser, server.notebook_url(notebook))
    run_all(page, notebook)
    return page


def write_notebook(sources, path):
    """A notebook of code cells that opens without a question for its kernel."""
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    cells = [nbformat.v4.new_code_cell(source.strip()) for source in sources]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)


def settle(page, changed, seconds=10, seen=lambda: "", pause=20):
    """Wait until ``changed()`` is true, looking every ``pause`` ms; failing says what was ``seen()``."""
    deadline = time.monotonic() + seconds
    while not changed():
        assert time.monotonic() < deadline, f"the page did not follow in {seconds} s. {seen()}"
        page.wait_for_timeout(pause)


def pixels(page, picture):
    """A number for what the first element that matches ``picture`` looks like."""
    return hashlib.sha256(page.locator(picture).first.screenshot()).hexdigest()


SHADES = """async image => {
    await image.decode();
    const [width, height] = [image.naturalWidth, image.naturalHeight];
    const pen = Object.assign(document.createElement("canvas"), {width, height}).getContext("2d");
    pen.drawImage(image, 0, 0);
    return new Set(pen.getImageData(0, 0, width, height).data).size;
}"""


def shades(picture):
    """How many values the pixels of an image have; a blank one has a few."""
    return picture.evaluate(SHADES)


THEMES = ("JupyterLab Light", "JupyterLab Dark")
GRAVE = ("serious", "critical")


def use_theme(page, theme):
    """One of JupyterLab's themes, on the page when this returns."""
    page.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
    settle(page, lambda: page.locator("body").get_attribute("data-jp-theme-name") == theme, 30)
    page.wait_for_timeout(500)  # colours pass over


def axe_findings(page, *parts):
    """What axe calls serious or critical in what the selectors find, one line each; it fails if they find nothing."""
    from axe_playwright_python.sync_playwright import Axe

    page.evaluate("document.body.style.height = '100vh'")  # JupyterLab's has none, and axe takes all in it for hidden
    inside = {"include": [[part] for part in parts]}
    said = Axe().run(page, context=inside, options={"resultTypes": ["violations", "passes"]}).response
    assert said["passes"], f"axe has looked at nothing in {parts}"
    grave = [violation for violation in said["violations"] if violation["impact"] in GRAVE]
    return [f"{v['id']}: {node['html'][:200]}" for v in grave for node in v["nodes"]]


CUT_OFF = """elements => elements.flatMap(element => {
    const box = element.getBoundingClientRect();
    const whole = room => box.left >= room.left - 1 && box.right <= room.right + 1;
    let by = whole({left: 0, right: innerWidth}) ? "" : "the window";
    for (let around = element.parentElement; around && !by; around = around.parentElement) {
        const clips = getComputedStyle(around).overflowX !== "visible";
        if (clips && !whole(around.getBoundingClientRect())) by = around.className || around.tagName;
    }
    return by ? [`${element.outerHTML.slice(0, 80)} by ${by}`] : [];
})"""


def cut_off(page, parts):
    """What matches the selector and is cut off at its left or right side, and by what."""
    return page.locator(parts).evaluate_all(CUT_OFF)


def is_there(pid):
    """Whether a process of that number exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
