"""Is it alive, is it ready, what is it doing."""

import contextlib
from importlib.metadata import version

import obstore
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
from app.schemas import Health, QueueState, Readiness, System, WorkerSeen
from app.shared.db import db_now
from app.shared.jobs import HELD, LIVE
from app.shared.tables import Attempt, Job
from app.shared.times import rfc3339

router = APIRouter(tags=["system"])
SEEN_WITHIN_SECONDS = 3600.0
BROKER_TIMEOUT_SECONDS = 2


@router.get("/healthz", response_model=Health)
def healthz() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/readyz", response_model=Readiness, responses={503: {"model": Readiness, "description": "Not ready"}})
def readyz(gateway: CurrentGateway) -> JSONResponse:
    """Database, broker and store answer. A missing worker is not unready: jobs can still be taken in."""
    checks = {name: check(gateway) for name, check in CHECKS.items()}
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
        with contextlib.suppress(FileNotFoundError):  # the store said so: it answers
            obstore.head(gateway.store, "tmp/readyz")
    except (StoreError, OSError) as error:
        return f"failed: {type(error).__name__}"
    return "ok"


CHECKS = {"database": _check_database, "broker": _check_broker, "store": _check_store}


@router.get("/system", response_model=System, responses=problem_responses(401, 403, 429, 500, 503))
def get_system(gateway: CurrentGateway, _: SystemReader) -> System:
    """How long the queue is, and which workers were seen in the last hour."""
    with gateway.readers() as session:
        return System(version=version("archrepair"), queue=_queue(session), workers=_workers(session))


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


def _workers(session: Session) -> list[WorkerSeen]:
    busy = set(session.scalars(select(Job.owner).where(Job.status.in_(HELD), Job.lease_until > db_now())))
    last_seen = func.max(func.coalesce(Attempt.ended_at, db_now())).label("last_seen")
    rows = select(Attempt.owner, last_seen).group_by(Attempt.owner).order_by(Attempt.owner)
    recent = rows.having(last_seen > db_now() - SEEN_WITHIN_SECONDS)
    return [
        WorkerSeen(name=row.owner, busy=row.owner in busy, last_seen_at=rfc3339(row.last_seen) or "")
        for row in session.execute(recent)
    ]
