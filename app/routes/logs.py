"""The log of a job, as text or as one JSON object a line."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.accept import view_for
from app.auth import JobsReader
from app.deps import CurrentGateway, Gateway
from app.errors import problem_responses
from app.joblog import LogLine, log_lines, stored_lines
from app.routes.jobs import find_job
from app.shared.joblog import LOG
from app.shared.tables import Artifact, JobEvent

router = APIRouter(tags=["jobs"], responses=problem_responses(401, 403, 404, 422, 429, 500, 503))


@dataclass(frozen=True)
class LogView:
    media_type: str
    write: Callable[[LogLine], str]


LOG_VIEWS = {"text": LogView("text/plain", LogLine.as_text), "ndjson": LogView("application/x-ndjson", LogLine.as_json)}
# What stands in it a stranger's model may have written.
LOG_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Vary": "Accept"}
LOG_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The log; of NDJSON each line is an object with `seq`, `at`, `attempt`, `source` and `text`",
        "content": {view.media_type: {"schema": {"type": "string"}} for view in LOG_VIEWS.values()},
    },
    **problem_responses(406),
}


@router.get("/jobs/{job_id}/logs", response_class=Response, responses=LOG_RESPONSES)
async def get_logs(
    job_id: str,
    request: Request,
    gateway: CurrentGateway,
    caller: JobsReader,
    *,
    tail: Annotated[int, Query(ge=1, le=10_000, description="Only this many of the last lines.")] = 1000,
    attempt: Annotated[int | None, Query(ge=1, lt=2**31, description="Only what this attempt left.")] = None,
    after: Annotated[int, Query(ge=0, lt=2**53, description="Only lines whose `seq` is larger.")] = 0,
    format: Annotated[Literal["text", "ndjson"] | None, Query(description="Before what Accept says.")] = None,
) -> Response:
    """What the service did and the engine said, in every state; while the job runs, a second or two later."""
    view = view_for(request, format, LOG_VIEWS, noun="log")
    found = await run_in_threadpool(_find, gateway, job_id, caller.project_id, tail=tail, attempt=attempt, after=after)
    lines = await stored_lines(gateway.store, found, tail=tail) if isinstance(found, Artifact) else found
    return Response("".join(map(view.write, lines)), media_type=view.media_type, headers=LOG_HEADERS)


def _find(
    gateway: Gateway, job_id: str, project_id: str, *, tail: int, attempt: int | None, after: int
) -> list[LogLine] | Artifact:
    """The lines, or the file where the lines lie of a job that ran before they were rows."""
    stored = select(Artifact).where(Artifact.job_id == job_id, Artifact.kind == "log")
    if attempt is not None:
        stored = stored.where(Artifact.attempt == attempt)
    live = select(JobEvent.seq).where(JobEvent.job_id == job_id, JobEvent.type == LOG).limit(1)
    with gateway.readers() as session:
        find_job(session, job_id=job_id, project_id=project_id)
        newest = session.scalars(stored.order_by(Artifact.attempt.desc(), Artifact.id.desc()).limit(1)).first()
        if newest is not None and newest.size_bytes and session.scalar(live) is None:
            return newest
        return log_lines(session, job_id, tail=tail, attempt=attempt, after=after)
