"""The object store: contents by their hash or as they came in, artifacts by job and attempt. Local directory or S3."""

import asyncio
import contextlib
import hashlib
import shutil
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import obstore
from obstore.store import LocalStore, ObjectStore, S3Store
from typing_extensions import Buffer
from ulid import ULID

if TYPE_CHECKING:
    from obstore.store import RetryConfig  # only there for type checkers

# obstore buffers up to CHUNK_BYTES * CONCURRENT_CHUNKS of a stream: its defaults of 5 MiB * 12 cost 60 MiB per upload.
CHUNK_BYTES = 5 * 1024 * 1024
CONCURRENT_CHUNKS = 3
READ_BYTES = 256 * 1024
BLOCK_BYTES = 1024 * 1024
UPLOADS = "tmp"
BLOBS = "blobs"
# A dictionary that obstore's type checkers know as RetryConfig.
IMPATIENT: "RetryConfig" = {"max_retries": 1, "retry_timeout": timedelta(seconds=5)}


class DigestDiffers(Exception):
    """What was read is not what it should have been."""

    def __init__(self, expected: str, found: str) -> None:
        super().__init__(f"sha256 {expected} was expected, the bytes have {found}")
        self.expected = expected
        self.found = found


@dataclass(frozen=True)
class StoredFile:
    """An object in the store."""

    storage_key: str
    sha256: str
    size_bytes: int


def open_store(url: str, *, patient: bool = True) -> ObjectStore:
    """A store from `file:///directory` or `s3://bucket[/prefix]`; S3 is configured by the usual AWS_* variables.

    `patient` is what a running service is: it outlives a store that is away for some minutes.
    """
    parts = urlsplit(url)
    if parts.scheme == "file":
        return LocalStore(unquote(parts.path), mkdir=True)
    if parts.scheme == "s3":
        return S3Store.from_url(url) if patient else S3Store.from_url(url, retry_config=IMPATIENT)
    raise ValueError(f"store URL {url!r}: only file:///directory and s3://bucket are supported")


def artifact_prefix(job_id: str) -> str:
    """Where all files that a job leaves are."""
    return f"jobs/{job_id}"


def artifact_key(job_id: str, attempt: int, name: str) -> str:
    """Where an attempt's file goes: apart from every other attempt's, since a store has no fence."""
    return f"{artifact_prefix(job_id)}/attempt-{attempt}/{name}"


def blob_key(sha256: str) -> str:
    """Where a content is by its hash, whoever it belongs to."""
    return f"{BLOBS}/sha256/{sha256}"


def received_key(store: ObjectStore) -> str:
    """A key that nobody has, for bytes that come in: where they stay if to rename them would be to copy them."""
    return f"{UPLOADS if renames(store) else f'{BLOBS}/received'}/{ULID()}"


def renames(store: ObjectStore) -> bool:
    """Whether the store can give an object another name without copying its bytes."""
    return isinstance(store, LocalStore)


async def put_stream(store: ObjectStore, chunks: AsyncIterable[bytes], *, key: str | None = None) -> StoredFile:
    """Store a stream, under a key of its own if none is given, while hashing it.

    If `chunks` raises, nothing is left in the store. A directory is written by ourselves: the store's client copies
    every byte into a buffer of its own first, which costs as much as to write it. Raises OSError or its errors.
    """
    digest, key = hashlib.sha256(), key or received_key(store)
    if isinstance(store, LocalStore) and store.prefix is not None:
        size = await _write_file(Path(store.prefix) / key, chunks, digest.update, scratch=Path(store.prefix) / UPLOADS)
        return StoredFile(key, digest.hexdigest(), size)
    size = 0

    async def hashed() -> AsyncIterator[Buffer]:
        nonlocal size
        async for block in _worked_on(chunks, digest.update):
            size += len(block)
            yield block

    await obstore.put_async(store, key, hashed(), chunk_size=CHUNK_BYTES, max_concurrency=CONCURRENT_CHUNKS)
    return StoredFile(key, digest.hexdigest(), size)


