"""Jobs side by side: what was asked, what came out, and every metric they have measured."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from sqlalchemy import select
from starlette.responses import Response

from app.auth import JobsReader
from app.deps import CurrentGateway
from app.rendering import render_jobs
from app.rows import find_job
from app.schemas.responses import JobRead
from app.shared.tables import Job
from app.ui.rendering import show_page
from archrepair_core.gates import measured_metrics
from archrepair_core.report.numbers import show

router = APIRouter()
MAX_JOBS = 6
OFFERED = 30
# How each metric is written; of those that are not named here, as a number.
STYLES = {"accuracy": "percent", "rate": "percent", "p": "p", "ratio": "ratio"}


def _result(job: JobRead, *path: str) -> Any:
    value: Any = job.result or {}
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


FACTS: Mapping[str, Callable[[JobRead], Any]] = {
    "Model": lambda job: job.model_id,
    "Kind": lambda job: job.kind,
    "Outcome": lambda job: _result(job, "outcome"),
    "Method asked": lambda job: job.spec.get("repair", {}).get("method"),
    "Repair chosen": lambda job: _result(job, "repair", "name"),
    "Blocks repaired": lambda job: ", ".join(_result(job, "blocks_repaired") or []) or None,
    "Seconds": lambda job: show(_result(job, "seconds", "total"), "seconds"),
    "Seed": lambda job: job.spec.get("seed"),
    "Gates passed": lambda job: _gates(_result(job, "gates")),
}


def _gates(gates: Sequence[Mapping[str, Any]] | None) -> str | None:
    return f"{sum(gate['state'] == 'pass' for gate in gates)} of {len(gates)}" if gates else None


def _metrics(jobs: Sequence[JobRead]) -> dict[str, list[str | None]]:
    """What each job measured, by metric, in words; accuracies with what they were before."""
    measured = [measured_metrics(job.result) if job.result and "test" in job.result else {} for job in jobs]
    names = dict.fromkeys(name for metrics in measured for name in metrics)
    rows: dict[str, list[str | None]] = {}
    for name in names:
        style = STYLES.get(name.rpartition("_")[2] if "_" in name else name.rpartition(".")[2], "number")
        rows[name] = []
        for metrics in measured:
            metric = metrics.get(name)
            after = show(metric.value, style) if metric is not None and metric.value == metric.value else None
            before = metric.before if metric is not None else None
            rows[name].append(f"{show(before, style)} → {after}" if after and before is not None else after)
    return rows


@router.get("/compare")
def compare(
    request: Request,
    gateway: CurrentGateway,
    caller: JobsReader,
    id: Annotated[list[str], Query(max_length=MAX_JOBS, description="The jobs, in this order.")] = [],  # noqa: B006
) -> Response:
    """The table, and a form to put another job into it."""
    ids = list(dict.fromkeys(id))
    recent = select(Job).where(
        Job.project_id == caller.project_id,
        Job.deleted_at.is_(None),
        Job.kind.in_(("repair", "localize", "evaluate")),
        Job.id.not_in(ids),
    )
    with gateway.readers() as session:
        rows = [find_job(session, job_id=job_id, project_id=caller.project_id) for job_id in ids]
        jobs = render_jobs(session, rows)
        others = [
            (row.id, f"{row.kind}, {row.status}")
            for row in session.scalars(recent.order_by(Job.created_at.desc()).limit(OFFERED))
        ]
    facts = {name: [read(job) for job in jobs] for name, read in FACTS.items()}
    return show_page(request, "compare", jobs=jobs, facts=facts, metrics=_metrics(jobs), others=others, most=MAX_JOBS)
