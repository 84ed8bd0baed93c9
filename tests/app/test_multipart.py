import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import ApiProblem
from app.multipart import read_parts

CONTENT_TYPE = "multipart/form-data; boundary=limit"


def encode(parts: list[tuple[str, bytes]]) -> bytes:
    head = '--limit\r\ncontent-disposition: form-data; name="{}"; filename="{}.bin"\r\n\r\n'
    return b"".join(head.format(name, name).encode() + content + b"\r\n" for name, content in parts) + b"--limit--\r\n"


async def cut(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


def decode(body: bytes, size: int) -> list[tuple[str, str, bytes]]:
    async def read() -> list[tuple[str, str, bytes]]:
        found = []
        async for part in read_parts(cut(body, size), CONTENT_TYPE):
            found.append((part.name, part.filename, b"".join([chunk async for chunk in part.chunks])))
        return found

    return asyncio.run(read())


@given(
    contents=st.lists(st.lists(st.sampled_from([b"\r\n--limit", b"\r\n", b"--", b"x", b"\x00", b"-"])), max_size=3),
    size=st.integers(1, 40),
)
def test_parts_come_out_as_they_went_in_however_the_body_is_cut(contents: list[list[bytes]], size: int):
    parts = [(f"part{number}", b"".join(pieces)) for number, pieces in enumerate(contents)]
    if not parts or any(b"\r\n--limit" in b"\r\n" + content + b"\r\n" for _, content in parts):
        return  # that content would hold the boundary, which a sender must avoid
    assert decode(encode(parts), size) == [(name, f"{name}.bin", content) for name, content in parts]


@given(name=st.text(st.characters(exclude_characters='"\\\r\n', codec="utf-8"), min_size=1))
def test_a_file_may_be_named_in_any_language(name: str):
    assert decode(encode([(name, b"content")]), size=64) == [(name, f"{name}.bin", b"content")]


def test_a_name_that_is_not_utf8_does_no_harm():
    ((name, _, content),) = decode(encode([("NAME", b"content")]).replace(b"NAME", b"\xff\xfe"), size=64)
    assert (name, content) == ("\ufffd\ufffd", b"content")


def test_a_part_that_is_only_begun_to_be_read_does_not_spill_into_the_next():
    async def read() -> list[str]:
        names = []
        async for part in read_parts(cut(encode([("a", b"12345678" * 9), ("b", b"x")]), 7), CONTENT_TYPE):
            names.append(part.name)
            await anext(part.chunks)
        return names

    assert asyncio.run(read()) == ["a", "b"]


def test_nothing_is_read_ahead_of_its_consumer():
    pulled = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal pulled
        async for chunk in cut(encode([("spec", b"{}"), ("model", b"x" * 100_000)]), 1000):
            pulled += 1
            yield chunk

    async def read() -> None:
        parts = read_parts(counted(), CONTENT_TYPE)
        spec = await anext(parts)
        async for _ in spec.chunks:
            continue

    asyncio.run(read())
    assert pulled == 1


@pytest.mark.parametrize("body", [b"", b"--limit\r\n", encode([("a", b"b")])[:-6]])
def test_a_body_that_ends_too_early_is_refused(body: bytes):
    with pytest.raises(ApiProblem, match=r"upload\.truncated"):
        decode(body, 50)
