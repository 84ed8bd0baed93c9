"""What a job leaves: its files by id, and by what they are: model, localization, report."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.accept import view_for
from app.auth import JobsReader
from app.deps import CurrentGateway
from app.downloads import DOWNLOAD_RESPONSES, Download, download_of, send_file
from app.errors import ApiProblem, problem_responses
from app.rendering import render_artifact
from app.rows import find_job, find_row
from app.schemas.responses import ArtifactPage
from app.shared.jobs import DONE
from app.shared.tables import Artifact, Job, Model
from app.waiting import RETRY_AFTER_SECONDS
from archrepair_core.report.policy import SERVED_POLICY
from archrepair_core.spec import OutputFormat, format_of_file

router = APIRouter(tags=["artifacts"], responses=problem_responses(401, 403, 404, 422, 429, 500, 503))
ReportFormat = Literal["json", "html", "md", "junit"]


@dataclass(frozen=True)
class ReportView:
    """One format of the report: the kind of its artifact, and its type with and without the character set."""

    kind: str
    media_type: str
    content_type: str


REPORT_VIEWS = {
    "json": ReportView("report", "application/json", "application/json"),
    "html": ReportView("report_html", "text/html", "text/html; charset=utf-8"),
    "md": ReportView("report_md", "text/markdown", "text/markdown; charset=utf-8"),
    "junit": ReportView("report_junit", "application/xml", "application/xml"),
}
_REPORT_CONTENT = {view.media_type: {"schema": {"type": "string"}} for view in REPORT_VIEWS.values()}
_REPORT_CONTENT["application/json"] = {"schema": {"type": "object"}}
REPORT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The report", "content": _REPORT_CONTENT},
    206: {
        "description": "The part of the file that Range asked for",
        "content": {view.media_type: {"schema": {"type": "string"}} for view in REPORT_VIEWS.values()},
    },
}
# The page was written by a process that ran a stranger's model: whatever it holds, nothing but our own script runs.
REPORT_HEADERS = {
    "Content-Security-Policy": SERVED_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "SAMEORIGIN",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept",
}
FORMAT_DESCRIPTION = "One of the job's `outputs`; without it the format of the uploaded model."
JSON_FILE = {200: {"content": {"application/json": {}}, "description": "The file"}}


def artifact_file(artifact_id: str, gateway: CurrentGateway, caller: JobsReader) -> Download:
    """The artifact a path names. Another project's is as absent as one that never was."""
    of_project = (Job.project_id == caller.project_id, Job.deleted_at.is_(None))
    found = select(Artifact).join(Job).where(Artifact.id == artifact_id, *of_project)
    with gateway.readers() as session:
        return download_of(find_row(session, found, artifact_id, noun="artifact"))


def repaired_model(
    job_id: str,
    gateway: CurrentGateway,
    caller: JobsReader,
    candidate: Annotated[bool, Query(description="Also a model that the gates refused.")] = False,
    format: Annotated[OutputFormat | None, Query(description=FORMAT_DESCRIPTION)] = None,
) -> Download:
    """The repaired model of a job, named after the file that was uploaded."""
    with gateway.readers() as session:
        job = find_job(session, job_id=job_id, project_id=caller.project_id)
        best = _artifacts_of(session, job, "model")
        refused = _artifacts_of(session, job, "candidate")
        model = session.get(Model, job.model_id) if job.model_id is not None else None
    uploaded = PurePath(model.filename if model is not None else "model")
    artifacts = best or (refused if candidate else [])
    if not artifacts:
        hint = "Add ?candidate=true for the model the gates refused." if refused else "See the job's result and error."
        raise ApiProblem("job.no_repaired_model", _why_no_model(job), hint=hint)
    artifact = _in_format(job, artifacts, format)
    suffix = PurePath(artifact.name).suffix or uploaded.suffix
    stem = "repaired" if artifact.kind == "model" else artifact.kind
    return download_of(artifact, filename=f"{uploaded.stem}.{stem}{suffix}")


def _in_format(job: Job, artifacts: Sequence[Artifact], asked: OutputFormat | None) -> Artifact:
    """The artifact in that format; without one in the first of the job's outputs there is, the uploaded one's own."""
    by_format = {format_of_file(artifact.name): artifact for artifact in artifacts}
    if asked is None:
        wanted = (job.resolved_spec or {}).get("outputs", [])
        return next((by_format[output] for output in wanted if output in by_format), artifacts[0])
    if asked not in by_format:
        there = ", ".join(sorted(filter(None, by_format)))
        detail = f"Job {job.id} has no {asked} file; it has {there}.{_why_no_format(job, asked)}"
        raise ApiProblem("job.no_such_format", detail, hint=f"Ask for one of {there}, or add {asked!r} to `outputs`.")
    return by_format[asked]


def _why_no_format(job: Job, asked: OutputFormat) -> str:
    exports = (job.result or {}).get("exports", [])
    reasons = [export["note"] for export in exports if export["format"] == asked and export["note"]]
    return f" It was {reasons[0]}" if reasons else ""


