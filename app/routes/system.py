"""Is it alive, is it ready, what is it doing."""

from importlib.metadata import version

from fastapi import APIRouter
from kombu.exceptions import OperationalError as BrokerError
from obstore.exceptions import BaseError as StoreError
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.responses import JSONResponse

from app.auth import SystemReader
from app.deps import CurrentGateway, Gateway
from app.errors import problem_responses
from app.schemas.system import Health, NamedQueue, QueueState, Readiness, System, WorkerSeen
from app.shared.jobs import HELD, LIVE
from app.shared.queueing import expected_wait_seconds
from app.shared.storage import probe
from app.shared.tables import Job, WorkerRow
from app.shared.times import rfc3339
from app.shared.workers import QUEUES, is_live, live_queues, name_of_owner

router = APIRouter(tags=["system"])
BROKER_TIMEOUT_SECONDS = 2


@router.get("/healthz", response_model=Health)
def healthz() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness, "description": "Not ready"}})
def readyz(gateway: CurrentGateway) -> JSONResponse:
    """Database, broker and store answer. A missing worker is not unready: jobs can still be taken in."""
    checks = {name: check(gateway) for name, check in CHECKS.items()}
    if gateway.stopping.is_set():
        checks["gateway"] = "stopping"
    ready = all(answer == "ok" for answer in checks.values())
    body = Readiness(status="ready" if ready else "unready", checks=checks)
    return JSONResponse(body.model_dump(), 200 if ready else 503)


def _check_database(gateway: Gateway) -> str:
    try:
        with gateway.readers() as session:
            session.execute(text("SELECT 1 FROM jobs LIMIT 1"))
    except SQLAlchemyError as error:
        return f"failed: {type(error).__name__}"
    return "ok"


def _check_broker(gateway: Gateway) -> str:
    try:
        with gateway.celery.connection_for_write(connect_timeout=BROKER_TIMEOUT_SECONDS) as connection:
            connection.ensure_connection(max_retries=1, timeout=BROKER_TIMEOUT_SECONDS)
    except (BrokerError, OSError) as error:
        return f"failed: {type(error).__name__}"
    return "ok"


def _check_store(gateway: Gateway) -> str:
    try:
        probe(gateway.store)
    except (StoreError, OSError) as error:
        return f"failed: {type(error).__name__}"
    return "ok"


CHECKS = {"database": _check_database, "broker": _check_broker, "store": _check_store}


@router.get("/system", response_model=System, responses=problem_responses(401, 403, 429, 500, 503))
def get_system(gateway: CurrentGateway, caller: SystemReader) -> System:
    """How long each queue is, how long one waits in it, and the workers of the last day."""
    with gateway.readers() as session:
        return System(
            version=version("archrepair"),
            queue=_queue(session),
            queues=_queues(session),
            workers=_workers(session, project_id=caller.project_id),
        )


def _queue(session: Session) -> QueueState:
    rows = session.execute(select(Job.status, func.count()).where(Job.status.in_(LIVE)).group_by(Job.status))
    counts: dict[str, int] = {row[0]: row[1] for row in rows}
    oldest = session.scalar(select(func.min(Job.created_at)).where(Job.status == "queued"))
    return QueueState(
        queued=counts.get("queued", 0),
        running=counts.get("running", 0),
        cancelling=counts.get("cancelling", 0),
        oldest_queued_at=rfc3339(oldest),
    )


def _queues(session: Session) -> list[NamedQueue]:
    rows = select(Job.queue, Job.status, func.count()).where(Job.status.in_(LIVE)).group_by(Job.queue, Job.status)
    counts = {(row[0], row[1]): row[2] for row in session.execute(rows)}
    live = live_queues(session)
    return [
        NamedQueue(
            name=name,
            queued=counts.get((name, "queued"), 0),
            running=sum(counts.get((name, status), 0) for status in HELD),
            workers=sum(name in served for served in live),
            expected_wait_seconds=expected_wait_seconds(session, name),
        )
        for name in QUEUES
    ]


def _workers(session: Session, *, project_id: str) -> list[WorkerSeen]:
    """Whose job another worker runs is nobody else's business."""
    held = session.execute(select(Job.owner, Job.id, Job.project_id).where(Job.status.in_(HELD)))
    runs = {name_of_owner(row.owner): row for row in held}
    rows = session.execute(select(WorkerRow, is_live().label("live")).order_by(WorkerRow.name))
    return [
        WorkerSeen(
            name=worker.name,
            queues=worker.queues,
            device=worker.device,
            version=worker.version,
            state=_state(worker, live=live, busy=worker.name in runs),
            job_id=runs[worker.name].id if worker.name in runs and runs[worker.name].project_id == project_id else None,
            started_at=rfc3339(worker.started_at) or "",
            last_seen_at=rfc3339(worker.seen_at) or "",
        )
        for worker, live in rows
    ]


def _state(worker: WorkerRow, *, live: bool, busy: bool) -> str:
    if worker.draining:
        return "draining"
    if not live:
        return "silent"
    return "busy" if busy else "idle"
