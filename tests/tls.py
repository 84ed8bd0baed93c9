"""An authority of our own, and a server on 127.0.0.1 whose certificate it signed."""

import ssl
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


@dataclass
class TlsServer:
    """Serves `files` by path, and redirects; `asked` are the Host and the path of every request."""

    files: Mapping[str, bytes]
    redirects: dict[str, str] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    port: int = 0

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"https://{host}:{self.port}{path}"

    def handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append((self.headers["Host"], self.path))
                content = server.files.get(self.path, b"")
                self.send_response(302 if self.path in server.redirects else 200 if content else 404)
                if self.path in server.redirects:
                    self.send_header("Location", server.redirects[self.path])
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                return

        return Handler


def make_authority(directory: Path) -> Path:
    """The certificate to trust; beside it one of 127.0.0.1 and localhost that it signed, with its key."""
    authority, key = directory / "authority.crt", directory / "authority.key"
    subject = ("-subj", "/CN=authority of the tests")
    _openssl("req", "-x509", *_NEW_KEY, *subject, "-keyout", key, "-out", authority)
    names = ("-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")
    signed = ("-CA", authority, "-CAkey", key, "-addext", "basicConstraints=critical,CA:FALSE")
    _openssl("req", "-x509", *_NEW_KEY, *names, *signed, "-keyout", directory / "server.key",
             "-out", directory / "server.crt")  # fmt: skip
    return authority


@contextmanager
def tls_server(directory: Path, files: Mapping[str, bytes]) -> Iterator[TlsServer]:
    """Until the block ends, with the certificate that `make_authority` left in `directory`."""
    told = TlsServer(files)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.crt", directory / "server.key")
    server = ThreadingHTTPServer(("127.0.0.1", 0), told.handler())
    server.socket = context.wrap_socket(server.socket, server_side=True)
    told.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield told
    server.shutdown()
    server.server_close()
    thread.join()


def _openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
