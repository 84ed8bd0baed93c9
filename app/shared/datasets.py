"""What becomes of a registered dataset: `resolving → ready | rejected`, and deleted. Callers own the transaction.

A job of kind `ingest` reads it: claim, lease, retries, limits and log are those of every job. The worker fetches the
bytes, since an engine has no network; an engine reads them in its sandbox, since they are a stranger's.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from app.shared.db import db_now
from app.shared.jobs import DONE, Claim, JobAlreadyDone, fence, request_cancel, submit_job
from app.shared.models import INSPECTION_PRIORITY
from app.shared.tables import Dataset, Job, JobInput

INGEST = "ingest"
RESOLVING, READY, REJECTED = "resolving", "ready", "rejected"
SETTLE_BATCH = 50
_CANCELLED = {
    "code": "dataset.ingest_cancelled",
    "category": "user",
    "detail": "The reading of the dataset was cancelled.",
    "hint": "Register the dataset again.",
}


def submit_ingest(session: Session, dataset: Dataset, *, content: JobInput | None, max_attempts: int = 3) -> Job:
    """Have a worker read the dataset; `content` are its bytes when they are in the store already."""
    job = submit_job(
        session,
        project_id=dataset.project_id,
        spec={"kind": INGEST, "datasets": {"dataset": dataset.reference}},
        kind=INGEST,
        model_id=None,
        inputs=[content] if content is not None else [],
        max_attempts=max_attempts,
        priority=INSPECTION_PRIORITY,
    )
    dataset.job_id = job.id
    return job


def record_dataset(session: Session, claim: Claim, facts: Mapping[str, Any]) -> bool:
    """Note what an engine found in the data, and which bytes it was. False: the lease is lost."""
    dataset = session.scalar(select(Dataset).where(Dataset.job_id == claim.job_id).with_for_update())
    if dataset is None or session.scalar(select(Job.id).where(*fence(claim)).with_for_update()) is None:
        return False
    content = session.scalar(select(JobInput).where(JobInput.job_id == claim.job_id))
    if content is not None:
        dataset.filename, dataset.sha256 = content.filename, content.sha256
        dataset.size_bytes, dataset.storage_key = content.size_bytes, content.storage_key
    dataset.state, dataset.facts = READY, dict(facts)
    dataset.resolved_at = session.scalars(select(db_now())).one()
    return True


def settle_datasets(session: Session) -> list[str]:
    """Reject the datasets whose job ended without finding any data. Returns their ids."""
    over = exists().where(Job.id == Dataset.job_id, Job.status.in_(DONE))
    rows = session.scalars(
        select(Dataset)
        .where(Dataset.state == RESOLVING, Dataset.deleted_at.is_(None), over)
        .limit(SETTLE_BATCH)
        .with_for_update(skip_locked=True)
    ).all()
    for row in rows:
        row.state, row.error = REJECTED, session.get_one(Job, row.job_id).error or _CANCELLED
        row.resolved_at = session.scalars(select(db_now())).one()
    return [row.id for row in rows]


def delete_dataset(session: Session, dataset: Dataset) -> dict[str, str]:
    """Hide a dataset for good and stop its reading. Returns what to free after: storage key to sha256.

    Jobs that use it have its bytes as inputs of their own.
    """
    freed = {dataset.storage_key: dataset.sha256} if dataset.storage_key and dataset.sha256 else {}
    job = session.get(Job, dataset.job_id) if dataset.job_id is not None else None
    if job is not None:
        with contextlib.suppress(JobAlreadyDone):
            request_cancel(session, job, keep_best=False)
        for row in session.scalars(select(JobInput).where(JobInput.job_id == job.id)).all():
            freed[row.storage_key] = row.sha256
            session.delete(row)
    dataset.deleted_at = session.scalars(select(db_now())).one()
    return freed
