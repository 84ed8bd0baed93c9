"""One job: what it does now, what it has found, and how to ask for it again; and its report."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.auth import JobsReader
from app.deps import CurrentGateway, Gateway
from app.joblog import LogLine, log_lines
from app.rendering import render_job
from app.rows import find_job
from app.schemas.responses import JobRead
from app.shared.jobs import LOCALIZED, PROGRESS
from app.shared.tables import JobEvent, JobInput
from app.ui.charts import bars, cell, lines
from app.ui.rendering import show_page
from app.ui.snippets import UPLOAD, snippets
from archrepair_core.spec import PHASES

router = APIRouter()
LOG_LINES = 300
# Of a run of hours, what is drawn of its curves; older ones are in the report.
MAX_PROGRESS_ROWS = 1500
PHASES_OF_KIND = {
    "repair": PHASES,
    "localize": ("ingesting", "baseline", "localizing", "packaging"),
    "evaluate": ("ingesting", "baseline", "verifying", "packaging"),
}


@dataclass(frozen=True)
class Seen:
    """A job and its history, read in one transaction. `progress` are the events of its newest attempt."""

    job: JobRead
    log: Sequence[LogLine]
    progress: Sequence[dict[str, Any]]
    localization: dict[str, Any] | None
    files: dict[str, str]
    last_seq: int


@router.get("/jobs/{job_id}")
def show_job(job_id: str, request: Request, gateway: CurrentGateway, caller: JobsReader) -> Response:
    """The page of a job."""
    with gateway.readers() as session:
        seen = _look(session, gateway, job_id, project_id=caller.project_id)
    job = seen.job
    genotype = (job.result or {}).get("repair") or {}
    base_url = f"{request.url.scheme}://{request.url.netloc}"
    blocks = (seen.localization or {}).get("blocks", [])
    ranked = [(row["name"], row["score"]) for row in blocks if row["score"] is not None]
    return show_page(
        request,
        "job",
        job=job,
        phases=PHASES_OF_KIND.get(job.kind, ("ingesting",)),
        entered={phase.name: phase for phase in job.phases},
        log="".join(map(LogLine.as_text, seen.log)),
        log_lines=LOG_LINES,
        last_seq=seen.last_seq,
        suspicion=bars(ranked, marked=genotype.get("scope", ())),
        losses=lines(_losses(seen.progress)),
        cells=[cell(edit) for edit in genotype.get("edits", [])],
        has_report=_has_report(job),
        copies=_copies(seen, base_url),
        base_url=base_url,
        may_write="jobs:write" in caller.scopes,
    )


def _copies(seen: Seen, base_url: str) -> dict[str, str]:
    """The job as commands; none for the service's own, nor for one whose spec this release takes no more."""
    job = seen.job
    if job.kind not in PHASES_OF_KIND:
        return {}
    around: dict[str, Any] = {"metadata": job.metadata} if job.metadata else {}
    around |= {"hardware": job.hardware} if job.hardware != "auto" else {}
    try:
        return snippets(base_url=base_url, model_id=job.model_id, spec=job.spec, files=seen.files, around=around)
    except ValidationError:
        return {}


def _look(session: Session, gateway: Gateway, job_id: str, *, project_id: str) -> Seen:
    row = find_job(session, job_id=job_id, project_id=project_id)
    newest = partial(_newest, session, job_id, attempt=row.attempt)
    inputs = session.scalars(select(JobInput).where(JobInput.job_id == job_id).order_by(JobInput.name))
    return Seen(
        job=render_job(session, row, gateway.looks.current()),
        log=log_lines(session, job_id, tail=LOG_LINES, attempt=None, after=0),
        progress=newest(PROGRESS, limit=MAX_PROGRESS_ROWS)[::-1],
        localization=next(iter(newest(LOCALIZED, limit=1)), None),
        files={item.name: item.filename for item in inputs if item.name.startswith(UPLOAD)},
        last_seq=session.scalar(select(func.max(JobEvent.seq)).where(JobEvent.job_id == job_id)) or 0,
    )


def _newest(session: Session, job_id: str, kind: str, *, attempt: int, limit: int) -> list[dict[str, Any]]:
    told = select(JobEvent.data).where(JobEvent.job_id == job_id, JobEvent.type == kind)
    rows = session.scalars(told.order_by(JobEvent.seq.desc()).limit(limit))
    return [data for data in rows if data.get("attempt") == attempt]


def _losses(progress: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Points (step, loss) of the newest training of each candidate of the repair; a race trains some of them twice."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for told in progress:
        if told.get("loss") is None or told["phase"] != "repairing":  # controls train too, while verifying
            continue
        name, point = told["message"].partition(":")[0], (told["step"], told["loss"])
        if name in curves and curves[name][-1][0] >= point[0]:
            del curves[name]
        curves.setdefault(name, []).append(point)
    return curves


@router.get("/jobs/{job_id}/report")
def show_report(job_id: str, request: Request, gateway: CurrentGateway, caller: JobsReader) -> Response:
    """The report in the page: framed, in a sandbox, with an origin and a policy of its own."""
    with gateway.readers() as session:
        job = render_job(session, find_job(session, job_id=job_id, project_id=caller.project_id))
    return show_page(request, "report", job=job, has_report=_has_report(job))


def _has_report(job: JobRead) -> bool:
    return any(artifact.kind == "report_html" for artifact in job.artifacts)
