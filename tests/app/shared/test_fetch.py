import hashlib
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from app.shared.egress import EgressError, EgressPolicy
from app.shared.fetch import fetch_to_file, post

INSIDE = EgressPolicy(("127.0.0.0/8", "files.test"))
CONTENT = bytes(range(256)) * 1000


class Server(BaseHTTPRequestHandler):
    """Plays every kind of server that there is, by path; notes what it was asked."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[tuple[str, str, dict[str, str]]]] = []

    def do_GET(self):
        self.asked.append((self.command, self.path, dict(self.headers.items())))
        getattr(self, self.path.strip("/").partition("?")[0].replace("/", "_"))()

    def do_POST(self):
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def file(self):
        self.answer(200, CONTENT)

    def here(self):
        self.answer(302, b"", Location="/file")

    def circle(self):
        self.answer(302, b"", Location="/circle")

    def elsewhere(self):
        self.answer(302, b"", Location="http://127.0.0.2:9/file")

    def down(self):
        self.answer(302, b"", Location="http://169.254.169.254/latest")

    def nowhere(self):
        self.answer(302, b"", Location="http://[")

    def missing(self):
        self.answer(404, b"gone")

    def echo(self):
        self.answer(200, self.body)

    def endless(self):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b"x" * 65536)

    def drops(self):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.05)

    def cut(self):
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"half")
        self.close_connection = True

    def answer(self, status, body, **headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        return

    def handle(self):
        try:
            super().handle()
        except ConnectionError:
            return


@pytest.fixture(scope="module")
def url():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def fetch(url, tmp_path, monkeypatch):
    """Downloads a path of the server, over plain HTTP as the tests have no certificate."""
    monkeypatch.setattr("app.shared.fetch.DOWNLOAD_SCHEMES", ("http", "https"))

    def fetch_one(path, *, base=url, **options):
        asked = {"policy": INSIDE, "max_bytes": 1 << 20, "seconds": 5, **options}
        return fetch_to_file(base + path, tmp_path / "file", **asked)

    return fetch_one


def test_a_file_is_fetched_whole_and_hashed(fetch, tmp_path):
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    for path in ("/file", "/here"):
        fetched = fetch(path, sha256=sha256)
        assert (fetched.size_bytes, fetched.sha256) == (len(CONTENT), sha256)
        assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "options", "code"),
    [
        ("/nowhere", {}, "redirect_refused"),
        ("/missing", {}, "http_status"),
        ("/circle", {}, "too_many_redirects"),
        ("/elsewhere", {}, "redirect_refused"),
        ("/down", {}, "url_refused"),
        ("/file", {"sha256": "0" * 64}, "digest_mismatch"),
        ("/file", {"max_bytes": 1000}, "too_large"),
        ("/endless", {}, "too_large"),
        ("/drops", {"seconds": 0.5}, "timed_out"),
        ("/cut", {}, "unreachable"),
    ],
)
def test_what_is_not_the_file_leaves_none(fetch, tmp_path, path, options, code):
    started = time.monotonic()
    with pytest.raises(EgressError) as caught:
        fetch(path, **options)
    assert caught.value.code == code
    assert list(tmp_path.iterdir()) == []
    assert time.monotonic() - started < 4


def test_downloads_are_encrypted(url, tmp_path):
    with pytest.raises(EgressError, match="'http'"):
        fetch_to_file(url + "/file", tmp_path / "file", policy=INSIDE, max_bytes=10, seconds=1)


def test_a_name_that_answers_differently_the_second_time_gains_nothing(fetch, url):
    port = url.rpartition(":")[2]
    answers = [["127.0.0.1"], ["127.0.0.3"]]

    def lookup(_host, _port):
        return answers.pop(0)

    fetch("/file", base=f"http://files.test:{port}", lookup=lookup)
    assert answers == [["127.0.0.3"]], "the name must be asked once, and its answer connected to"
    assert Server.asked[-1][2]["Host"] == f"files.test:{port}"


def test_a_post_goes_out_once_with_its_headers_and_its_answer_comes_back(url, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    answer = post(url + "/echo", b'{"a": 1}', {"webhook-id": "x"}, policy=INSIDE, seconds=5)
    assert (answer.status, answer.excerpt) == (200, '{"a": 1}')
    command, _, headers = Server.asked[-1]
    assert (command, headers["webhook-id"]) == ("POST", "x")
    assert "Cookie" not in headers


def test_a_post_follows_no_redirect_and_reads_no_endless_answer(url):
    assert post(url + "/here", b"", {}, policy=INSIDE, seconds=5).status == 302
    assert len(post(url + "/endless", b"", {}, policy=INSIDE, seconds=5).excerpt) == 500


def test_the_status_counts_even_when_the_rest_of_an_answer_never_comes(url):
    assert post(url + "/cut", b"", {}, policy=INSIDE, seconds=5).status == 200
    answer = post(url + "/drops", b"", {}, policy=INSIDE, seconds=0.5)
    assert answer.status == 200
    assert 0 < len(answer.excerpt) < 500
    assert answer.seconds < 3


def test_a_full_disk_is_not_taken_for_a_broken_connection(fetch, tmp_path):
    (tmp_path / ".file.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        fetch("/file")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate of `files.test` that signs itself, with its key, in one file."""
    path = tmp_path_factory.mktemp("tls") / "files.test.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-days", "2", "-subj", "/CN=files.test", "-addext", "subjectAltName=DNS:files.test"]  # fmt: skip
    subprocess.run([*command, "-keyout", path, "-out", f"{path}.crt"], check=True, capture_output=True)
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def https_port(certificate, monkeypatch):
    """A server that speaks TLS, and a machine that trusts its certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    names = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server.server_port, names
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_certificate_must_be_that_of_the_name(https_port, tmp_path):
    port, names = https_port
    policy = EgressPolicy(("files.test", "other.test"))
    options = {"policy": policy, "max_bytes": 1 << 20, "seconds": 5, "lookup": lambda _host, _port: ["127.0.0.1"]}
    fetched = fetch_to_file(f"https://files.test:{port}/file", tmp_path / "file", **options)
    assert fetched.size_bytes == len(CONTENT)
    assert names == ["files.test"], "the name must be told to the server, not the address"
    with pytest.raises(EgressError, match="its certificate is not valid"):
        fetch_to_file(f"https://other.test:{port}/file", tmp_path / "other", **options)
    assert not (tmp_path / "other").exists()


def test_a_call_inside_is_refused_without_a_packet(url):
    before = len(Server.asked)
    with pytest.raises(EgressError) as caught:
        post(url + "/echo", b"", {}, policy=EgressPolicy(), seconds=5)
    assert caught.value.code == "url_refused"
    assert len(Server.asked) == before


def test_nobody_listening_is_said_without_an_address(tmp_path):
    with pytest.raises(EgressError) as caught:
        post("http://127.0.0.1:9/", b"", {}, policy=INSIDE, seconds=5)
    assert caught.value.code == "unreachable"
    assert "Errno" not in str(caught.value)
