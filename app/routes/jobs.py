"""Jobs: submit, list, look, wait, cancel, run again."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from app.auth import JobsReader, JobsWriter
from app.deps import IDENTIFIER, CurrentGateway, Gateway
from app.egress import require_callable
from app.errors import ApiProblem, problem_responses
from app.filters import METADATA_PARAMETER, AskedJobs
from app.idempotency import Answer, Once, answer_once, was_answered
from app.limits import read_small_body
from app.openapi import CANCEL_BODY, SUBMIT_BODY
from app.pages import Cursor, Limit, cut, page_of
from app.quotas import require_quotas
from app.references import check_stored, require_readable, stored_digests, stored_inputs
from app.rendering import render_job, render_jobs
from app.retries import require_customers_own, require_done, retry_job
from app.routes.models import add_model, file_columns
from app.rows import find_job, usable_model
from app.schemas.requests import CancelRequest, JobCreate
from app.schemas.responses import JobPage, JobRead, Validation
from app.shared.cache import cache_key, find_cached
from app.shared.deletion import keep_seconds, mark_deleted
from app.shared.jobs import JobAlreadyDone, request_cancel, submit_job
from app.shared.queueing import Look
from app.shared.references import UPLOAD
from app.shared.tables import Job, JobInput
from app.uploads import (
    MODEL_PART,
    ReceivedFile,
    digests,
    forget_files,
    keep_files,
    open_submission,
    receive_files,
    total_bytes,
)
from app.views import JobView
from app.waiting import RETRY_AFTER_SECONDS, wait_for

router = APIRouter(tags=["jobs"], responses=problem_responses(401, 403, 422, 429, 500, 503))
# What a poll asks first: whether there is anything new.
VERSION = select(Job.version).where(
    Job.id == bindparam("job_id"), Job.project_id == bindparam("project_id"), Job.deleted_at.is_(None)
)


@router.post(
    "/jobs",
    status_code=202,
    response_model=JobRead,
    responses={
        200: {
            "model": JobRead | Validation,
            "description": "With `cache`: the earlier job. With validate_only: the spec is valid",
        },
        **problem_responses(409, 413, 415),
    },
    openapi_extra={"requestBody": SUBMIT_BODY},
)
async def create_job(
    request: Request,
    gateway: CurrentGateway,
    caller: JobsWriter,
    once: Once,
    validate_only: Annotated[bool, Query(description="Check the spec, create nothing.")] = False,
) -> Response:
    """Submit a repair: a spec with its model and dataset files in one multipart body, or JSON with a `model_id`."""
    spec, parts = await open_submission(request, gateway.settings)
    require_readable(spec, gateway.settings)
    if not await run_in_threadpool(was_answered, gateway, once):
        # Before the files are read, not only when the job is made.
        await run_in_threadpool(_check_stored, gateway, spec, project_id=caller.project_id)
    if spec.webhook is not None:
        require_callable(gateway, spec.webhook.url, pointer="#/webhook/url")
    if validate_only:
        return JSONResponse(Validation(spec=spec.repair_spec()).model_dump(mode="json"))
    async with receive_files(parts, spec, gateway.store) as received:
        submit = partial(_submit, gateway, caller.project_id, spec, received)
        answer = await run_in_threadpool(answer_once, gateway, once, spec, submit, files=digests(received))
        if answer.replayed or answer.status != 202:
            await run_in_threadpool(forget_files, received, gateway.store)
    gateway.relay.wake()
    return answer.response()


def _submit(
    gateway: Gateway, project_id: str, spec: JobCreate, files: dict[str, ReceivedFile], session: Session
) -> Answer:
    if spec.cache is not None and (cached := _cached(session, spec, digests(files), project_id=project_id)):
        shown = render_job(session, cached)
        return Answer(200, shown.model_dump(mode="json"), {"Location": shown.links["self"]})
    taken = {"queued_jobs": 1, "models": int(MODEL_PART in files), "stored_bytes": total_bytes(files)}
    require_quotas(session, gateway.settings, project_id, **taken)
    sha256s = [file.stored.sha256 for file in files.values()]
    stored = stored_inputs(session, spec, project_id=project_id, also=sha256s)
    kept = keep_files(session, files, gateway.store)
    if spec.model_id is not None:
        model = usable_model(session, model_id=spec.model_id, project_id=project_id, lock=True)
    else:
        model = add_model(session, project_id, kept[MODEL_PART])
    job = submit_job(
        session,
        project_id=project_id,
        spec=spec.repair_spec(),
        kind=spec.kind,
        model_id=model.id,
        inputs=stored
        + [JobInput(name=f"{UPLOAD}{name}", **file_columns(file)) for name, file in kept.items() if name != MODEL_PART],
        metadata=spec.metadata,
        webhook=spec.webhook.model_dump() if spec.webhook else None,
        max_attempts=gateway.settings.max_attempts,
        hardware=spec.hardware,
        timeout_seconds=spec.timeout_seconds,
        keep_seconds=keep_seconds(gateway.settings.retention_days, spec.keep_seconds()),
    )
    if MODEL_PART in kept:
        model.job_id = job.id
    return _accepted(session, gateway, job)


def _cached(session: Session, spec: JobCreate, files: dict[str, str], *, project_id: str) -> Job | None:
    """The job that has done all of this before. `files` are the sha256s of the parts of the request."""
    model_sha256 = files.get(MODEL_PART)
    if spec.model_id is not None:
        model_sha256 = usable_model(session, model_id=spec.model_id, project_id=project_id).sha256
    assert model_sha256 is not None, "a submission has a model"
    contents = {f"{UPLOAD}{name}": sha256 for name, sha256 in files.items()}
    contents |= stored_digests(session, spec, project_id=project_id)
    key = cache_key(spec.repair_spec(), model_sha256=model_sha256, digests=contents, hardware=spec.hardware)
    return find_cached(session, project_id, key) if key is not None else None


def _accepted(session: Session, gateway: Gateway, job: Job) -> Answer:
    shown = render_job(session, job, gateway.looks.current())
    headers = {"Location": shown.links["self"], "Retry-After": str(RETRY_AFTER_SECONDS)}
    return Answer(202, shown.model_dump(mode="json"), headers)


def _check_stored(gateway: Gateway, spec: JobCreate, *, project_id: str) -> None:
    with gateway.readers() as session:
        if spec.model_id is not None:
            usable_model(session, model_id=spec.model_id, project_id=project_id)
        check_stored(session, spec, project_id=project_id)


@router.get("/jobs", response_model=JobPage, openapi_extra=METADATA_PARAMETER)
def list_jobs(
    gateway: CurrentGateway, caller: JobsReader, asked: AskedJobs, *, limit: Limit = 20, cursor: Cursor = None
) -> JobPage:
    """The project's jobs, newest first. Inspections are shown with `kind=inspect` or `kind=ingest` only."""
    rows = select(Job).where(Job.project_id == caller.project_id, Job.deleted_at.is_(None), *asked)
    page = page_of(rows, Job, limit=limit, cursor=cursor)
    with gateway.readers() as session:
        jobs, next_cursor = cut(session.scalars(page).all(), limit)
        data = render_jobs(session, jobs, gateway.looks.current())
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
    known = [item.strip() for item in request.headers.get("if-none-match", "").split(",") if item.strip()]
    view = await wait_for(
        request,
        gateway,
        partial(_view, gateway, job_id, project_id=caller.project_id),
        enough=lambda seen: seen.done or (bool(known) and seen.etag not in known),
        seconds=wait,
    )
    headers = {"ETag": view.etag, "Cache-Control": "private, no-cache"}
    if not view.done:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if view.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(view.body, headers=headers, media_type="application/json")


