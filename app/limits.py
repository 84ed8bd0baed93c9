"""Sizes that are refused, each named in its own error."""

from collections.abc import AsyncIterator

from app.errors import ApiProblem

JSON_BODY_BYTES = 64 * 1024
MAX_DIMENSIONS = 8
# In each dimension of one input. The engine tries none that has more numbers altogether.
MAX_INPUT_SIDE = 1 << 24


async def limit_body(stream: AsyncIterator[bytes], *, max_bytes: int) -> AsyncIterator[bytes]:
    """The same stream, refused once it is longer than `max_bytes`."""
    size = 0
    async for chunk in stream:
        size += len(chunk)
        if size > max_bytes:
            raise body_too_large(max_bytes)
        yield chunk


def body_too_large(max_bytes: int) -> ApiProblem:
    """The problem for a body over the one-shot limit."""
    hint = "Send large files in parts (POST /v1/uploads), or ask the operator to raise ARCHREPAIR_ONE_SHOT_BODY_BYTES."
    detail = f"The body is larger than the limit one_shot_body_bytes of {max_bytes:,} bytes."
    return ApiProblem("upload.too_large", detail, hint=hint)


async def read_spec_bytes(chunks: AsyncIterator[bytes], *, max_bytes: int) -> bytes:
    """A spec's bytes, in memory because they are few."""
    raw = bytearray()
    async for chunk in chunks:
        raw += chunk
        if len(raw) > max_bytes:
            detail = f"The spec is larger than the limit spec_bytes of {max_bytes:,} bytes."
            raise ApiProblem("spec.too_large", detail, hint="Data belongs into file parts, not into the spec.")
    return bytes(raw)


async def read_small_body(stream: AsyncIterator[bytes], *, max_bytes: int = JSON_BODY_BYTES) -> bytes:
    """A body that is never more than a few fields."""
    raw = bytearray()
    async for chunk in stream:
        raw += chunk
        if len(raw) > max_bytes:
            detail = f"The body is larger than the {max_bytes:,} bytes this path takes."
            raise ApiProblem("request.too_large", detail, hint="See /docs for the fields it has.")
    return bytes(raw)
