import asyncio
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import obstore
import pytest
from obstore.store import MemoryStore

from app.shared.storage import (
    DigestDiffers,
    assemble,
    delete,
    delete_prefix,
    download,
    open_range,
    open_store,
    put_file,
    put_stream,
    read_chunks,
    rename_to_content,
    sweep_uploads,
)


def files_in(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


async def pieces(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


def test_a_directory_keeps_an_upload_under_the_hash_of_its_content(tmp_path: Path):
    store = open_store((tmp_path / "objects with space").as_uri())

    async def upload():
        return rename_to_content(store, await put_stream(store, pieces(b"abc", b"defg")))

    first, second = asyncio.run(upload()), asyncio.run(upload())
    sha256 = hashlib.sha256(b"abcdefg").hexdigest()
    assert first == second
    assert (first.storage_key, first.sha256, first.size_bytes) == (f"blobs/sha256/{sha256}", sha256, 7)
    assert files_in(tmp_path / "objects with space") == [f"blobs/sha256/{sha256}"]


def test_a_stream_that_breaks_off_leaves_nothing(tmp_path: Path):
    store = open_store(tmp_path.as_uri())

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 6_000_000
        raise ConnectionError("the client went away")

    with pytest.raises(ConnectionError, match="went away"):
        asyncio.run(put_stream(store, broken()))
    assert files_in(tmp_path) == []


def test_what_killed_gateways_left_is_swept_and_what_still_comes_in_is_not(tmp_path: Path):
    store = open_store(tmp_path.as_uri())
    code = (
        "import asyncio, os\n"
        "from app.shared.storage import open_store, put_stream\n"
        "async def killed():\n"
        "    yield b'x' * 12_000_000\n"
        "    await asyncio.sleep(0.2)\n"
        "    os.kill(os.getpid(), 9)\n"
        "    yield b''\n"
        f"asyncio.run(put_stream(open_store({tmp_path.as_uri()!r}), killed()))\n"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    fresh = asyncio.run(put_stream(store, pieces(b"fresh")))
    (left,) = [name for name in files_in(tmp_path) if name != fresh.storage_key]
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "kept").write_bytes(b"old, but no upload")
    for name in (left, "blobs/kept"):
        os.utime(tmp_path / name, (1.0, 1.0))

    assert sweep_uploads(store, older_than_seconds=3600) == 1
    assert files_in(tmp_path) == ["blobs/kept", fresh.storage_key]
    assert sweep_uploads(store, older_than_seconds=3600) == 0


def test_a_store_that_is_no_directory_is_swept_by_its_list():
    store = MemoryStore()
    obstore.put(store, "tmp/left", b"x")
    obstore.put(store, "blobs/kept", b"x")
    assert sweep_uploads(store, older_than_seconds=3600) == 0
    assert sweep_uploads(store, older_than_seconds=-3600) == 1
    assert [item["path"] for page in obstore.list(store) for item in page] == ["blobs/kept"]


def test_a_file_goes_in_and_comes_out(tmp_path: Path):
    store = open_store((tmp_path / "objects").as_uri())
    (tmp_path / "in").write_bytes(bytes(range(256)) * 40_000)
    stored = put_file(store, "jobs/job_1/attempt-1/repaired.pt", tmp_path / "in")
    download(store, stored.storage_key, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()
    assert stored.sha256 == hashlib.sha256((tmp_path / "in").read_bytes()).hexdigest()
    delete(store, stored.storage_key)
    delete(store, stored.storage_key)
    with pytest.raises(FileNotFoundError):
        download(store, stored.storage_key, tmp_path / "again")


def test_a_range_is_just_those_bytes(tmp_path: Path):
    store = open_store(tmp_path.as_uri())
    (tmp_path / "in").write_bytes(b"0123456789")

    async def read(start: int, stop: int) -> bytes:
        return b"".join([piece async for piece in await open_range(store, "in", start=start, stop=stop)])

    assert asyncio.run(read(2, 5)) == b"234"
    assert asyncio.run(read(0, 0)) == b""


def test_a_store_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="ftp://host"):
        open_store("ftp://host/x")


def test_one_object_is_made_of_many_and_only_if_it_is_the_right_one(tmp_path: Path):
    store = open_store(tmp_path.as_uri())
    obstore.put(store, "parts/1", b"abc")
    obstore.put(store, "parts/2", b"defg")
    sha256 = hashlib.sha256(b"abcdefg").hexdigest()

    class Chunks:
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for number in (1, 2):
                async for chunk in read_chunks(store, f"parts/{number}"):
                    yield chunk

    with pytest.raises(DigestDiffers, match=sha256):
        asyncio.run(assemble(store, Chunks(), sha256="0" * 64))
    assert files_in(tmp_path) == ["parts/1", "parts/2"]
    whole = asyncio.run(assemble(store, Chunks(), sha256=None))
    rename_to_content(store, whole)
    assert (whole.sha256, whole.size_bytes) == (sha256, 7)
    assert (tmp_path / "blobs" / "sha256" / sha256).read_bytes() == b"abcdefg"
    delete_prefix(store, "parts")
    assert files_in(tmp_path) == [f"blobs/sha256/{sha256}"]
    with pytest.raises(FileNotFoundError):
        rename_to_content(store, whole)