async def _write_file(
    path: Path, chunks: AsyncIterable[bytes], hash_block: Callable[[bytearray], None], *, scratch: Path
) -> int:
    """A stream as a file that has its name only once it is whole. Returns its size in bytes."""
    scratch.mkdir(parents=True, exist_ok=True)
    unfinished, size = scratch / f"{ULID()}.unfinished", 0
    try:
        with unfinished.open("xb", buffering=0) as file:

            def take(block: bytearray) -> None:
                hash_block(block)
                _write_whole(file, block)

            async for block in _worked_on(chunks, take):
                size += len(block)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.replace(path)
    except BaseException:  # a cancelled request must not leave bytes behind either
        unfinished.unlink(missing_ok=True)
        raise
    return size


def _write_whole(file: FileIO, block: bytearray) -> None:
    """An unbuffered file may take less than it was given; where it takes none, it says so itself (OSError)."""
    left = memoryview(block)
    while left:
        left = left[file.write(left) :]


async def _worked_on(chunks: AsyncIterable[bytes], work: Callable[[bytearray], None]) -> AsyncIterator[bytearray]:
    """The same bytes in blocks; `work` is done on each in another thread, in order, while the next one is collected.

    All of it is done when this ends, and none is going on when it fails.
    """
    loop = asyncio.get_running_loop()
    working: asyncio.Future[None] | None = None
    try:
        async for block in _in_blocks(chunks):
            if working:
                await working
            working = loop.run_in_executor(None, work, block)
            yield block
        if working:
            await working
    finally:
        if working and not working.done():
            await asyncio.wait([working])


async def _in_blocks(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytearray]:
    """The same bytes in fewer pieces: to hand one over costs as much as to hash it."""
    block = bytearray()
    async for chunk in chunks:
        block += chunk
        if len(block) >= BLOCK_BYTES:
            yield block
            block = bytearray()
    if block:
        yield block


def rename_to_content(store: ObjectStore, received: StoredFile) -> StoredFile:
    """Move what came in to the key of its content. Raises FileNotFoundError when it is gone."""
    key = blob_key(received.sha256)
    obstore.rename(store, received.storage_key, key)
    return StoredFile(key, received.sha256, received.size_bytes)


async def assemble(store: ObjectStore, chunks: AsyncIterable[bytes], *, sha256: str | None) -> StoredFile:
    """Store one object of many chunks, under a key of its own, while hashing it.

    Raises DigestDiffers when a `sha256` is given and the bytes have another; whatever is raised, no object is left.
    """
    whole = await put_stream(store, chunks)
    if sha256 not in (None, whole.sha256):
        delete(store, whole.storage_key)
        raise DigestDiffers(str(sha256), whole.sha256)
    return whole


async def read_chunks(store: ObjectStore, key: str) -> AsyncIterator[bytes]:
    """An object in pieces. Raises FileNotFoundError when there is none."""
    found = await obstore.get_async(store, key)
    async for piece in found.stream(min_chunk_size=CHUNK_BYTES):
        yield bytes(piece)


def first_bytes(store: ObjectStore, key: str, count: int) -> bytes:
    """The beginning of an object. Raises FileNotFoundError when there is none."""
    size = obstore.head(store, key)["size"]
    return bytes(obstore.get_range(store, key, start=0, end=min(count, size))) if size else b""


