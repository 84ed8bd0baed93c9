"""Rows of what is deleted: they go when nothing refers to them any more, and with them bytes that a crash has left.

Until then they keep ids from being a riddle: a job still names the model it used.
"""

from typing import Any

from obstore.store import ObjectStore
from sqlalchemy import Select, delete, exists, or_, select
from sqlalchemy.orm import Session, sessionmaker

from app.shared.contents import free_content
from app.shared.datasets import INGEST
from app.shared.db import db_now
from app.shared.deletion import DAY_SECONDS, mark_deleted
from app.shared.jobs import INSPECT
from app.shared.tables import ApiKey, Dataset, Job, Model, Upload, UploadPart, WebhookDelivery, WebhookEndpoint
from app.shared.uploads import EXPIRED, free_upload

KEEP_SECONDS = 30 * DAY_SECONDS
BATCH = 500


def forget_deleted(sessions: sessionmaker[Session], store: ObjectStore) -> None:
    """Remove what is left of deleted models, datasets, uploads, keys and webhook endpoints."""
    with sessions.begin() as session:
        session.execute(mark_deleted().where(Job.kind == INSPECT, Job.model_id.in_(_deleted(Model.id, Model))))
        session.execute(mark_deleted().where(Job.kind == INGEST, Job.id.in_(_deleted(Dataset.job_id, Dataset))))
        long_ago = db_now() - KEEP_SECONDS
        session.execute(delete(ApiKey).where(ApiKey.revoked_at < long_ago))
        logged = exists().where(WebhookDelivery.endpoint_id == WebhookEndpoint.id)
        session.execute(delete(WebhookEndpoint).where(WebhookEndpoint.deleted_at < long_ago, ~logged))
    _forget_contents(sessions, store, select(Model).where(~exists().where(Job.model_id == Model.id)))
    # A job that waits may need the name of a builtin one.
    nameless = or_(Dataset.storage_key.is_not(None), Dataset.deleted_at < long_ago)
    unread = ~exists().where(Job.id == Dataset.job_id)
    _forget_contents(sessions, store, select(Dataset).where(unread, nameless))
    _forget_uploads(sessions, store)


def _deleted(column: Any, table: Any) -> Select[Any]:
    return select(column).where(table.deleted_at.is_not(None))


def _forget_contents(sessions: sessionmaker[Session], store: ObjectStore, unused: Select[Any]) -> None:
    table = unused.column_descriptions[0]["entity"]
    with sessions() as session:
        rows = session.scalars(unused.where(table.deleted_at.is_not(None)).limit(BATCH)).all()
    for row in rows:
        with sessions.begin() as session:
            if row.storage_key is not None:
                free_content(session, store, sha256=row.sha256, storage_key=row.storage_key)
            session.execute(delete(table).where(table.id == row.id))


def _forget_uploads(sessions: sessionmaker[Session], store: ObjectStore) -> None:
    over = or_(Upload.state == EXPIRED, Upload.deleted_at.is_not(None))
    unfreed = or_(Upload.storage_key.is_not(None), exists().where(UploadPart.upload_id == Upload.id))
    old = Upload.expires_at < db_now() - KEEP_SECONDS
    with sessions() as session:
        rows = session.scalars(select(Upload).where(over, or_(unfreed, old)).limit(BATCH)).all()
    for row in rows:
        free_upload(sessions, store, row)
        with sessions.begin() as session:
            session.execute(delete(Upload).where(Upload.id == row.id, old))
