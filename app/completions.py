"""Making one file of an upload's parts, in threads of its own: for gigabytes it takes longer than a request may.

Few at a time, since each reads and writes as fast as the store lets it. What a thread finds is written into the row,
where any gateway sees it.
"""

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import structlog
from obstore.store import ObjectStore
from sqlalchemy.orm import Session, sessionmaker

from app.shared import storage
from app.shared.storage import DigestDiffers, StoredFile
from app.shared.tables import UploadPart
from app.shared.uploads import (
    COMPLETION_LEASE_SECONDS,
    FAILED,
    OPEN,
    Completion,
    end_completion,
    keep_completed,
    prefix_of,
    renew_completion,
    signed_part_key,
)

AT_ONCE = 2
RENEW_SECONDS = COMPLETION_LEASE_SECONDS / 3
STOP_SECONDS = 5.0


class LeaseLost(Exception):
    """Another gateway completes the upload, or it was deleted, or this gateway stops."""


class PartDiffers(Exception):
    """A part that came by a signed URL is not what the client says it is."""

    def __init__(self, part: UploadPart, found: str) -> None:
        super().__init__(f"Part {part.number} should have the sha256 {part.sha256}, and has {found}")


@dataclass
class Completions:
    """The threads of one gateway."""

    sessions: sessionmaker[Session]
    store: ObjectStore
    keep_seconds: float
    room: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(AT_ONCE))
    stopping: threading.Event = field(default_factory=threading.Event)
    threads: set[threading.Thread] = field(default_factory=set)

    def start(self, completion: Completion) -> None:
        """Copy in the background; the caller has taken a place in `room`, which is given back in the end."""
        thread = threading.Thread(target=self._run, args=(completion,), name=completion.upload_id, daemon=True)
        self.threads.add(thread)
        thread.start()

    def stop(self) -> None:
        """Give running copies up: the client's next request begins them again, on another gateway."""
        self.stopping.set()
        for thread in list(self.threads):
            thread.join(STOP_SECONDS)

    def _run(self, completion: Completion) -> None:
        log = structlog.get_logger().bind(upload_id=completion.upload_id)
        copy = _Copy(self, completion)
        try:
            asyncio.run(copy.run())
        except LeaseLost:
            log.info("completion given up")
            copy.end(state=OPEN)
        except (DigestDiffers, PartDiffers) as error:
            copy.end(state=FAILED, error=_problem(completion, error))
            storage.delete_prefix(self.store, prefix_of(completion.upload_id))
        except Exception:  # the border of the thread: whatever it was, the client may ask again
            log.exception("completion failed")
            copy.end(state=OPEN)
        finally:
            self.threads.discard(threading.current_thread())
            self.room.release()


@dataclass
class _Copy:
    """One completion under way. `lease_until` changes with every renewal."""

    owner: Completions
    completion: Completion
    lease_until: float = field(init=False)
    renewed_at: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.lease_until = self.completion.lease_until

    async def run(self) -> None:
        """Copy the parts into one object, keep that, and remove them."""
        whole = await storage.assemble(self.owner.store, self, sha256=self.completion.sha256)
        try:
            self._keep(whole)
        except LeaseLost:
            storage.delete(self.owner.store, whole.storage_key)
            raise
        storage.delete_prefix(self.owner.store, prefix_of(self.completion.upload_id))

    def _keep(self, whole: StoredFile) -> None:
        with self.owner.sessions.begin() as session:
            if not keep_completed(
                session,
                self.owner.store,
                self.completion.upload_id,
                self.lease_until,
                whole=whole,
                keep_seconds=self.owner.keep_seconds,
            ):
                raise LeaseLost

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self.completion.parts:
            by_client = part.storage_key == signed_part_key(part.upload_id, part.number)
            digest = hashlib.sha256()
            async for chunk in storage.read_chunks(self.owner.store, part.storage_key):
                self._beat()
                if by_client:  # what came through a gateway was hashed there
                    digest.update(chunk)
                yield chunk
            if by_client and digest.hexdigest() != part.sha256:
                raise PartDiffers(part, digest.hexdigest())

    def _beat(self) -> None:
        if self.owner.stopping.is_set():
            raise LeaseLost
        if time.monotonic() - self.renewed_at > RENEW_SECONDS:
            with self.owner.sessions.begin() as session:
                renewed = renew_completion(session, self.completion.upload_id, self.lease_until)
            if renewed is None:
                raise LeaseLost
            self.lease_until, self.renewed_at = renewed, time.monotonic()

    def end(self, **values: Any) -> None:
        with self.owner.sessions.begin() as session:
            end_completion(session, self.completion.upload_id, self.lease_until, **values)


def _problem(completion: Completion, error: DigestDiffers | PartDiffers) -> dict[str, Any]:
    detail = f"{error}."
    if isinstance(error, DigestDiffers):
        detail = f"The file should have the sha256 {error.expected}, but its parts make {error.found}."
    hint = "Check the file and its sha256, and upload it again; Content-Digest with each part finds the wrong one."
    return {"code": "upload.digest_mismatch", "detail": detail, "hint": hint, "category": "user"}
