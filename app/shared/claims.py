"""Who gets the next job: priority first, then fair share between projects, then age. Callers own the transaction.

Fair share: the project with the fewest running jobs comes first, so a thousand jobs of one project do not keep
another's only job waiting. A project at its quota of running jobs waits for one of them to end; looking at a model is
not counted, somebody waits for it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, func, or_, select
from sqlalchemy.orm import Session

from app.shared.db import db_now
from app.shared.jobs import HELD, INSPECT, Claim, take
from app.shared.tables import Attempt, Job, JobInput, Model, Project
from app.shared.workers import QUEUES

# Claims take turns on Postgres, as writers do on SQLite: two at once would both count a project's running jobs before
# either has added its own. A worker that freezes with the turn loses it after some seconds.
_TURN_LOCK = 0x617263686C61696D
_TURN_SECONDS = 10


@dataclass(frozen=True)
class Share:
    """What a project has of the workers: jobs that run, inspections not counted, and its quota of them."""

    running: int
    quota: int | None

    @property
    def is_full(self) -> bool:
        return self.quota is not None and self.running >= self.quota


def claim_job(
    session: Session,
    *,
    owner: str,
    lease_seconds: float,
    queues: Sequence[str] = QUEUES,
    running_jobs: int | None = None,
) -> Claim | None:
    """Take the next job of these queues, or None. `running_jobs`: the quota of projects that have none of their own.

    `owner` must be unique to the worker process: it is half of the fence.
    """
    _wait_for_turn(session)
    for head in _heads_in_turn(session, queues, running_jobs):
        row = take(
            session,
            "claim",
            # Rows that a cancel or a sweep is at are passed over.
            Job.id == _first_of(head).with_for_update(skip_locked=True).scalar_subquery(),
            owner=owner,
            attempt=Job.attempt + 1,
            lease_until=db_now() + lease_seconds,
            started_at=db_now(),
        )
        if row is not None:
            session.add(Attempt(job_id=row.id, number=row.attempt, owner=owner))
            return _claim_of(session, row.id)
    return None


def has_claimable(session: Session, *, queues: Sequence[str], running_jobs: int | None) -> bool:
    """Whether `claim_job` would find one."""
    return bool(_heads_in_turn(session, queues, running_jobs))


def _wait_for_turn(session: Session) -> None:
    session.connection()  # begins the transaction now, which on SQLite is the lock
    if session.get_bind().dialect.name == "postgresql":
        seconds = func.set_config("idle_in_transaction_session_timeout", f"{_TURN_SECONDS}s", True)
        session.execute(select(seconds, func.pg_advisory_xact_lock(_TURN_LOCK)))


@dataclass(frozen=True)
class _Head:
    """The job of one project and queue that comes first; `kind` when only jobs of that kind may start."""

    project_id: str
    queue: str
    kind: str | None
    priority: int
    created_at: float


def _heads_in_turn(session: Session, queues: Sequence[str], running_jobs: int | None) -> list[_Head]:
    """What each project has to claim in each of these queues, that first whose turn it is."""
    shares = shares_of(session, running_jobs)
    full = [project_id for project_id, share in shares.items() if share.is_full]
    heads = [head for queue in queues for head in _heads(session, queue, Project.id.not_in(full))]
    if full:
        heads += [head for queue in queues for head in _heads(session, queue, Project.id.in_(full), kind=INSPECT)]
    return sorted(heads, key=lambda head: order_of(head, shares[head.project_id].running))


def _heads(session: Session, queue: str, projects: ColumnElement[bool], *, kind: str | None = None) -> Iterator[_Head]:
    """Two looks at an end of the index for each project: the cost hardly grows with the number that waits."""
    mine = (*may_start(), Job.project_id == Project.id, Job.queue == queue)
    mine = (*mine, Job.kind == kind) if kind else mine
    highest = select(func.max(Job.priority)).where(*mine).correlate(Project).scalar_subquery()
    tops = select(Project.id, highest.label("priority")).where(projects).subquery("tops")
    of_top = (*may_start(), Job.project_id == tops.c.id, Job.queue == queue, Job.priority == tops.c.priority)
    of_top = (*of_top, Job.kind == kind) if kind else of_top
    oldest = select(func.min(Job.created_at)).where(*of_top).correlate(tops).scalar_subquery()
    rows = select(tops, oldest.label("created_at")).where(tops.c.priority.is_not(None))
    for row in session.execute(rows):
        if row.created_at is not None:
            yield _Head(row.id, queue, kind, row.priority, row.created_at)


def shares_of(session: Session, running_jobs: int | None) -> dict[str, Share]:
    """What each project has now. `running_jobs` is the quota of those without one of their own."""
    counted = select(Job.project_id, func.count()).where(Job.status.in_(HELD), Job.kind != INSPECT)
    running = {row[0]: row[1] for row in session.execute(counted.group_by(Job.project_id))}
    quotas = session.execute(select(Project.id, Project.quotas))
    return {row.id: Share(running.get(row.id, 0), row.quotas.get("running_jobs", running_jobs)) for row in quotas}


def order_of(job: Any, running: int) -> tuple[int, int, float]:
    """Of two waiting jobs the one that sorts first is claimed first; its project runs so many when it is its turn."""
    return -job.priority, running, job.created_at


def may_start() -> tuple[ColumnElement[bool], ...]:
    """Of a job's row; one past its deadline is the sweep's."""
    return Job.status == "queued", or_(Job.deadline_at.is_(None), Job.deadline_at > db_now())


def _first_of(head: _Head) -> Select[str]:
    mine = (*may_start(), Job.project_id == head.project_id, Job.queue == head.queue, Job.priority == head.priority)
    mine = (*mine, Job.kind == head.kind) if head.kind else mine
    return select(Job.id).where(*mine).order_by(Job.created_at, Job.id).limit(1)


def _claim_of(session: Session, job_id: str) -> Claim:
    left = (Job.deadline_at - db_now()).label("seconds_left")
    job, seconds_left = session.execute(select(Job, left).where(Job.id == job_id)).one()
    session.refresh(job)
    assert job.owner is not None
    model = session.get_one(Model, job.model_id) if job.model_id is not None else None
    inputs = session.scalars(select(JobInput).where(JobInput.job_id == job_id).order_by(JobInput.name))
    return Claim(
        job_id=job_id,
        attempt=job.attempt,
        owner=job.owner,
        kind=job.kind,
        spec=job.spec,
        model_id=job.model_id,
        model_storage_key=model.storage_key if model is not None else None,
        inputs=tuple((item.name, item.storage_key, item.filename) for item in inputs),
        timeout_seconds=None if job.deadline_at is None else job.deadline_at - job.created_at,
        seconds_left=seconds_left,
        checkpoint_key=job.checkpoint_key,
        traceparent=job.traceparent,
    )
