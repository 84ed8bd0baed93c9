"""Bytes that no row names: of attempts that were lost, and of files whose row was never committed.

A store has no transactions. Whoever is killed between storing bytes and committing the row that names them leaves bytes
of nobody; these sweeps take them away.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import islice

import structlog
from obstore.store import ObjectStore
from sqlalchemy import exists, select
from sqlalchemy.orm import Session, sessionmaker

from app.shared.contents import free_content
from app.shared.db import db_now
from app.shared.jobs import DONE
from app.shared.storage import BLOBS, old_keys, remove_old
from app.shared.tables import Artifact, Attempt, Dataset, Job, JobInput, Model, Upload

# SQLite takes 32,766 parameters; a page of S3 has 1,000 keys.
BATCH = 1000
FEW, FEW_SHARE = 20, 0.05
_SHA256 = re.compile(r"[0-9a-f]{64}")


def sweep_attempts(
    sessions: sessionmaker[Session], store: ObjectStore, *, since_seconds: float, older_than_seconds: float
) -> int:
    """Remove what lost attempts left of jobs that ended within `since_seconds`; returns how many files.

    Only what is older, so that no worker is still at it.
    """
    another = exists().where(Attempt.job_id == Job.id, Attempt.cause != "succeeded")
    ended = select(Job.id).where(Job.status.in_(DONE), Job.finished_at > db_now() - since_seconds, another)
    with sessions() as session:
        job_ids = session.scalars(ended).all()
    return sum(_sweep_job(sessions, store, job_id, older_than_seconds) for job_id in job_ids)


def _sweep_job(sessions: sessionmaker[Session], store: ObjectStore, job_id: str, older_than_seconds: float) -> int:
    prefix = f"jobs/{job_id}"
    found = [key for key in old_keys(store, prefix, older_than_seconds=older_than_seconds)
             if key.startswith(f"{prefix}/attempt-")]  # fmt: skip
    if not found:
        return 0
    with sessions() as session:
        named = set(session.scalars(select(Artifact.storage_key).where(Artifact.job_id == job_id)))
    return sum(remove_old(store, key) for key in found if key not in named)


def sweep_contents(sessions: sessionmaker[Session], store: ObjectStore, *, older_than_seconds: float) -> int:
    """Remove contents that are older and that nothing refers to; returns how many.

    Few are: whoever was killed was so within milliseconds. Where many are, the database is more likely not the one this
    store belongs to, and nothing is removed.
    """
    unnamed: list[str] = []
    count = 0
    for keys in _batches(old_keys(store, BLOBS, older_than_seconds=older_than_seconds)):
        unnamed += _unnamed(sessions, keys)
        count += len(keys)
    if len(unnamed) > max(FEW, count * FEW_SHARE):
        what = "objects are left alone: is this the database of this store?"
        structlog.get_logger().warning("many contents belong to nobody", unnamed=len(unnamed), of=count, hint=what)
        return 0
    return sum(_free(sessions, store, key) for key in unnamed)


def _batches(keys: Iterable[str]) -> Iterator[list[str]]:
    left = iter(keys)
    while batch := list(islice(left, BATCH)):
        yield batch


def _unnamed(sessions: sessionmaker[Session], keys: list[str]) -> set[str]:
    """Of these keys those in no row. `free_content` looks again, alone with the content."""
    with sessions() as session:
        columns = (table.storage_key for table in (Model, Upload, Dataset, JobInput))
        named = {key for column in columns for key in session.scalars(select(column).where(column.in_(keys)))}
    return set(keys) - named


def _free(sessions: sessionmaker[Session], store: ObjectStore, key: str) -> bool:
    name = key.rpartition("/")[2]
    if not _SHA256.fullmatch(name):  # it has no content's key: no row can have come to name it since
        return remove_old(store, key)
    with sessions.begin() as session:
        return free_content(session, store, sha256=name, storage_key=key)
