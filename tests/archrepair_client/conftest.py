"""A live service for the client: a real gateway and a real worker, whose engine is a double that is told how to behave.

And what stands between a client and its service on a bad day.
"""

import os
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from archrepair_client import ArchRepair
from tests.servers import environment_of, free_port, running, valkey_command

WORKER = Path(__file__).parents[1] / "worker" / "worker_with_double.py"
MODEL_BYTES = b"PK\x03\x04" + bytes(range(256)) * 40


@dataclass
class Live:
    """A service whose jobs end as their data say."""

    gateway: object
    restart: Callable

    @property
    def url(self):
        return self.gateway.url

    @property
    def key(self):
        return self.gateway.key


@pytest.fixture(scope="session")
def live(embedded, start_gateway, tmp_path_factory):
    port, directory = free_port(), tmp_path_factory.mktemp("live")
    settings = embedded.fresh(directory / "state", broker_url=f"redis://:secret@127.0.0.1:{port}/0",
                              egress_allow=("127.0.0.0/8",))  # fmt: skip
    environment = os.environ | environment_of(settings)
    with (
        running(valkey_command(port, "secret")),
        (directory / "worker.log").open("wb") as log,
        running([sys.executable, "-P", WORKER], env=environment, stdout=log, stderr=log),
        start_gateway(settings) as gateway,
    ):
        yield Live(gateway, lambda: start_gateway(settings))


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch, tmp_path):
    """Of the machine the tests run on."""
    for name in [name for name in os.environ if name.startswith(("ARCHREPAIR_", "GITHUB_")) or name == "CI"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("ARCHREPAIR_STATE_DIR", str(tmp_path / "no-service"))


@pytest.fixture
def client(live):
    with ArchRepair(base_url=live.url, api_key=live.key) as client:
        yield client


@dataclass(frozen=True)
class Files:
    """A model, and data that say how the engine behaves."""

    directory: Path

    def model(self, content=MODEL_BYTES):
        path = self.directory / "resnet18.pt"
        path.write_bytes(content)
        return path

    def data(self, behave="succeed"):
        path = self.directory / f"{behave}.npz"
        path.write_bytes(f"behave:{behave}".encode())
        return path


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


@dataclass
class BadLine:
    """A TCP relay to `port` that, once so many bytes have gone one way, cuts every connection or changes a byte."""

    port: int
    url: str = ""
    cut_after: dict[str, int] = field(default_factory=dict)
    damage_after: dict[str, int] = field(default_factory=dict)
    passed: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    cuts: int = 0
    open: list = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def serve(self, listener):
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self.connect, args=(near,), daemon=True).start()

    def connect(self, near):
        with near, socket.socket() as far:
            if far.connect_ex(("127.0.0.1", self.port)) != 0:
                return
            with self.lock:
                self.open += [near, far]
            back = threading.Thread(target=self.relay, args=(far, near, "down"), daemon=True)
            back.start()
            self.relay(near, far, "up")
            back.join()

    def relay(self, source, sink, way):
        with suppress(OSError):
            while chunk := source.recv(65536):
                sink.sendall(self.perhaps_damaged(chunk, way))
                with self.lock:
                    self.passed[way] += len(chunk)
                    if way in self.cut_after and self.passed[way] >= self.cut_after[way]:
                        del self.cut_after[way]
                        self.cut()
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def perhaps_damaged(self, chunk, way):
        with self.lock:
            # The head of a request is smaller: what is changed is in a body.
            if len(chunk) < 32768 or self.passed[way] < self.damage_after.get(way, sys.maxsize):
                return chunk
            del self.damage_after[way]
        return chunk[:-1] + bytes([chunk[-1] ^ 1])

    def cut(self):
        self.cuts += 1
        for end in self.open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self.open.clear()


@contextmanager
def line_to(port):
    """A relay to that port of this machine."""
    line = BadLine(port)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        line.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=line.serve, args=(listener,), daemon=True)
        thread.start()
        yield line
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    line.cut()


@pytest.fixture
def bad_line(live):
    with line_to(int(live.url.rpartition(":")[2])) as line:
        yield line


@pytest.fixture(scope="session")
def bad_line_to():
    """Makes such a relay to any port."""
    return line_to


@dataclass
class Impostor:
    """Hands requests on, and answers some of its own: `answers` are given first to the POSTs of `path`, in order.

    A request is done by the service all the same: its real answer is what gets lost.
    """

    url: str = ""
    path: str = "/v1/jobs"
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    # A change to every answer of the service, by its JSON.
    change: Callable = lambda path, body: body


@pytest.fixture
def impostor(live):
    impostor = Impostor()

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "host"}
            answer = httpx.request(self.command, live.url + self.path, content=body, headers=headers, timeout=60)
            status, own, content = answer.status_code, {}, answer.content
            if self.command == "POST" and self.path.partition("?")[0] == impostor.path:
                impostor.keys.append(headers.get("Idempotency-Key", ""))
                if impostor.answers:
                    status, own = impostor.answers.pop(0)
                    content = b"<html>a proxy says no</html>"
            if status < 300 and "json" in answer.headers.get("content-type", ""):
                content = impostor.change(self.path, content)
            self.send_response(status)
            for name, value in {**own, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_DELETE = handle_one

        def log_message(self, *_):
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    impostor.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield impostor
    server.shutdown()
    server.server_close()
    thread.join()
