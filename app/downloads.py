"""Stored files as answers: ranges, a strong ETag and a digest, so that a transfer can be resumed and checked."""

import base64
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from obstore.store import ObjectStore
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.errors import PROBLEM_MEDIA_TYPE, ApiProblem
from app.shared.media_types import MEDIA_TYPES, UNKNOWN
from app.shared.storage import open_range
from app.shared.tables import Artifact


def _any_file(description: str) -> dict[str, Any]:
    return {"description": description, "content": {name: {} for name in sorted({*MEDIA_TYPES.values(), UNKNOWN})}}


RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
DOWNLOAD_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: _any_file("The file"),
    206: _any_file("The part of the file that Range asked for"),
    304: {"description": "If-None-Match names the file's ETag"},
    416: {
        "description": "The range lies outside of the file",
        "content": {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    },
}


@dataclass(frozen=True)
class Download:
    """What is sent, and the name it is saved under."""

    storage_key: str
    sha256: str
    size_bytes: int
    media_type: str
    filename: str
    inline: bool = False


def download_of(artifact: Artifact, *, filename: str | None = None, inline: bool = False) -> Download:
    """An artifact as a download, under its own name unless another is given."""
    return Download(
        artifact.storage_key,
        artifact.sha256,
        artifact.size_bytes,
        media_type=artifact.media_type,
        filename=filename or artifact.name,
        inline=inline,
    )


async def send_file(request: Request, store: ObjectStore, file: Download) -> Response:
    """200 with the file, 206 with a range of it, or 304. Raises ApiProblem 416, or 500 when the bytes are gone."""
    etag = f'"{file.sha256}"'
    headers = _headers(file, etag)
    if _names(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    start, stop = 0, file.size_bytes
    asked = _asked_range(request, etag, size_bytes=file.size_bytes)
    if asked is not None:
        start, stop = asked
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size_bytes}"
    headers["Content-Length"] = str(stop - start)
    try:
        chunks = await open_range(store, file.storage_key, start=start, stop=stop)
    except FileNotFoundError:
        raise ApiProblem("platform.content_missing", f"The bytes of {file.filename} are gone.") from None
    return StreamingResponse(chunks, 206 if asked else 200, headers, media_type=file.media_type)


def _headers(file: Download, etag: str) -> dict[str, str]:
    digest = base64.b64encode(bytes.fromhex(file.sha256)).decode()
    plain = re.sub(r'[^ -~]|["\\%]', "_", file.filename)
    disposition = "inline" if file.inline else "attachment"
    return {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Repr-Digest": f"sha-256=:{digest}:",
        "Content-Disposition": f"{disposition}; filename=\"{plain}\"; filename*=UTF-8''{quote(file.filename, safe='')}",
        "Cache-Control": "private, no-cache",
    }


def _names(header: str, etag: str) -> bool:
    return header.strip() == "*" or etag in [item.strip().removeprefix("W/") for item in header.split(",")]


def _asked_range(request: Request, etag: str, *, size_bytes: int) -> tuple[int, int] | None:
    """First byte and the one after the last; None for the whole file, also when Range is of a kind not supported."""
    match = RANGE.fullmatch(request.headers.get("range", "").strip())
    if match is None or match.groups() == ("", ""):
        return None
    if request.headers.get("if-range", etag) != etag:
        return None
    first, last = match.groups()
    start = int(first) if first else max(size_bytes - int(last), 0)
    stop = min(int(last) + 1, size_bytes) if first and last else size_bytes
    if first and last and int(last) < int(first):
        return None
    if start >= size_bytes:
        detail = f"The file has {size_bytes} bytes."
        headers = {"Content-Range": f"bytes */{size_bytes}"}
        raise ApiProblem("request.range_not_satisfiable", detail, hint="Ask for a range inside.", headers=headers)
    return start, stop
