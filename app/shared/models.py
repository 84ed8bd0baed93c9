"""What becomes of an uploaded model: `inspecting → ready | rejected`, and deleted. Callers own the transaction.

A model is looked at by a job: by one of kind `inspect` after `POST /models`, else by the first job that uses it. Both
write what they find through the same fence. A model nobody looks at any more is settled by `settle_model`.

Locks are taken in one order, model before job, so that no two of these functions wait for each other.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from app.shared.db import db_now
from app.shared.jobs import DONE, INSPECT, LIVE, Claim, JobAlreadyDone, fence, request_cancel, submit_job
from app.shared.tables import Job, Model
from app.shared.webhooks import announce_model

INSPECTING, READY, REJECTED = "inspecting", "ready", "rejected"
# An inspection takes seconds and somebody waits for it; the jobs it passes take minutes.
INSPECTION_PRIORITY = 1
SETTLE_BATCH = 50
# Errors of the family `model.` that another spec or other data would not meet.
NOT_THE_MODELS_FAULT = frozenset({"model.fails_on_inputs", "model.output_not_logits", "model.output_ambiguous"})
_CANCELLED = {
    "code": "model.inspection_cancelled",
    "category": "user",
    "detail": "The inspection of the model was cancelled.",
    "hint": "Upload the model again.",
}


class ModelInUse(Exception):
    """Jobs that are not done use the model, so it cannot be deleted."""

    def __init__(self, job_ids: Sequence[str]) -> None:
        super().__init__(f"{len(job_ids)} jobs use the model: {', '.join(job_ids)}")
        self.job_ids = tuple(job_ids)


def submit_inspection(
    session: Session, model: Model, *, input_shape: Sequence[int] | None = None, max_attempts: int = 3
) -> Job:
    """Have a worker look at the model; without `input_shape` the engine works one out."""
    return submit_job(
        session,
        project_id=model.project_id,
        spec={"kind": INSPECT, "input_shape": list(input_shape) if input_shape is not None else None},
        kind=INSPECT,
        model_id=model.id,
        max_attempts=max_attempts,
        priority=INSPECTION_PRIORITY,
    )


def record_model(session: Session, claim: Claim, found: Mapping[str, Any]) -> bool:
    """Note what a job's engine found: facts and `blocks`. The model is ready then. False: the lease is lost.

    What real data told replaces a guess, but not a shape that the customer or the file has named.
    """
    assert claim.model_id is not None, "a job without a model looks at none"
    model = _locked(session, claim.model_id)
    if session.scalar(select(Job.id).where(*fence(claim)).with_for_update()) is None:
        return False
    if model.state != READY or _beats(found, model.facts or {}):
        blocks = list(found["blocks"])
        model.state, model.error, model.blocks = READY, None, blocks
        num_blocks = sum(block["level"] == "block" for block in blocks) if blocks else None
        model.facts = {name: value for name, value in found.items() if name != "blocks"} | {"num_blocks": num_blocks}
        announced = model.inspected_at is not None
        model.inspected_at = session.scalars(select(db_now())).one()
        if not announced:  # else a job's data has only told more of it
            announce_model(session, model)
    return True


def _beats(found: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    if known.get("blocks_unknown"):
        return not found.get("blocks_unknown")
    return found["input_shape_source"] == "data" and known.get("input_shape_source") == "guessed"


def settle_model(session: Session, model_id: str) -> str | None:
    """Give a model that is still `inspecting` though no job is at it its end, and return its state; else None.

    Rejected with the error of the inspection or of a job that blamed the model; a model that was never really looked
    at, because its job was cancelled or its data was wrong, gets an inspection.
    """
    model = _locked(session, model_id)
    if model.state != INSPECTING or model.deleted_at is not None or _jobs(session, model_id, LIVE):
        return None
    blaming = [job for job in _jobs(session, model_id, DONE) if _blames_model(job)]
    if not blaming:
        submit_inspection(session, model)
        return INSPECTING
    model.state, model.error = REJECTED, blaming[-1].error or _CANCELLED
    model.inspected_at = session.scalars(select(db_now())).one()
    announce_model(session, model)
    return REJECTED


def _blames_model(job: Job) -> bool:
    code = (job.error or {}).get("code", "")
    return job.kind == INSPECT or (code.startswith("model.") and code not in NOT_THE_MODELS_FAULT)


def settle_forgotten_models(session: Session) -> list[str]:
    """Settle the models that no job is at: theirs was cancelled, or its worker died. Returns the ids it settled."""
    looked_at = exists().where(Job.model_id == Model.id, Job.status.in_(LIVE))
    forgotten = select(Model.id).where(Model.state == INSPECTING, Model.deleted_at.is_(None), ~looked_at)
    ids = session.scalars(forgotten.order_by(Model.id).limit(SETTLE_BATCH)).all()
    return [model_id for model_id in ids if settle_model(session, model_id)]


def delete_model(session: Session, model: Model) -> None:
    """Hide a model for good and stop its inspection. Raises ModelInUse while another job that is not done uses it."""
    _locked(session, model.id)
    live = _jobs(session, model.id, LIVE)
    if users := [job.id for job in live if job.kind != INSPECT]:
        raise ModelInUse(users)
    for job in live:
        with contextlib.suppress(JobAlreadyDone):
            request_cancel(session, job, keep_best=False)
    model.deleted_at = session.scalars(select(db_now())).one()


def _locked(session: Session, model_id: str) -> Model:
    return session.get_one(Model, model_id, with_for_update=True, populate_existing=True)


def _jobs(session: Session, model_id: str, statuses: Sequence[str]) -> list[Job]:
    """Oldest ending first."""
    rows = select(Job).where(Job.model_id == model_id, Job.status.in_(statuses))
    return list(session.scalars(rows.order_by(Job.finished_at, Job.id)))
