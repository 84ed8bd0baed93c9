"""Jobs: submit, list, look, wait, cancel, and their history."""

import asyncio
import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import AwareDatetime, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from app.auth import JobsReader, JobsWriter
from app.deps import IDENTIFIER, CurrentGateway, Gateway
from app.errors import ApiProblem, problem_responses
from app.limits import read_small_body
from app.openapi import CANCEL_BODY, SUBMIT_BODY
from app.pages import Cursor, Limit, cut, page_of
from app.rendering import render_event, render_job, render_jobs
from app.schemas import CancelRequest, EventPage, JobCreate, JobPage, JobRead, Validation
from app.shared.ids import new_id
from app.shared.jobs import JobAlreadyDone, request_cancel, submit_job
from app.shared.tables import Job, JobEvent, JobInput, Model
from app.specs import UPLOAD
from app.uploads import MODEL_PART, ReceivedFile, keep_files, open_submission, receive_files

router = APIRouter(tags=["jobs"], responses=problem_responses(401, 403, 422, 500, 503))
RETRY_AFTER_SECONDS = 2
WAIT_POLL_SECONDS = (0.1, 0.2, 0.4, 0.5)
Filter = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_]{1,40}$")]


def find_job(session: Session, *, job_id: str, project_id: str) -> Job:
    """The project's job of that id. Another project's job is as absent as one that never was."""
    found = select(Job).where(Job.id == job_id, Job.project_id == project_id)
    job = session.scalar(found) if IDENTIFIER.fullmatch(job_id) else None
    if job is None:
        raise ApiProblem(
            "job.not_found", f"There is no job {job_id!r} in your project.", hint="GET /v1/jobs lists them."
        )
    return job


@router.post(
    "/jobs",
    status_code=202,
    response_model=JobRead,
    responses={
        200: {"model": Validation, "description": "With validate_only: the spec is valid"},
        **problem_responses(413, 415),
    },
    openapi_extra={"requestBody": SUBMIT_BODY},
)
async def create_job(
    request: Request,
    gateway: CurrentGateway,
    caller: JobsWriter,
    validate_only: Annotated[bool, Query(description="Check the spec, create nothing.")] = False,
) -> Response:
    """Submit a repair: a spec with its model and dataset files in one multipart body, or JSON with a `model_id`."""
    spec, parts = await open_submission(request, gateway.settings)
    if spec.model_id is not None:
        await run_in_threadpool(_check_model, gateway, spec.model_id, project_id=caller.project_id)
    if validate_only:
        return JSONResponse(Validation(spec=spec.repair_spec()).model_dump(mode="json"))
    async with receive_files(parts, spec, gateway.store) as received:
        files = await keep_files(received, gateway.store)
        job = await run_in_threadpool(_submit, gateway, caller.project_id, spec=spec, files=files)
    gateway.relay.wake()
    headers = {"Location": job.links["self"], "Retry-After": str(RETRY_AFTER_SECONDS)}
    return JSONResponse(job.model_dump(mode="json"), 202, headers)


def _submit(gateway: Gateway, project_id: str, *, spec: JobCreate, files: dict[str, ReceivedFile]) -> JobRead:
    with gateway.sessions.begin() as session:
        job = submit_job(
            session,
            project_id=project_id,
            spec=spec.repair_spec(),
            kind=spec.kind,
            model_id=spec.model_id or _new_model(session, project_id, files[MODEL_PART]),
            inputs=[
                JobInput(name=f"{UPLOAD}{name}", **_columns(file)) for name, file in files.items() if name != MODEL_PART
            ],
            metadata=spec.metadata,
            max_attempts=gateway.settings.max_attempts,
        )
        return render_job(session, job)


def _new_model(session: Session, project_id: str, file: ReceivedFile) -> str:
    model = Model(id=new_id("mdl"), project_id=project_id, **_columns(file))
    session.add(model)
    session.flush()
    return model.id


def _check_model(gateway: Gateway, model_id: str, *, project_id: str) -> None:
    with gateway.readers() as session:
        found = select(Model.id).where(Model.id == model_id, Model.project_id == project_id)
        if IDENTIFIER.fullmatch(model_id) and session.scalar(found):
            return
    detail = f"There is no model {model_id!r} in your project."
    errors = [{"pointer": "#/model_id", "detail": detail}]
    raise ApiProblem("model.unknown_id", detail, hint="GET /v1/models lists them.", errors=errors)


def _columns(file: ReceivedFile) -> dict[str, Any]:
    return {"filename": file.filename, **vars(file.stored)}


