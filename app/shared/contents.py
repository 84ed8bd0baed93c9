"""The bytes that rows refer to: equal files share one object, which is deleted with the last row that names it.

Callers own the transaction.
"""

from collections.abc import Sequence

import obstore
from obstore.store import ObjectStore
from sqlalchemy import exists, func, or_, select, union_all
from sqlalchemy.orm import Session

from app.shared import storage
from app.shared.storage import StoredFile
from app.shared.tables import Dataset, JobInput, Model, Upload

# Inputs of jobs are not hidden first: their rows go with the job.
HIDDEN_FIRST = (Model, Upload, Dataset)


def lock_contents(session: Session, sha256s: Sequence[str]) -> None:
    """Until this transaction ends, nobody else adds or drops references to these contents.

    Between "nothing refers to it" and its deletion, an equal upload must not come in.
    """
    session.connection()  # begins the transaction now, which on SQLite is the lock: it has one writer
    if session.get_bind().dialect.name == "postgresql":
        for sha256 in sorted(set(sha256s)):  # in one order: two uploads of the same files must not wait for each other
            session.execute(select(func.pg_advisory_xact_lock(int(sha256[:15], 16))))


def keep_content(session: Session, store: ObjectStore, received: StoredFile) -> StoredFile:
    """Where this content is from now on: with an equal one that rows name, else where it is cheapest to leave it.

    Call it under `lock_contents`, in the transaction that writes the row. A directory renames the file to the key of
    its content. S3 would copy it, which takes as long as to upload it: there it stays under the key it came in with.
    """
    if storage.renames(store):
        return storage.rename_to_content(store, received)
    equal = _key_of_equal(session, received.sha256)
    if equal is None or not _is_there(store, equal):
        return received
    storage.delete(store, received.storage_key)
    return StoredFile(equal, received.sha256, received.size_bytes)


def free_content(session: Session, store: ObjectStore, *, sha256: str, storage_key: str) -> bool:
    """Delete a content's bytes when nothing refers to them any more. Call it after the deletion is committed."""
    lock_contents(session, [sha256])
    owned = [exists().where(table.storage_key == storage_key, table.deleted_at.is_(None)) for table in HIDDEN_FIRST]
    of_inputs = exists().where(JobInput.storage_key == storage_key)
    unused = not session.scalar(select(or_(*owned, of_inputs)))
    if unused:
        storage.delete(store, storage_key)
    return unused


def _key_of_equal(session: Session, sha256: str) -> str | None:
    """The key of an equal content that a row keeps from being deleted."""
    owned = [
        select(table.storage_key).where(
            table.sha256 == sha256, table.storage_key.is_not(None), table.deleted_at.is_(None)
        )
        for table in HIDDEN_FIRST
    ]
    of_inputs = select(JobInput.storage_key).where(JobInput.sha256 == sha256)
    return session.scalar(union_all(*owned, of_inputs).limit(1))


def _is_there(store: ObjectStore, key: str) -> bool:
    try:
        obstore.head(store, key)
    except FileNotFoundError:
        return False
    return True
