"""New gates on what a job measured: nothing is run again, and the job stays as it is."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.auth import JobsReader
from app.bodies import read_json
from app.deps import CurrentGateway
from app.errors import ApiProblem, problem_responses
from app.idempotency import Answer, Once, answer_once
from app.openapi import VERDICT_BODY
from app.routes.jobs import find_job
from app.schemas.requests import VerdictRequest
from app.schemas.responses import VerdictRead
from app.shared.jobs import DONE
from app.shared.tables import Job
from app.waiting import RETRY_AFTER_SECONDS
from archrepair_core.gates import GateResult, evaluate_gates, measured_metrics, verdict_of

router = APIRouter(tags=["jobs"], responses=problem_responses(401, 403, 422, 429, 500, 503))
JUDGED_KINDS = ("repair", "evaluate")


@router.post(
    "/jobs/{job_id}/verdict",
    response_model=VerdictRead,
    responses=problem_responses(404, 409, 413),
    openapi_extra={"requestBody": VERDICT_BODY},
)
async def judge_job(job_id: str, request: Request, gateway: CurrentGateway, caller: JobsReader, once: Once) -> Response:
    """What other gates say of what the job measured on its predictions. Needs no worker, and does not change the job.

    The job's own gates give the job's own verdict.
    """
    asked = await read_json(request, VerdictRequest)
    judge = partial(_judge, caller.project_id, job_id, asked.gates)
    return (await run_in_threadpool(answer_once, gateway, once, asked, judge)).response()


def _judge(project_id: str, job_id: str, expressions: Sequence[str], session: Session) -> Answer:
    job = find_job(session, job_id=job_id, project_id=project_id)
    measured = _measured(job)
    gates = evaluate_gates(expressions, measured)
    _require_measured(job, gates, measured)
    shown = VerdictRead(
        job_id=job.id,
        verdict=verdict_of(gates, chosen=not _kept_the_original(measured)),
        gates=[gate.to_json() for gate in gates],
        links={"job": f"/v1/jobs/{job.id}"},
    )
    return Answer(200, shown.model_dump(mode="json"))


def _measured(job: Job) -> dict[str, Any]:
    """The result of a job that measured something. Raises ApiProblem for any other one."""
    if job.kind not in JUDGED_KINDS:
        detail = f"Job {job.id} is of the kind {job.kind!r}, which measures nothing that gates speak of."
        raise ApiProblem("job.nothing_to_judge", detail, hint=f"Gates judge jobs of {' and '.join(JUDGED_KINDS)}.")
    if job.status not in DONE:
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        detail = f"Job {job.id} is {job.status}."
        raise ApiProblem("job.not_finished", detail, hint="GET /v1/jobs/{id}?wait=60 waits for it.", headers=headers)
    if "test" not in (job.result or {}):
        detail = f"Job {job.id} {job.status} without measurements."
        raise ApiProblem("job.nothing_to_judge", detail, hint="See its result and its error.")
    return job.result or {}


def _require_measured(job: Job, gates: Sequence[GateResult], measured: dict[str, Any]) -> None:
    """A verdict leaves out what was not measured, which nobody should learn from a pass; of the job's own gates one
    knows, and they have to give the job's own verdict again."""
    own = {gate["expression"] for gate in measured.get("gates", [])} | set((job.resolved_spec or {}).get("gates", []))
    missing = [
        {"pointer": f"#/gates/{place}", "detail": f"{gate.expression!r}: {gate.reason}"}
        for place, gate in enumerate(gates)
        if gate.state == "not_evaluated" and gate.expression not in own
    ]
    if missing:
        detail = f"Job {job.id} did not measure what these gates speak of: {'; '.join(m['detail'] for m in missing)}."
        hint = f"It measured {', '.join(sorted(measured_metrics(measured)))}."
        raise ApiProblem("job.gate_not_measured", detail, hint=hint, errors=missing)


def _kept_the_original(measured: dict[str, Any]) -> bool:
    """Whether validation preferred the original to everything that was tried."""
    return measured["outcome"] == "no_improvement" and measured.get("repair") is None
