"""Data a job refers to by a URL or a path: fetched here, where there is a network, and never opened.

What has arrived is put into our store and noted as an input of the job before anything is done with it, so that every
later attempt works on the same bytes, whatever the reference leads to by then.
"""

import hashlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError as StoreError
from obstore.store import ObjectStore, from_url
from sqlalchemy.orm import Session, sessionmaker

from app.shared import storage
from app.shared.contents import lock_contents
from app.shared.egress import EgressError, EgressPolicy
from app.shared.fetch import fetch_to_file
from app.shared.jobs import Claim, record_input
from app.shared.references import (
    REMOTE,
    Reference,
    ReferenceRefused,
    parse_reference,
    path_of,
    references_in,
    shards_of,
)
from app.shared.references import require_allowed as require_place
from app.shared.settings import Settings
from app.shared.storage import StoredFile
from app.shared.tables import JobInput

TRANSIENT = ("unreachable", "timed_out")
_COPY_BYTES = 1 << 20


class FetchFailed(Exception):
    """The data of a reference could not be had: the customer's turn. `code` is one of `dataset.`."""

    def __init__(self, code: str, detail: str, *, hint: str = "") -> None:
        super().__init__(detail)
        self.problem = {"code": f"dataset.{code}", "detail": detail, "hint": hint, "category": "user"}


def missing_references(claim: Claim) -> dict[str, Reference]:
    """Text to reference of those that have to be fetched: an attempt before may have done so."""
    there = {name for name, _, _ in claim.inputs}
    texts = set(references_in(claim.spec).values()) - there
    found = {text: parse_reference(text) for text in sorted(texts)}
    return {text: reference for text, reference in found.items() if reference.kind in REMOTE}


def fetch_reference(reference: Reference, path: Path, settings: Settings) -> StoredFile:
    """Copy what a reference leads to, to a local file. Raises FetchFailed."""
    policy = EgressPolicy(settings.egress_allow)
    try:
        require_place(reference, roots=settings.dataset_roots, buckets=settings.dataset_buckets, policy=policy)
        if reference.kind == "https":
            fetched = fetch_to_file(
                reference.target,
                path,
                policy=policy,
                max_bytes=settings.dataset_bytes,
                seconds=settings.dataset_fetch_seconds,
                sha256=reference.sha256,
            )
            return StoredFile(storage.blob_key(fetched.sha256), fetched.sha256, fetched.size_bytes)
        read = partial(_file_chunks, settings=settings) if reference.kind == "file" else _object_chunks
        chunks = chain.from_iterable(map(read, shards_of(reference)))
        return _write(chunks, path, reference, max_bytes=settings.dataset_bytes)
    except (EgressError, ReferenceRefused) as error:
        raise FetchFailed(error.code, error.detail, hint=error.hint) from None


def keep_fetched(
    sessions: sessionmaker[Session], store: ObjectStore, claim: Claim, path: Path, job_input: JobInput
) -> bool:
    """Put the file into the store and note it as an input of the job. False: the lease is lost.

    Raises FileNotFoundError when an equal content was freed at that very moment: to be done again.
    """
    storage.put_file(store, job_input.storage_key, path)
    with sessions.begin() as session:
        lock_contents(session, [job_input.sha256])
        obstore.head(store, job_input.storage_key)
        return record_input(session, claim, job_input)


def _write(chunks: Iterator[bytes], path: Path, reference: Reference, *, max_bytes: int) -> StoredFile:
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for chunk in chunks:
            size += len(chunk)
            if size > max_bytes:
                detail = f"{reference.shown} has more than the {max_bytes:,} bytes that are fetched."
                raise FetchFailed("too_large", detail, hint="The operator can raise ARCHREPAIR_DATASET_BYTES.")
            digest.update(chunk)
            file.write(chunk)
    if reference.sha256 not in (None, digest.hexdigest()):
        detail = f"{reference.shown} has the sha256 {digest.hexdigest()}, not {reference.sha256} as asked."
        raise FetchFailed("digest_mismatch", detail, hint="It has changed since, or another was meant.")
    return StoredFile(storage.blob_key(digest.hexdigest()), digest.hexdigest(), size)


def _object_chunks(reference: Reference) -> Iterator[bytes]:
    """An object of an operator's bucket, with the operator's credentials from the environment."""
    parts = urlsplit(reference.target)
    store = from_url(f"{reference.kind}://{parts.netloc}")
    try:
        for chunk in obstore.get(store, unquote(parts.path).lstrip("/")).stream():
            yield bytes(chunk)
    except FileNotFoundError:
        hint = "Check bucket and path."
        raise FetchFailed("not_there", f"There is no object {reference.shown}.", hint=hint) from None
    except StoreError as error:
        detail = f"{reference.shown} cannot be read: {type(error).__name__}."
        raise FetchFailed("unreachable", detail, hint="Ask the operator whether the workers may read it.") from None


def _file_chunks(reference: Reference, settings: Settings) -> Iterator[bytes]:
    with _opened_under(settings.dataset_roots, path_of(reference), reference) as descriptor:
        while chunk := os.read(descriptor, _COPY_BYTES):
            yield chunk


@contextmanager
def _opened_under(roots: tuple[str, ...], path: str, reference: Reference) -> Iterator[int]:
    """A plain file under one of `roots`, opened step by step: a link, put there at whatever moment, leads nowhere."""
    root = max((root for root in roots if PurePosixPath(path).is_relative_to(root)), key=len)
    steps = PurePosixPath(path).relative_to(root).parts
    descriptor = -1
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        for step in steps:
            inner = os.open(step, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FetchFailed("not_there", f"{reference.target} is not a plain file.", hint="Name a file.")
        yield descriptor
    except OSError:
        detail = f"{reference.target} cannot be read: it is not there, or a link is on its path."
        raise FetchFailed("not_there", detail, hint="Name the file itself; links are not followed.") from None
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def run_watched(action: Callable[[], StoredFile], interrupted: Callable[[], bool], poll_seconds: float) -> StoredFile:
    """Run `action` in a thread that is left alone once `interrupted`. Raises what it raises, or TimeoutError."""
    result: list[StoredFile] = []
    failure: list[Exception] = []

    def run() -> None:
        try:
            result.append(action())
        except Exception as error:  # noqa: BLE001  carried over to the thread that waits
            failure.append(error)

    thread = threading.Thread(target=run, name="fetch", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(poll_seconds)
        if interrupted():
            raise TimeoutError("the job was interrupted while its data came in")
    if failure:
        raise failure[0]
    return result[0]
