"""A cache of its own for every test, and a real HTTP server that can fail in all the ways that servers fail."""

import http.server
import os
import socket
import threading

import pytest

REAL_MIRROR = os.environ.get("NESSKIT_MIRROR", "")


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``; sends only half of those in ``dropped`` and hangs up; counts the requests."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.dropped, self.requests = {}, set(), []

    def url(self, name=""):
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        name = self.path.lstrip("/")
        self.server.requests.append(name)
        if name not in self.server.files:
            self.send_error(404)
            return
        content = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if name in self.server.dropped else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def dead_url():
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return f"http://127.0.0.1:{port}"


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    """An empty cache, and no mirror."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("NESSKIT_CACHE", str(folder))
    monkeypatch.delenv("NESSKIT_MIRROR", raising=False)
    return folder


@pytest.fixture
def real_mirror():
    """The mirror that whoever runs the tests has set up."""
    if not REAL_MIRROR:
        pytest.skip("NESSKIT_MIRROR is not set, so there is no real data to read")
    return REAL_MIRROR
