"""How a job goes for good: somebody asked for it, or it was kept long enough. Only jobs that are done go.

First its row is marked, which hides the job from everybody. Then a sweep removes what it has in the store and, last of
all, its rows: whatever breaks in between is done again by the next sweep, and nothing is left that no row names. Bytes
that others refer to stay. A model that was sent with a job goes with the last job that used it.

Locks are taken in the order of a submission: contents, then the model, then the job.
"""

from obstore.store import ObjectStore
from sqlalchemy import Update, delete, exists, select, update
from sqlalchemy.orm import Session, sessionmaker

from app.shared import storage
from app.shared.checkpoints import checkpoint_prefix
from app.shared.contents import free_content, lock_contents
from app.shared.db import db_now
from app.shared.jobs import DONE, INSPECT
from app.shared.models import delete_model
from app.shared.tables import Artifact, Attempt, Job, JobEvent, JobInput, JobLabel, Model, WebhookDelivery
from app.shared.webhooks import PENDING

DAY_SECONDS = 24 * 3600.0
EXPIRY_BATCH, PURGE_BATCH = 100, 20


def keep_seconds(retention_days: float, asked_seconds: float | None = None) -> float | None:
    """How long a job is kept once it is done: what it asks for, but no longer than the service does. None: for ever."""
    limits = [seconds for seconds in (retention_days * DAY_SECONDS or None, asked_seconds) if seconds is not None]
    return min(limits, default=None)


def mark_deleted() -> Update:
    """Hides the jobs it is narrowed to, which must be done."""
    marked = update(Job).values(deleted_at=db_now(), version=Job.version + 1, updated_at=db_now())
    marked = marked.where(Job.status.in_(DONE), Job.deleted_at.is_(None))
    return marked.execution_options(synchronize_session=False)


def schedule_expiry(session: Session, retention_days: float) -> None:
    """Give an end to the done jobs that have none: of older versions, and the service's own."""
    seconds = keep_seconds(retention_days)
    if seconds is not None:
        endless = update(Job).where(Job.status.in_(DONE), Job.expires_at.is_(None), Job.deleted_at.is_(None))
        until = {"expires_at": db_now() + seconds, "version": Job.version + 1}
        session.execute(endless.values(**until).execution_options(synchronize_session=False))


def expire_jobs(session: Session) -> list[str]:
    """Mark jobs that were kept long enough, a batch of them; returns the ids. Those somebody is at are for later."""
    due = select(Job.id).where(Job.expires_at < db_now(), Job.deleted_at.is_(None), Job.status.in_(DONE))
    oldest = due.order_by(Job.expires_at).limit(EXPIRY_BATCH).with_for_update(skip_locked=True)
    job_ids = list(session.scalars(oldest))
    if job_ids:
        session.execute(mark_deleted().where(Job.id.in_(job_ids)))
    return job_ids


def purge_jobs(sessions: sessionmaker[Session], store: ObjectStore) -> list[str]:
    """Remove all that is left of jobs that are marked, a batch of them; returns their ids."""
    with sessions() as session:
        # Not IS NOT NULL, for which SQLite reads the table.
        job_ids = list(session.scalars(select(Job.id).where(Job.deleted_at > 0).limit(PURGE_BATCH)))
    for job_id in job_ids:
        for prefix in (storage.artifact_prefix(job_id), checkpoint_prefix(job_id)):
            storage.delete_prefix(store, prefix)
        with sessions.begin() as session:
            _purge_rows(session, store, job_id)
    return job_ids


def _purge_rows(session: Session, store: ObjectStore, job_id: str) -> None:
    """The bytes go before the rows that name them are gone for sure: a failed commit leaves the job marked."""
    contents = _contents(session, job_id)
    lock_contents(session, list(contents.values()))
    of_job = select(Job.model_id).where(Job.id == job_id).scalar_subquery()
    model = session.scalar(select(Model).where(Model.id == of_job).with_for_update())
    if session.scalar(select(Job.id).where(Job.id == job_id).with_for_update()) is None:
        return  # another worker was faster
    for table in (Artifact, Attempt, JobEvent, JobInput, JobLabel):
        session.execute(delete(table).where(table.job_id == job_id))
    # What is still to be sent is sent; the log of an endpoint is the endpoint's.
    told = (WebhookDelivery.job_id == job_id, WebhookDelivery.endpoint_id.is_(None), WebhookDelivery.state != PENDING)
    session.execute(delete(WebhookDelivery).where(*told))
    session.execute(delete(Job).where(Job.id == job_id))
    if model is not None and _goes_along(session, model):
        delete_model(session, model)
    for storage_key, sha256 in contents.items():
        free_content(session, store, sha256=sha256, storage_key=storage_key)


def _contents(session: Session, job_id: str) -> dict[str, str]:
    """Storage key to sha256 of what the job read."""
    inputs = select(JobInput.storage_key, JobInput.sha256).where(JobInput.job_id == job_id)
    models = select(Model.storage_key, Model.sha256).join(Job, Job.model_id == Model.id).where(Job.id == job_id)
    return {row.storage_key: row.sha256 for rows in (inputs, models) for row in session.execute(rows)}


def _goes_along(session: Session, model: Model) -> bool:
    used = exists().where(Job.model_id == model.id, Job.kind != INSPECT)
    return model.job_id is not None and model.deleted_at is None and not session.scalar(select(used))