def _why_no_model(job: Job) -> str:
    if job.kind == "evaluate":
        return f"Job {job.id} has no repaired model: an evaluation only measures."
    if job.result is not None and job.result.get("reason"):
        return f"Job {job.id} has no repaired model: {job.result['reason']}"
    if job.error is not None:
        return f"Job {job.id} has no repaired model, it {job.status}: {job.error.get('detail', '')}"
    return f"Job {job.id} has no repaired model: it {job.status} with kind {job.kind!r}."


def _artifact_of(session: Session, job: Job, kind: str) -> Artifact | None:
    """The job's artifact of that kind, from the newest attempt. Raises ApiProblem while the job runs."""
    return next(iter(_artifacts_of(session, job, kind)), None)


def _artifacts_of(session: Session, job: Job, kind: str) -> list[Artifact]:
    """All artifacts of that kind from the newest attempt that has any. Raises ApiProblem while the job runs."""
    if job.status not in DONE:
        headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
        detail = f"Job {job.id} is {job.status}."
        raise ApiProblem("job.not_finished", detail, hint="GET /v1/jobs/{id}?wait=60 waits for it.", headers=headers)
    rows = select(Artifact).where(Artifact.job_id == job.id, Artifact.kind == kind)
    found = session.scalars(rows.order_by(Artifact.attempt.desc(), Artifact.id)).all()
    return [artifact for artifact in found if artifact.attempt == found[0].attempt]


def localization_file(job_id: str, gateway: CurrentGateway, caller: JobsReader) -> Download:
    """The ranked blocks of a job."""
    with gateway.readers() as session:
        job = find_job(session, job_id=job_id, project_id=caller.project_id)
        artifact = _artifact_of(session, job, "localization")
    if artifact is None:
        ended = "is an evaluation" if job.kind == "evaluate" else f"{job.status} before blocks were ranked"
        raise ApiProblem("job.no_localization", f"Job {job.id} {ended}.")
    return download_of(artifact, inline=True)


def report_file(
    job_id: str,
    request: Request,
    gateway: CurrentGateway,
    caller: JobsReader,
    format: Annotated[ReportFormat | None, Query(description="Before what Accept says.")] = None,
) -> Download:
    """The report of a job in the format asked for; JSON for those who take anything."""
    wanted = view_for(request, format, REPORT_VIEWS, noun="report")
    with gateway.readers() as session:
        job = find_job(session, job_id=job_id, project_id=caller.project_id)
        artifact = _artifact_of(session, job, wanted.kind)
    if artifact is None:
        detail = f"Job {job.id} {job.status} without a report as {wanted.media_type}."
        raise ApiProblem("job.no_report", detail, hint="See the job's error and its artifacts.")
    return replace(download_of(artifact, inline=True), media_type=wanted.content_type)


@router.get("/jobs/{job_id}/artifacts", response_model=ArtifactPage)
def list_artifacts(job_id: str, gateway: CurrentGateway, caller: JobsReader) -> ArtifactPage:
    """All files of a job."""
    rows = select(Artifact).where(Artifact.job_id == job_id).order_by(Artifact.created_at, Artifact.id)
    with gateway.readers() as session:
        find_job(session, job_id=job_id, project_id=caller.project_id)
        return ArtifactPage(data=[render_artifact(row) for row in session.scalars(rows)], has_more=False)


@router.get("/artifacts/{artifact_id}/content", response_class=Response, responses=DOWNLOAD_RESPONSES)
async def get_content(
    file: Annotated[Download, Depends(artifact_file)], request: Request, gateway: CurrentGateway
) -> Response:
    """One file, resumable by Range."""
    return await send_file(request, gateway.store, file)


@router.get("/jobs/{job_id}/model", response_class=Response, responses=DOWNLOAD_RESPONSES | problem_responses(409))
async def get_repaired_model(
    file: Annotated[Download, Depends(repaired_model)], request: Request, gateway: CurrentGateway
) -> Response:
    """The repaired model; 404 with the reason when there is none."""
    return await send_file(request, gateway.store, file)


@router.get(
    "/jobs/{job_id}/localization",
    response_class=Response,
    responses=DOWNLOAD_RESPONSES | JSON_FILE | problem_responses(409),
)
async def get_localization(
    file: Annotated[Download, Depends(localization_file)], request: Request, gateway: CurrentGateway
) -> Response:
    """The ranked blocks with their scores."""
    return await send_file(request, gateway.store, file)


@router.get(
    "/jobs/{job_id}/report",
    response_class=Response,
    responses=DOWNLOAD_RESPONSES | REPORT_RESPONSES | problem_responses(406, 409),
)
async def get_report(
    file: Annotated[Download, Depends(report_file)], request: Request, gateway: CurrentGateway
) -> Response:
    """The evidence: what was measured before and after, and what the gates said. As `?format=` or `Accept` ask."""
    answer = await send_file(request, gateway.store, file)
    answer.headers.update(REPORT_HEADERS)
    return answer
