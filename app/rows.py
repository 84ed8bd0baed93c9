"""The one way a path's id becomes a row."""

from typing import TypeVar

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from app.deps import IDENTIFIER
from app.errors import ApiProblem
from app.shared.tables import Job

Row = TypeVar("Row")
WHERE_TO_LOOK = {
    "job": "GET /v1/jobs lists them.",
    "model": "GET /v1/models lists them.",
    "key": "GET /v1/api-keys lists them.",
    "dataset": "GET /v1/datasets lists them.",
    "upload": "POST /v1/uploads makes one; it ends a while after it was made or completed.",
    "endpoint": "GET /v1/webhook-endpoints lists them.",
    "delivery": "GET /v1/webhook-endpoints/{id}/deliveries lists them.",
    "artifact": "GET /v1/jobs/{id}/artifacts lists them.",
}


def find_row(session: Session, rows: Select[Row], row_id: str, *, noun: str) -> Row:
    """The row `rows` selects for that id. Another project's is as absent as one that never was: `{noun}.not_found`."""
    # An id that cannot be one is not asked for: a database refuses some strings, e.g. with a NUL.
    row = session.scalar(rows) if IDENTIFIER.fullmatch(row_id) else None
    if row is None:
        raise ApiProblem(
            f"{noun}.not_found", f"There is no {noun} {row_id!r} in your project.", hint=WHERE_TO_LOOK[noun]
        )
    return row


def find_job(session: Session, *, job_id: str, project_id: str, lock: bool = False) -> Job:
    """The project's job of that id; with `lock` it stays as it is until the transaction ends.

    Raises ApiProblem `job.not_found`.
    """
    found = select(Job).where(Job.id == job_id, Job.project_id == project_id, Job.deleted_at.is_(None))
    found = found.with_for_update().execution_options(populate_existing=True) if lock else found
    return find_row(session, found, job_id, noun="job")
