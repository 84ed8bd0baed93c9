"""What is done to jobs that nobody cares for: of silent workers, and past their deadline. Callers own the transaction.

Every worker does it every two seconds; rows that another one is at are passed over.
"""

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.shared.db import db_now
from app.shared.jobs import AS_BEFORE_THE_RUN, HELD, RUN_IS_OVER, closed, end_attempt, may_try_again, take
from app.shared.outbox import add_ring
from app.shared.tables import Job

DEADLINE_EXCEEDED = "job.deadline_exceeded"


def reap_expired(session: Session) -> list[str]:
    """Take the jobs of silent workers away from them; returns the ids. They wait again while attempts are left."""
    expired = select(Job).where(Job.status.in_(HELD), Job.lease_until < db_now()).with_for_update(skip_locked=True)
    return [job.id for job in session.scalars(expired).all() if _reap(session, job)]


def _reap(session: Session, job: Job) -> bool:
    still = (Job.id == job.id, Job.attempt == job.attempt, Job.lease_until < db_now())
    now = session.scalars(select(db_now())).one()
    over = {**RUN_IS_OVER, "phases": closed(job.phases, now)}
    cause = "worker_lost"
    if job.status == "cancelling":
        row = take(session, "cancelled", *still, **over)
    elif job.deadline_at is not None and job.deadline_at < now:
        error = deadline_exceeded(job.deadline_at - job.created_at) | {"phase": job.phase, "attempt": job.attempt}
        row = take(session, "failed", *still, event_data={"code": error["code"]}, error=error, **over)
    elif may_try_again(session, job.id, job.attempt, cause=cause, code="worker.lost"):
        row = take(session, "give_back", *still, event_data={"cause": cause}, **AS_BEFORE_THE_RUN)
        add_ring(session)
    else:
        error = _worker_lost(job)
        row = take(session, "failed", *still, event_data={"code": error["code"]}, error=error, **over)
    if row is not None:
        end_attempt(session, job.id, job.attempt, cause)
    return row is not None


def end_overdue(session: Session) -> list[str]:
    """Fail the jobs whose deadline came while they waited; returns the ids. Those that run are their worker's."""
    overdue = select(Job).where(Job.status == "queued", Job.deadline_at < db_now()).with_for_update(skip_locked=True)
    return [job.id for job in session.scalars(overdue).all() if _end_overdue(session, job)]


def _end_overdue(session: Session, job: Job) -> bool:
    assert job.deadline_at is not None
    error = deadline_exceeded(job.deadline_at - job.created_at) | {"phase": None, "attempt": job.attempt}
    still = (Job.id == job.id, Job.deadline_at < db_now())
    data = {"code": error["code"]}
    return take(session, "fail_waiting", *still, event_data=data, error=error, **RUN_IS_OVER) is not None


def deadline_exceeded(timeout_seconds: float) -> dict[str, Any]:
    """The problem of a job that was not done in time."""
    return {
        "code": DEADLINE_EXCEEDED,
        "category": "user",
        "detail": f"The job was not done within its timeout_seconds of {timeout_seconds:.0f}, waiting included.",
        "hint": "Submit it again with a longer timeout_seconds, or with a smaller repair.budget_seconds.",
    }


def _worker_lost(job: Job) -> dict[str, Any]:
    return {
        "code": "worker.lost",
        "category": "platform",
        "detail": f"The worker went silent in each of {job.attempt} attempts, the last time in phase {job.phase}.",
        "hint": "Submit it again with a smaller model or repair set; if it repeats, ask the operator for worker logs.",
        "phase": job.phase,
        "attempt": job.attempt,
    }
