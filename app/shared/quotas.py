"""How much a project may have at once: the service's own numbers, and the operator's for a project in its `quotas`.

A quota is checked in the transaction that takes from it, after `lock_project`: requests that come together are counted
one after the other, and cannot pass together.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select, union
from sqlalchemy.orm import Session

from app.shared.models import INSPECT
from app.shared.settings import Settings
from app.shared.tables import Artifact, Dataset, Job, JobInput, Model, Project, Upload, UploadPart, WebhookEndpoint


@dataclass(frozen=True)
class Quota:
    """What is counted, and what a project that has reached it can do."""

    count: Callable[[str], Select[Any]]
    hint: str


class QuotaExceeded(Exception):
    """The project would have more than it may."""

    def __init__(self, name: str, *, limit: int, current: int, adding: int) -> None:
        super().__init__(f"the quota {name} is {limit:,}; this project has {current:,} and asks for {adding:,} more")
        self.name = name
        self.hint = QUOTAS[name].hint


def lock_project(session: Session, project_id: str) -> Project:
    """The project, alone until this transaction ends with what counts against its quotas."""
    # Not a plain FOR UPDATE: that would wait for every row just inserted that refers to the project, and deadlock.
    rows = select(Project).where(Project.id == project_id).with_for_update(key_share=True)
    return session.scalars(rows.execution_options(populate_existing=True)).one()


def require_quota(session: Session, settings: Settings, project: Project, name: str, *, adding: int) -> None:
    """Raises QuotaExceeded when `adding` more would be too many. The project must be locked."""
    limit, current = quota_of(settings, project, name), usage(session, project.id, name)
    if current + adding > limit:
        raise QuotaExceeded(name, limit=limit, current=current, adding=adding)


def quota_of(settings: Settings, project: Project, name: str) -> int:
    """The project's own number, or the service's."""
    service: int = getattr(settings, f"quota_{name}")
    return project.quotas.get(name, service)


def usage(session: Session, project_id: str, name: str) -> int:
    """What the project has now of what the quota counts."""
    return int(session.scalar(QUOTAS[name].count(project_id)) or 0)


def _jobs(*statuses: str) -> Callable[[str], Select[Any]]:
    def count(project_id: str) -> Select[Any]:
        # Inspections take seconds, and go with models, which have a quota of their own.
        mine = (Job.project_id == project_id, Job.status.in_(statuses), Job.kind != INSPECT)
        return select(func.count()).select_from(Job).where(*mine)

    return count


def _models(project_id: str) -> Select[Any]:
    return select(func.count()).select_from(Model).where(Model.project_id == project_id, Model.deleted_at.is_(None))


def _open_uploads(project_id: str) -> Select[Any]:
    unfinished = (Upload.state.in_(("open", "completing")), Upload.deleted_at.is_(None))
    return select(func.count()).select_from(Upload).where(Upload.project_id == project_id, *unfinished)


def _webhook_endpoints(project_id: str) -> Select[Any]:
    alive = (WebhookEndpoint.project_id == project_id, WebhookEndpoint.deleted_at.is_(None))
    return select(func.count()).select_from(WebhookEndpoint).where(*alive)


def _stored_bytes(project_id: str) -> Select[Any]:
    """Equal contents of a project are one object in the store, and counted once."""
    completed = (Upload.project_id == project_id, Upload.deleted_at.is_(None))
    of_jobs = (Job.project_id == project_id) & Job.deleted_at.is_(None)
    objects = union(
        _objects(Model, Model.project_id == project_id, Model.deleted_at.is_(None)),
        _objects(Dataset, Dataset.project_id == project_id, Dataset.deleted_at.is_(None)),
        _objects(Upload, *completed),
        _objects(UploadPart, *completed).join(Upload, Upload.id == UploadPart.upload_id),
        _objects(JobInput, of_jobs).join(Job, Job.id == JobInput.job_id),
        _objects(Artifact, of_jobs).join(Job, Job.id == Artifact.job_id),
    ).subquery()
    return select(func.coalesce(func.sum(objects.c.size_bytes), 0))


def _objects(table: Any, *conditions: ColumnElement[bool]) -> Select[Any]:
    return select(table.storage_key, table.size_bytes).where(table.storage_key.is_not(None), *conditions)


QUOTAS = {
    "queued_jobs": Quota(_jobs("queued"), "Wait until some have started, or cancel some: POST /v1/jobs/{id}/cancel."),
    "running_jobs": Quota(_jobs("running", "cancelling"), "Further jobs wait in the queue until one has ended."),
    "stored_bytes": Quota(_stored_bytes, "Delete jobs, models, datasets or uploads that are no longer needed."),
    "models": Quota(_models, "Delete models that are no longer needed: DELETE /v1/models/{id}."),
    "open_uploads": Quota(_open_uploads, "Complete the uploads that are open, or let them expire."),
    "webhook_endpoints": Quota(_webhook_endpoints, "Delete endpoints that are no longer needed."),
}
