"""A job that is done, once more: its spec as it was resolved, its model, its data. All of it must still be there."""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import ApiProblem
from app.references import content_columns
from app.rows import find_job, usable_model
from app.shared.contents import lock_contents
from app.shared.datasets import INGEST
from app.shared.deletion import keep_seconds
from app.shared.jobs import DONE, INSPECT, submit_job
from app.shared.references import parse_reference, references_in
from app.shared.settings import Settings
from app.shared.tables import Dataset, Job, JobInput, Model
from app.waiting import RETRY_AFTER_SECONDS
from archrepair_core.spec import RepairSpec

SERVICES_OWN = {
    INSPECT: "inspects a model; POST or DELETE the model: /v1/models",
    INGEST: "reads a dataset; POST or DELETE the dataset: /v1/datasets",
}
# A finished upload or a registered dataset with a file of its own has its content among the job's inputs.
STORED = ("upload", "upl", "ds")


def retry_job(session: Session, settings: Settings, *, job_id: str, project_id: str) -> Job:
    """Submit it once more. Raises ApiProblem `job.not_found`, `…not_finished`, `…kind_refused`, `…inputs_gone`.

    Locks are taken as everywhere: contents, then the model, then the job. With the job locked nobody deletes it, and
    with it its inputs, before the new job has them too.
    """
    job = find_job(session, job_id=job_id, project_id=project_id)
    require_done(job)
    require_customers_own(job)
    inputs = session.scalars(select(JobInput).where(JobInput.job_id == job_id)).all()
    lock_contents(session, [row.sha256 for row in inputs])
    model = session.scalar(select(Model).where(Model.id == job.model_id).with_for_update())
    job = find_job(session, job_id=job_id, project_id=project_id, lock=True)
    assert model is not None, "it goes after the jobs that name it"
    _require_inputs(session, job, model, inputs)
    usable_model(session, model_id=model.id, project_id=project_id)
    return submit_job(
        session,
        project_id=project_id,
        spec=resolved_again(job),
        kind=job.kind,
        model_id=model.id,
        inputs=[JobInput(name=row.name, **content_columns(row)) for row in inputs],
        metadata=job.labels,
        webhook=job.webhook,
        max_attempts=settings.max_attempts,
        hardware=job.hardware,
        timeout_seconds=None if job.deadline_at is None else job.deadline_at - job.created_at,
        retry_of=job.id,
        keep_seconds=keep_seconds(settings.retention_days, job.keep_seconds),
    )


def require_done(job: Job) -> None:
    """Raises ApiProblem `job.not_finished`."""
    if job.status not in DONE:
        hint = f"GET /v1/jobs/{job.id}?wait=60 waits for it, POST /v1/jobs/{job.id}/cancel ends it."
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        raise ApiProblem("job.not_finished", f"Job {job.id} is {job.status}.", hint=hint, headers=headers)


def require_customers_own(job: Job) -> None:
    """Raises ApiProblem `job.kind_refused` for the jobs that go with a model or a dataset."""
    if job.kind in SERVICES_OWN:
        what, _, hint = SERVICES_OWN[job.kind].partition("; ")
        raise ApiProblem("job.kind_refused", f"Job {job.id} is the service's own: it {what}.", hint=f"{hint}.")


def _require_inputs(session: Session, job: Job, model: Model, inputs: Sequence[JobInput]) -> None:
    gone = []
    if model.deleted_at is not None:
        gone.append(("#/model_id", f"the model {model.id} ({model.filename}) is deleted"))
    there = {row.name for row in inputs}
    for field, text in references_in(job.spec).items():
        kind = parse_reference(text).kind
        if kind in STORED and text not in there and not (kind == "ds" and _has_builtin(session, text)):
            gone.append((f"#/{field}", f"the data {text!r} is deleted"))
    if gone:
        errors = [{"pointer": pointer, "detail": detail} for pointer, detail in gone]
        detail = f"Job {job.id} cannot be run again: {'; '.join(detail for _, detail in gone)}."
        raise ApiProblem("job.inputs_gone", detail, hint="Submit a new job: POST /v1/jobs.", errors=errors)


def _has_builtin(session: Session, dataset_id: str) -> bool:
    """Whether the dataset is still registered; one that the engine carries leaves no input."""
    row = session.get(Dataset, dataset_id)
    return row is not None and row.deleted_at is None


def resolved_again(job: Job) -> dict[str, Any]:
    """The spec to run: with what every `auto` became, or as it was asked where that is not known.

    An engine said what it became, next to a stranger's model: only what a customer could ask for is taken, and never
    another place to read data from.
    """
    if job.resolved_spec is None:
        return job.spec
    known = {name: value for name, value in job.resolved_spec.items() if name in RepairSpec.model_fields}
    known |= {"kind": job.kind, "datasets": job.spec["datasets"]}
    if isinstance(known.get("model"), dict):
        known["model"] = {**known["model"], "reference": job.spec["model"]["reference"]}
    try:
        return RepairSpec.model_validate(job.spec | known).model_dump(mode="json")
    except ValidationError:
        return job.spec
