"""A large file that comes in parts: `open → completing → completed | failed`, or `expired`.

Every part is an object of its own under the upload's prefix, so a part sent again never touches the bytes of the one
before. To complete is to copy them into one: that takes minutes for gigabytes, so a gateway holds the row by a lease
meanwhile. A gateway that dies loses it, and whoever is asked next copies again. The lease is its own token: a copy that
has lost it finds another time in the row and writes nothing. Callers own the transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from obstore.store import ObjectStore
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session, sessionmaker
from ulid import ULID

from app.shared import storage
from app.shared.contents import free_content, keep_content, lock_contents
from app.shared.db import db_now
from app.shared.storage import StoredFile
from app.shared.tables import Upload, UploadPart

OPEN, COMPLETING, COMPLETED, FAILED, EXPIRED = "open", "completing", "completed", "failed", "expired"
PREFIX = "uploads"
COMPLETION_LEASE_SECONDS = 30.0
EXPIRY_BATCH = 50


@dataclass(frozen=True)
class Completion:
    """The right to copy an upload's parts into one, and what it needs for it."""

    upload_id: str
    size_bytes: int
    sha256: str | None
    parts: tuple[UploadPart, ...]
    lease_until: float


def part_sizes(upload: Upload) -> list[int]:
    """The bytes of each part: all alike but the last, which has the rest."""
    whole, rest = divmod(upload.size_bytes, upload.part_bytes)
    return [upload.part_bytes] * whole + [rest] * (rest > 0)


def prefix_of(upload_id: str) -> str:
    """Where all bytes of an upload are until it is completed."""
    return f"{PREFIX}/{upload_id}"


def new_part_key(upload_id: str, number: int) -> str:
    """A key nobody has: two requests that send the same part at once must not write into one object."""
    return f"{prefix_of(upload_id)}/{number}-{ULID()}"


def signed_part_key(upload_id: str, number: int) -> str:
    """The key a signed URL lets its holder write, until the URL expires: what is there can change at any time."""
    return f"{prefix_of(upload_id)}/signed/{number}"


def state_of(upload: Upload, now: float) -> str:
    """The state a client can count on: a copy whose gateway died is as good as never begun."""
    abandoned = upload.state == COMPLETING and (upload.lease_until or 0) < now
    state = OPEN if abandoned else upload.state
    return EXPIRED if state == OPEN and upload.expires_at < now else state


def locked_upload(session: Session, upload_id: str) -> tuple[Upload, str]:
    """The row, locked until the transaction ends, and its state."""
    upload = session.get_one(Upload, upload_id, with_for_update=True, populate_existing=True)
    return upload, state_of(upload, session.scalars(select(db_now())).one())


def parts_of(session: Session, upload_id: str) -> Sequence[UploadPart]:
    """The parts that have arrived, by number."""
    return session.scalars(
        select(UploadPart).where(UploadPart.upload_id == upload_id).order_by(UploadPart.number)
    ).all()


def record_part(session: Session, upload_id: str, number: int, stored: StoredFile) -> str | None:
    """Note a part of an upload that is open and locked. Returns the key of the part it takes the place of, if any."""
    before = session.get(UploadPart, (upload_id, number))
    if before is not None:
        session.delete(before)
        session.flush()
    session.add(UploadPart(upload_id=upload_id, number=number, **vars(stored)))
    return before.storage_key if before is not None and before.storage_key != stored.storage_key else None


def begin_completion(session: Session, upload: Upload) -> Completion:
    """Take the lease on an upload that is open, locked, and has all its parts."""
    now = session.scalars(select(db_now())).one()
    upload.state, upload.lease_until = COMPLETING, now + COMPLETION_LEASE_SECONDS
    return Completion(
        upload.id, upload.size_bytes, upload.sha256, tuple(parts_of(session, upload.id)), upload.lease_until
    )


def renew_completion(session: Session, upload_id: str, lease_until: float) -> float | None:
    """The new end of the lease; None when it is lost, or the upload is deleted."""
    held = update(Upload).where(*_held(upload_id, lease_until))
    renewed = held.values(lease_until=db_now() + COMPLETION_LEASE_SECONDS).returning(Upload.lease_until)
    return session.scalar(renewed.execution_options(synchronize_session=False))


def end_completion(session: Session, upload_id: str, lease_until: float, **values: Any) -> bool:
    """Write how the copy ended. False: the lease is lost, or the upload is deleted, and nothing is written."""
    ended = update(Upload).where(*_held(upload_id, lease_until)).values(lease_until=None, **values)
    return session.scalar(ended.returning(Upload.id).execution_options(synchronize_session=False)) is not None


def keep_completed(
    session: Session, store: ObjectStore, upload_id: str, lease_until: float, *, whole: StoredFile, keep_seconds: float
) -> bool:
    """The whole becomes the upload's content. False as above.

    Under the lock on its content: an equal one may be deleted as unused at the same time.
    """
    lock_contents(session, [whole.sha256])
    values = {"sha256": whole.sha256, "completed_at": db_now(), "expires_at": db_now() + keep_seconds}
    if not end_completion(session, upload_id, lease_until, state=COMPLETED, **values):
        return False
    kept = keep_content(session, store, whole)
    session.execute(update(Upload).where(Upload.id == upload_id).values(storage_key=kept.storage_key))
    return True


def _held(upload_id: str, lease_until: float) -> tuple[Any, ...]:
    held = (Upload.state == COMPLETING, Upload.lease_until == lease_until)
    return (Upload.id == upload_id, Upload.deleted_at.is_(None), *held)


def free_upload(sessions: sessionmaker[Session], store: ObjectStore, upload: Upload) -> None:
    """Remove the bytes of an upload that is deleted, expired or failed, its content only if nothing refers to it.

    Apart from the transaction that said so: should this fail, some bytes stay; the other way round, they would be
    missed.
    """
    storage.delete_prefix(store, prefix_of(upload.id))
    with sessions.begin() as session:
        session.execute(delete(UploadPart).where(UploadPart.upload_id == upload.id))
        session.execute(update(Upload).where(Upload.id == upload.id).values(storage_key=None))
        if upload.storage_key is not None and upload.sha256 is not None:
            free_content(session, store, sha256=upload.sha256, storage_key=upload.storage_key)


def free_expired_uploads(sessions: sessionmaker[Session], store: ObjectStore) -> list[str]:
    """End the uploads nobody finished or registered in time, and remove their bytes. Returns their ids.

    Models, datasets and jobs that were made of an upload keep its content.
    """
    free = (Upload.lease_until.is_(None)) | (Upload.lease_until < db_now())
    overdue = select(Upload).where(
        Upload.expires_at < db_now(), Upload.state != EXPIRED, Upload.deleted_at.is_(None), free
    )
    with sessions.begin() as session:
        rows = session.scalars(
            overdue.order_by(Upload.expires_at).limit(EXPIRY_BATCH).with_for_update(skip_locked=True)
        ).all()
        for row in rows:
            row.state, row.lease_until = EXPIRED, None
    for row in rows:
        free_upload(sessions, store, row)
    return [row.id for row in rows]
