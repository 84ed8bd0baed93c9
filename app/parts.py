"""One part of an upload, streamed into the store: of exactly its size, and with the digest it came with, if any."""

import base64
import binascii
import re
from collections.abc import AsyncIterator

from obstore.exceptions import BaseError as StoreError
from obstore.store import ObjectStore
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from app.errors import ApiProblem
from app.shared.storage import StoredFile, delete, put_stream

CONTENT_DIGEST = "content-digest"
# A member of an RFC 9530 dictionary: an algorithm and the bytes of its digest.
MEMBER = re.compile(r"\s*([a-z][a-z0-9_.*-]*)=:([A-Za-z0-9+/=]*):\s*")


def expected_digest(header: str | None) -> str | None:
    """The sha256 in a `Content-Digest` header as hex; other algorithms are not looked at.

    Raises ApiProblem `request.invalid`.
    """
    if header is None:
        return None
    members = [MEMBER.fullmatch(member) for member in header.split(",")]
    digests = {match.group(1): match.group(2) for match in members if match is not None}
    try:
        digest = base64.b64decode(digests["sha-256"], validate=True).hex() if "sha-256" in digests else None
    except binascii.Error:
        digest = ""
    if None in members or (digest is not None and len(digest) != 64):
        detail = f"Content-Digest is {header[:200]!r}, which is no digest."
        errors = [{"parameter": f"header {CONTENT_DIGEST}", "detail": detail}]
        hint = "Send sha-256=:BASE64:, the 32 bytes of the sha256 in base64 between colons, or leave it out."
        raise ApiProblem("request.invalid", detail, hint=hint, errors=errors)
    return digest


async def receive_part(request: Request, store: ObjectStore, *, key: str, number: int, size_bytes: int) -> StoredFile:
    """The body of a request as an object under `key`. Raises ApiProblem `upload.*`, and leaves nothing then."""
    digest = expected_digest(request.headers.get(CONTENT_DIGEST))
    length = request.headers.get("content-length")
    if length is not None and int(length) != size_bytes:
        raise _wrong_size(number, int(length), size_bytes=size_bytes)
    try:
        stored = await put_stream(store, _exactly(request.stream(), number, size_bytes=size_bytes), key=key)
    except ClientDisconnect:
        raise ApiProblem("upload.truncated", "The connection was closed during the part.") from None
    except (StoreError, OSError) as error:
        raise ApiProblem("platform.store_unavailable", "The part could not be stored.") from error
    if digest not in (None, stored.sha256):
        await run_in_threadpool(delete, store, key)
        detail = f"Content-Digest says that part {number} has the sha256 {digest}, but {stored.sha256} arrived."
        raise ApiProblem("upload.digest_mismatch", detail, hint="Send the part again; nothing of it was kept.")
    return stored


async def _exactly(chunks: AsyncIterator[bytes], number: int, *, size_bytes: int) -> AsyncIterator[bytes]:
    size = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > size_bytes:
            raise _wrong_size(number, size, size_bytes=size_bytes)
        yield chunk
    if size < size_bytes:
        raise _wrong_size(number, size, size_bytes=size_bytes)


def _wrong_size(number: int, size: int, *, size_bytes: int) -> ApiProblem:
    detail = f"Part {number} of this upload has {size_bytes:,} bytes; {size:,} or more came."
    if size < size_bytes:
        detail = f"Part {number} of this upload has {size_bytes:,} bytes; {size:,} came."
    return ApiProblem("upload.wrong_part_size", detail, hint="GET the upload for its part_bytes and part_count.")