@router.get("/jobs", response_model=JobPage)
def list_jobs(
    gateway: CurrentGateway,
    caller: JobsReader,
    *,
    status: Filter = None,
    kind: Filter = None,
    verdict: Filter = None,
    model_id: Filter = None,
    created_after: AwareDatetime | None = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> JobPage:
    """The project's jobs, newest first."""
    rows = select(Job).where(Job.project_id == caller.project_id)
    for column, wanted in ((Job.status, status), (Job.kind, kind), (Job.verdict, verdict), (Job.model_id, model_id)):
        if wanted is not None:
            rows = rows.where(column == wanted)
    if created_after is not None:
        rows = rows.where(Job.created_at > created_after.timestamp())
    page = page_of(rows, Job, limit=limit, cursor=cursor)
    with gateway.readers() as session:
        jobs, next_cursor = cut(session.scalars(page).all(), limit)
        data = render_jobs(session, jobs)
    return JobPage(data=data, has_more=next_cursor is not None, next_cursor=next_cursor)


@router.get(
    "/jobs/{job_id}",
    response_model=JobRead,
    responses={304: {"description": "If-None-Match names the job's ETag"}, **problem_responses(404)},
)
async def get_job(
    job_id: str,
    request: Request,
    gateway: CurrentGateway,
    caller: JobsReader,
    *,
    wait: Annotated[float, Query(ge=0, le=60, description="Seconds to wait for the job to end.")] = 0,
) -> Response:
    """One job. With `wait` the answer comes when the job is done, or with If-None-Match when it has changed."""
    seen = request.headers.get("if-none-match", "")
    deadline = time.monotonic() + wait
    poll = 0
    while True:
        job, etag = await run_in_threadpool(_look, gateway, job_id, project_id=caller.project_id)
        unchanged = etag in [item.strip() for item in seen.split(",")]
        left = deadline - time.monotonic()
        if job.done or (seen and not unchanged) or left <= 0 or gateway.stopping.is_set():
            break
        if await request.is_disconnected():
            break
        # No thread and no connection is held here.
        await asyncio.sleep(min(left, WAIT_POLL_SECONDS[min(poll, len(WAIT_POLL_SECONDS) - 1)]))
        poll += 1
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if not job.done:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if unchanged:
        return Response(status_code=304, headers=headers)
    return JSONResponse(job.model_dump(mode="json"), headers=headers)


def _look(gateway: Gateway, job_id: str, *, project_id: str) -> tuple[JobRead, str]:
    with gateway.readers() as session:
        row = find_job(session, job_id=job_id, project_id=project_id)
        job = render_job(session, row)
        # The place in the queue changes without a change of the job itself.
        return job, f'W/"{row.version}.{job.queue.position if job.queue else 0}"'


async def read_cancel(request: Request) -> CancelRequest:
    """The optional body of a cancel, read by hand so that an oversized one is refused as a problem."""
    raw = await read_small_body(request.stream())
    try:
        return CancelRequest.model_validate_json(raw or b"{}")
    except ValidationError as error:
        raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in error.errors()]) from None


@router.post(
    "/jobs/{job_id}/cancel",
    status_code=202,
    response_model=JobRead,
    responses=problem_responses(404, 409, 413),
    openapi_extra={"requestBody": CANCEL_BODY},
)
def cancel_job(
    job_id: str, gateway: CurrentGateway, caller: JobsWriter, asked: Annotated[CancelRequest, Depends(read_cancel)]
) -> JobRead:
    """Ask a job to stop. A waiting job is cancelled at once, a running one when its engine is gone."""
    try:
        with gateway.sessions.begin() as session:
            job = find_job(session, job_id=job_id, project_id=caller.project_id)
            return render_job(session, request_cancel(session, job, keep_best=asked.keep_best))
    except JobAlreadyDone as error:
        raise ApiProblem("job.already_done", f"Job {job_id}: {error}.", hint="There is nothing to cancel.") from None


@router.get("/jobs/{job_id}/events", response_model=EventPage, responses=problem_responses(404))
def list_events(
    job_id: str,
    gateway: CurrentGateway,
    caller: JobsReader,
    *,
    after: Annotated[int, Query(ge=0, lt=2**53, description="Only events with a greater `seq`.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> EventPage:
    """What happened to the job, oldest first; `next_cursor` is the `after` of the next page."""
    rows = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > after)
    with gateway.readers() as session:
        find_job(session, job_id=job_id, project_id=caller.project_id)
        found = session.scalars(rows.order_by(JobEvent.seq).limit(limit + 1)).all()
    has_more = len(found) > limit
    events = [render_event(row) for row in found[:limit]]
    return EventPage(data=events, has_more=has_more, next_cursor=str(events[-1].seq) if has_more else None)
