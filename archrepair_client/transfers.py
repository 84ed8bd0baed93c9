"""Files on their way: hashed, sent in parts, fetched and taken up again where the connection broke."""

import base64
import hashlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import httpx

from archrepair_client.errors import BadInput, DigestMismatch, NoConnection
from archrepair_client.retries import Options, opened, pause_seconds
from archrepair_client.steps import Call, Close, FileSlice, Read, Request, Sleep, Steps

CHUNK_BYTES = 1024 * 1024
# Small enough that little is sent again after a cut, large enough that a request is not most of the work.
PART_BYTES = 8 * 1024 * 1024
MAX_PARTS = 1000


@dataclass(frozen=True)
class Transfer:
    """How far a file is. `total_bytes` is None while it is not known."""

    name: str
    done_bytes: int
    total_bytes: int | None


OnTransfer = Callable[[Transfer], None]


@dataclass
class Meter:
    """Counts the bytes of one file, from whatever thread, and tells."""

    name: str
    total_bytes: int | None
    on_transfer: OnTransfer | None
    done_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, count: int) -> None:
        """So many bytes more are through."""
        with self._lock:
            self.done_bytes += count
            self._tell()

    def set(self, count: int) -> None:
        """So many bytes are through."""
        with self._lock:
            self.done_bytes = count
            self._tell()

    def _tell(self) -> None:
        if self.on_transfer is not None:
            self.on_transfer(Transfer(self.name, self.done_bytes, self.total_bytes))


def existing_file(path: Path) -> Path:
    """The path, when there is a file that is not empty. Raises BadInput."""
    try:
        size = path.stat().st_size if path.is_file() else -1
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    if size <= 0:
        raise BadInput(f"{path} is empty" if size == 0 else f"{path} is not a file; check the path")
    return path


def slices_of(size_bytes: int, part_bytes: int, path: Path) -> list[FileSlice]:
    """The file in parts, the last one with the rest."""
    starts = range(0, size_bytes, part_bytes)
    return [FileSlice(path, start, min(part_bytes, size_bytes - start)) for start in starts]


def part_bytes_for(size_bytes: int) -> int:
    """How large the parts are: as usual, or larger where these would be too many."""
    return max(PART_BYTES, -(-size_bytes // MAX_PARTS))


def sha256_of(path: Path) -> str:
    """Of the whole file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Digests:
    """Of one part. S3 checks MD5 where a signed URL leaves no room for another; nothing rests on it alone."""

    sha256: bytes
    md5: bytes

    @property
    def content_digest(self) -> str:
        """The header `Content-Digest`."""
        return f"sha-256=:{base64.b64encode(self.sha256).decode()}:"

    @property
    def content_md5(self) -> str:
        """The header `Content-MD5`."""
        return base64.b64encode(self.md5).decode()


def digests_of(part: FileSlice) -> Digests:
    """Both, in one reading."""
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    with part.path.open("rb") as file:
        file.seek(part.offset)
        left = part.size_bytes
        while left and (piece := file.read(min(CHUNK_BYTES, left))):
            sha256.update(piece)
            md5.update(piece)
            left -= len(piece)
    return Digests(sha256.digest(), md5.digest())


class PartialFile:
    """What has arrived of a file whose sha256 is known, under a name that says so; it outlives the process."""

    def __init__(self, target: Path, sha256: str) -> None:
        self.target = target
        self.sha256 = sha256
        self.path = target.with_name(f".{target.name}.{sha256[:16]}.part")
        self.size_bytes = 0
        self._digest = hashlib.sha256()

    def read_again(self) -> None:
        """Go on with what an earlier process left."""
        if self.path.is_file():
            with self.path.open("rb") as file:
                while piece := file.read(CHUNK_BYTES):
                    self._note(piece)

    def append(self, piece: bytes) -> None:
        """The next bytes."""
        with self.path.open("ab") as file:
            file.write(piece)
        self._note(piece)

    def _note(self, piece: bytes) -> None:
        self._digest.update(piece)
        self.size_bytes += len(piece)

    def forget(self) -> None:
        """Begin anew."""
        self.path.unlink(missing_ok=True)
        self.size_bytes, self._digest = 0, hashlib.sha256()

    def finish(self) -> bool:
        """Give the file its name, if its bytes are the right ones; else forget them."""
        if self._digest.hexdigest() != self.sha256:
            self.forget()
            return False
        self.path.touch()  # an empty file has had no bytes to append
        self.path.replace(self.target)
        return True


def fetched(request: Request, target: Path, options: Options, on_transfer: OnTransfer | None = None) -> Steps[Path]:
    """The file the request answers, in `target`, or in that directory under the name the service gives.

    A file under its final name is whole and has the sha256 the service named. Raises APIError, NoConnection,
    DigestMismatch.
    """
    # Compressed on the way, ranges and digests would be those of other bytes.
    request = replace(request, headers={"Accept-Encoding": "identity", **request.headers})
    for _ in range(2):
        response = yield from opened(request, options, chunk_bytes=CHUNK_BYTES)
        size_bytes = int(response.headers["content-length"])
        if target.is_dir():
            target = target / served_name(response)
        file = PartialFile(target, served_sha256(response))
        yield Call(file.read_again)
        if 0 < file.size_bytes < size_bytes:
            yield Close(response)
            response = yield from _continued(request, file, options)
        if file.size_bytes < size_bytes:
            yield from _received(response, request, file, options, Meter(target.name, size_bytes, on_transfer))
        if (yield Call(file.finish)):
            return target
    raise DigestMismatch(f"{target.name}: the bytes that came are not those of sha256 {file.sha256}, twice")


def _received(
    response: httpx.Response, request: Request, file: PartialFile, options: Options, meter: Meter
) -> Steps[None]:
    """Append all that comes. A connection that breaks is taken up again, as often as something came between."""
    failures = 0
    while True:
        meter.set(file.size_bytes)
        try:
            chunk: bytes = yield Read(response)
        except httpx.RequestError as error:
            if failures >= options.max_retries:
                raise NoConnection(f"{request.path}: {type(error).__name__}, {failures + 1} times in a row") from error
            yield Sleep(pause_seconds(failures))
            failures += 1
            response = yield from _continued(request, file, options)
            continue
        if not chunk:
            return
        failures = 0
        yield Call(partial(file.append, chunk))


def _continued(request: Request, file: PartialFile, options: Options) -> Steps[httpx.Response]:
    """The rest of the file; should another one have come in its place, all of that."""
    rest = {"Range": f"bytes={file.size_bytes}-", "If-Range": f'"{file.sha256}"'}
    request = replace(request, headers={**request.headers, **rest})
    response = yield from opened(request, options, chunk_bytes=CHUNK_BYTES)
    if response.status_code != httpx.codes.PARTIAL_CONTENT:
        yield Call(file.forget)
    return response


def served_name(response: httpx.Response) -> str:
    """The file name the service gives, without any directory: it is not trusted with more."""
    found = re.search(r'filename="([^"]*)"', response.headers.get("content-disposition", ""))
    name = re.split(r"[/\\]", found.group(1))[-1] if found else ""
    return name if name.strip(". ") else "download"


def served_sha256(response: httpx.Response) -> str:
    """The sha256 of the whole file in hex, from its ETag."""
    return str(response.headers.get("etag", "")).strip('"')