def put_file(store: ObjectStore, key: str, path: Path) -> StoredFile:
    """Store a local file under `key`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    obstore.put(store, key, path, chunk_size=CHUNK_BYTES, max_concurrency=CONCURRENT_CHUNKS)
    return StoredFile(key, digest, path.stat().st_size)


def download(store: ObjectStore, key: str, path: Path, *, on_chunk: Callable[[], None] = lambda: None) -> None:
    """Copy an object to a local file. Raises FileNotFoundError when there is none; `on_chunk` may raise to stop it."""
    with path.open("wb") as file:
        for chunk in obstore.get(store, key).stream(min_chunk_size=CHUNK_BYTES):
            file.write(chunk)
            on_chunk()


async def open_range(store: ObjectStore, key: str, *, start: int, stop: int) -> AsyncIterator[bytes]:
    """The bytes start..stop-1 of an object, in pieces. Raises FileNotFoundError at once when there is none."""
    if start >= stop:  # stores refuse an empty range
        await obstore.head_async(store, key)
        return _pieces(None)
    found = await obstore.get_async(store, key, options={"range": (start, stop)})
    return _pieces(found.stream(min_chunk_size=READ_BYTES))


async def _pieces(stream: AsyncIterable[Buffer] | None) -> AsyncIterator[bytes]:
    if stream is not None:
        async for piece in stream:
            yield bytes(piece)


def probe(store: ObjectStore) -> None:
    """Raises what the store's client raises when the store does not answer."""
    with contextlib.suppress(FileNotFoundError):  # the store said so: it answers
        obstore.head(store, f"{UPLOADS}/probe")


def delete(store: ObjectStore, key: str) -> None:
    """Remove an object; one that is not there is no error."""
    try:
        obstore.delete(store, key)
    except FileNotFoundError:
        return


def delete_prefix(store: ObjectStore, prefix: str) -> None:
    """Remove all objects under `prefix`; on a local store also what was never finished, which `list` hides."""
    if isinstance(store, LocalStore) and store.prefix is not None:
        shutil.rmtree(Path(store.prefix) / prefix, ignore_errors=True)
        return
    for page in obstore.list(store, prefix):
        for item in page:
            delete(store, item["path"])


def sizes_under(store: ObjectStore, prefix: str) -> dict[str, int]:
    """Key to bytes of all objects under `prefix`."""
    return {item["path"]: item["size"] for page in obstore.list(store, prefix) for item in page}


def open_signer(url: str, *, public_endpoint: str | None) -> S3Store | None:
    """The store as clients will name it, to sign URLs with; None where there is nothing to sign."""
    if urlsplit(url).scheme != "s3":
        return None
    return S3Store.from_url(url, endpoint=public_endpoint) if public_endpoint else S3Store.from_url(url)


def sign_puts(signer: S3Store, keys: Sequence[str], *, seconds: float) -> list[str]:
    """A URL for each key with which anybody may write it, for so long."""
    return list(obstore.sign(signer, "PUT", list(keys), timedelta(seconds=seconds))) if keys else []


def sweep_uploads(store: ObjectStore, *, older_than_seconds: float) -> int:
    """Remove uploads that a killed gateway left unfinished or never kept; returns how many.

    On S3 the parts of an unfinished upload are not listed: a lifecycle rule of the bucket has to end those.
    """
    return sum(remove_old(store, key) for key in old_keys(store, UPLOADS, older_than_seconds=older_than_seconds))


def old_keys(store: ObjectStore, prefix: str, *, older_than_seconds: float) -> Iterator[str]:
    """What lies under `prefix` for longer; on a local store also what was never finished, which `list` hides."""
    before = time.time() - older_than_seconds
    if isinstance(store, LocalStore) and store.prefix is not None:
        root = Path(store.prefix)
        paths = (path for path in (root / prefix).rglob("*") if _is_old_file(path, before))
        yield from (path.relative_to(root).as_posix() for path in paths)
        return
    for page in obstore.list(store, prefix):
        yield from (item["path"] for item in page if item["last_modified"].timestamp() < before)


def remove_old(store: ObjectStore, key: str) -> bool:
    """Remove what `old_keys` found; False when it is gone already."""
    if isinstance(store, LocalStore) and store.prefix is not None:
        try:
            (Path(store.prefix) / key).unlink()
        except FileNotFoundError:  # its gateway lives, or another worker sweeps too
            return False
        return True
    delete(store, key)
    return True


def _is_old_file(path: Path, before: float) -> bool:
    try:
        return path.is_file() and path.stat().st_mtime < before
    except FileNotFoundError:
        return False
