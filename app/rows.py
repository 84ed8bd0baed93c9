"""The one way an id, of a path or a spec, becomes a row."""

from typing import TypeVar

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from app.deps import IDENTIFIER
from app.errors import ApiProblem
from app.shared.models import REJECTED
from app.shared.tables import Job, Model

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


def row_of_id(session: Session, rows: Select[Row], row_id: str) -> Row | None:
    """The row `rows` selects for that id. One that cannot be an id is not asked for: no database takes every string."""
    return session.scalar(rows) if IDENTIFIER.fullmatch(row_id) else None


def find_row(session: Session, rows: Select[Row], row_id: str, *, noun: str) -> Row:
    """The row `rows` selects for that id. Another project's is as absent as one that never was: `{noun}.not_found`."""
    row = row_of_id(session, rows, row_id)
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


def usable_model(session: Session, *, model_id: str, project_id: str, lock: bool = False) -> Model:
    """The model a spec names; with `lock` it cannot be deleted before the transaction ends.

    Raises ApiProblem `model.unknown_id` or `model.rejected`, both at `/model_id`.
    """
    found = models_of(project_id).where(Model.id == model_id)
    row = row_of_id(session, found.with_for_update() if lock else found, model_id)
    if row is None:
        detail = f"There is no model {model_id!r} in your project."
        errors = [{"pointer": "#/model_id", "detail": detail}]
        raise ApiProblem("model.unknown_id", detail, hint="GET /v1/models lists them.", errors=errors)
    if row.state == REJECTED:
        detail = why_rejected(row)
        errors = [{"pointer": "#/model_id", "detail": detail}]
        raise ApiProblem("model.rejected", detail, hint=(row.error or {}).get("hint", ""), errors=errors)
    return row


def models_of(project_id: str) -> Select[Model]:
    """The project's models, without those that were deleted."""
    return select(Model).where(Model.project_id == project_id, Model.deleted_at.is_(None))


def why_rejected(row: Model) -> str:
    """What the inspection had against the model."""
    error = row.error or {}
    return f"Model {row.id} was rejected with {error.get('code')}: {error.get('detail', '')}"