def _view(gateway: Gateway, job_id: str, *, project_id: str) -> JobView:
    look, version = gateway.looks.current(), None
    if IDENTIFIER.fullmatch(job_id):
        with gateway.lookups.connect() as connection:
            version = connection.scalar(VERSION, {"job_id": job_id, "project_id": project_id})
    known = partial(gateway.job_views.get, job_id, version, look)
    if (view := known()) is not None:
        return view
    with gateway.job_views.making(job_id):
        return known() or _make_view(gateway, job_id, project_id=project_id, look=look)


def _make_view(gateway: Gateway, job_id: str, *, project_id: str, look: Look) -> JobView:
    with gateway.readers() as session:
        row = find_job(session, job_id=job_id, project_id=project_id)
        job = render_job(session, row, look)
        # The place in the queue changes without a change of the job itself.
        etag = f'W/"{row.version}.{job.queue.position if job.queue else 0}"'
    view = JobView(row.version, None if job.done else look, job.done, etag, job.model_dump_json().encode())
    gateway.job_views.keep(job_id, view)
    return view


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
    job_id: str,
    gateway: CurrentGateway,
    caller: JobsWriter,
    once: Once,
    asked: Annotated[CancelRequest, Depends(read_cancel)],
) -> Response:
    """Ask a job to stop. A waiting job is cancelled at once, a running one when its engine is gone.

    With `keep_best` a repair hands over the best it has first; cancelled again without, it no longer may.
    """
    return answer_once(gateway, once, asked, partial(_cancel, caller.project_id, job_id, asked)).response()


def _cancel(project_id: str, job_id: str, asked: CancelRequest, session: Session) -> Answer:
    job = find_job(session, job_id=job_id, project_id=project_id)
    try:
        cancelled = request_cancel(session, job, keep_best=asked.keep_best)
    except JobAlreadyDone as error:
        raise ApiProblem("job.already_done", f"Job {job_id}: {error}.", hint="There is nothing to cancel.") from None
    return Answer(202, render_job(session, cancelled).model_dump(mode="json"))


@router.post("/jobs/{job_id}/retry", status_code=202, response_model=JobRead, responses=problem_responses(404, 409))
def retry(job_id: str, gateway: CurrentGateway, caller: JobsWriter, once: Once) -> Response:
    """Run a job that is done once more, as a new job: the same spec as it was resolved, the same model and data."""
    answer = answer_once(gateway, once, None, partial(_retry, gateway, caller.project_id, job_id))
    gateway.relay.wake()
    return answer.response()


def _retry(gateway: Gateway, project_id: str, job_id: str, session: Session) -> Answer:
    require_quotas(session, gateway.settings, project_id, queued_jobs=1)
    return _accepted(session, gateway, retry_job(session, gateway.settings, job_id=job_id, project_id=project_id))


@router.delete("/jobs/{job_id}", status_code=204, responses=problem_responses(404, 409))
def remove_job(job_id: str, gateway: CurrentGateway, caller: JobsWriter) -> Response:
    """Delete a job that is done, with its history and files, and with the model and data that only it has used."""
    with gateway.sessions.begin() as session:
        job = find_job(session, job_id=job_id, project_id=caller.project_id, lock=True)
        require_done(job)
        require_customers_own(job)
        session.execute(mark_deleted().where(Job.id == job.id))
    return Response(status_code=204)
