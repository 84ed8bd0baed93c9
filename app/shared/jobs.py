"""What a job does: the one table of transitions, and the functions that take them. Callers own the transaction.

Every change bumps `version` and writes a row to `job_events`. A worker's writes are *fenced*: they only touch the row
while this worker's claim (owner and attempt) still holds, and say so when it does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Row, exists, func, insert, select, update
from sqlalchemy.orm import Session

from app.shared.db import db_now
from app.shared.ids import new_id
from app.shared.outbox import add_ring
from app.shared.tables import Artifact, Attempt, Job, JobEvent, JobInput, Model, OutboxMessage
from app.shared.webhooks import announce_job

QUEUED = ("queued",)
HELD = ("running", "cancelling")
LIVE = QUEUED + HELD
DONE = ("succeeded", "failed", "cancelled")
RERING_AFTER_SECONDS = 5.0

Lease = Literal["held", "cancel_requested", "lost"]


@dataclass(frozen=True)
class Transition:
    """From any of `sources` to `target`; `event` is what the history calls it."""

    sources: tuple[str, ...]
    target: str
    event: str


TRANSITIONS = {
    "claim": Transition(QUEUED, "running", "job.started"),
    "cancel_waiting": Transition(QUEUED, "cancelled", "job.cancelled"),
    "ask_to_stop": Transition(("running",), "cancelling", "job.cancelling"),
    "succeeded": Transition(HELD, "succeeded", "job.succeeded"),
    "failed": Transition(HELD, "failed", "job.failed"),
    "cancelled": Transition(HELD, "cancelled", "job.cancelled"),
    "give_back": Transition(("running",), "queued", "job.requeued"),
}
_RUN_IS_OVER: dict[str, Any] = {"lease_until": None, "finished_at": db_now()}
_AS_BEFORE_THE_RUN: dict[str, Any] = {
    "owner": None,
    "lease_until": None,
    "started_at": None,
    "phase": None,
    "phases": [],
    "progress": None,
}


class JobAlreadyDone(Exception):
    """The job has ended, so it cannot be cancelled."""

    def __init__(self, status: str) -> None:
        super().__init__(f"the job has already {status}" if status != "cancelled" else "the job is already cancelled")
        self.status = status


@dataclass(frozen=True)
class Claim:
    """A worker's right to run one attempt, and what it needs for it. `inputs`: (name, storage key, filename) each."""

    job_id: str
    attempt: int
    owner: str
    kind: str
    spec: dict[str, Any]
    model_id: str
    model_storage_key: str
    model_filename: str
    inputs: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class StoredArtifact:
    """A file of an attempt that is already in the store."""

    name: str
    kind: str
    media_type: str
    size_bytes: int
    sha256: str
    storage_key: str


def submit_job(
    session: Session,
    *,
    project_id: str,
    spec: dict[str, Any],
    kind: str,
    model_id: str,
    inputs: Sequence[JobInput] = (),
    metadata: Mapping[str, str] | None = None,
    max_attempts: int = 3,
    priority: int = 0,
    webhook: dict[str, Any] | None = None,
) -> Job:
    """Create a queued job with its input rows, its first event and the ring that will wake a worker."""
    job = Job(
        id=new_id("job"),
        project_id=project_id,
        kind=kind,
        status="queued",
        spec=spec,
        model_id=model_id,
        labels=dict(metadata or {}),
        max_attempts=max_attempts,
        priority=priority,
        webhook=webhook,
    )
    session.add(job)
    session.flush()
    for job_input in inputs:
        job_input.job_id = job.id
        session.add(job_input)
    _record(session, job.id, "job.created", {"status": "queued"})
    announce_job(session, job.id, "job.created")
    add_ring(session)
    return job


def claim_job(session: Session, *, owner: str, lease_seconds: float) -> Claim | None:
    """Take the next queued job, or None. `owner` must be unique to the worker process: it is half of the fence."""
    # One statement, so two workers cannot take the same row: Postgres skips locked rows, SQLite has one writer.
    next_id = (
        select(Job.id)
        .where(Job.status == "queued")
        .order_by(Job.priority.desc(), Job.created_at, Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    row = _take(
        session,
        "claim",
        Job.id == next_id,
        owner=owner,
        attempt=Job.attempt + 1,
        lease_until=db_now() + lease_seconds,
        started_at=db_now(),
    )
    if row is None:
        return None
    session.add(Attempt(job_id=row.id, number=row.attempt, owner=owner))
    return _claim_of(session, row, owner)


def _claim_of(session: Session, row: Row[Any], owner: str) -> Claim:
    model = session.get_one(Model, row.model_id)
    inputs = session.scalars(select(JobInput).where(JobInput.job_id == row.id).order_by(JobInput.name))
    return Claim(
        job_id=row.id,
        attempt=row.attempt,
        owner=owner,
        kind=row.kind,
        spec=row.spec,
        model_id=row.model_id,
        model_storage_key=model.storage_key,
        model_filename=model.filename,
        inputs=tuple((item.name, item.storage_key, item.filename) for item in inputs),
    )


def renew_lease(session: Session, claim: Claim, *, lease_seconds: float) -> Lease:
    """Heartbeat. Not a change a reader can see, so `version` stays."""
    renewed = update(Job).where(*fence(claim)).values(lease_until=db_now() + lease_seconds)
    row = session.execute(_unsynchronized(renewed).returning(Job.cancel_requested)).one_or_none()
    if row is None:
        return "lost"
    return "cancel_requested" if row.cancel_requested else "held"


def record_progress(session: Session, claim: Claim, *, phase: str, progress: dict[str, Any]) -> bool:
    """Note how far the run is; a new `phase` closes the one before. False: the lease is lost."""
    row = session.execute(select(Job.phase, Job.phases, db_now().label("now")).where(*fence(claim))).one_or_none()
    if row is None:
        return False
    phases, entered = row.phases, row.phase != phase
    if entered:
        phases = [*_closed(row.phases, row.now), {"name": phase, "started_at": row.now, "finished_at": None}]
        _record(session, claim.job_id, "job.phase", {"phase": phase, "attempt": claim.attempt})
    return _write(
        session,
        claim,
        "job.progress",
        {"phase": phase, **progress},
        phase=phase,
        phases=phases,
        progress=progress,
    )


def record_resolved_spec(session: Session, claim: Claim, spec: dict[str, Any]) -> bool:
    """Note what every `auto` became. False: the lease is lost."""
    return _write(session, claim, "job.resolved_spec", {}, resolved_spec=spec)


def finish_job(
    session: Session,
    claim: Claim,
    *,
    status: str,
    result: dict[str, Any] | None = None,
    verdict: str = "not_evaluated",
    error: dict[str, Any] | None = None,
    artifacts: Sequence[StoredArtifact] = (),
    cause: str,
) -> bool:
    """End the job as `succeeded`, `failed` or `cancelled`, with what it leaves. False: lease lost, nothing written."""
    before = session.execute(select(Job.phase, Job.phases, db_now().label("now")).where(*fence(claim))).one_or_none()
    if before is None:
        return False
    if error is not None:
        error = {"phase": before.phase, "attempt": claim.attempt, **error}
    row = _take(
        session,
        status,
        *fence(claim),
        event_data={"verdict": verdict, "code": error and error.get("code"), "outcome": (result or {}).get("outcome")},
        result=result,
        verdict=verdict,
        error=error,
        phases=_closed(before.phases, before.now),
        **_RUN_IS_OVER,
    )
    if row is None:
        return False
    for stored in artifacts:
        session.add(Artifact(id=new_id("art"), job_id=claim.job_id, attempt=claim.attempt, **vars(stored)))
    _end_attempt(session, claim.job_id, claim.attempt, cause)
    return True


def release_job(session: Session, claim: Claim, *, cause: str = "preempted") -> bool:
    """Give a running job back, its attempt not counted; a cancelling one is cancelled instead. False: lease lost."""
    if _take(session, "give_back", *fence(claim), attempt=Job.attempt - 1, **_AS_BEFORE_THE_RUN) is None:
        return finish_job(session, claim, status="cancelled", cause=cause)
    add_ring(session)
    _end_attempt(session, claim.job_id, claim.attempt, cause)
    return True


def request_cancel(session: Session, job: Job, *, keep_best: bool) -> Job:
    """Cancel a waiting job, ask a running one to stop, leave a cancelling one. Raises JobAlreadyDone."""
    asked: dict[str, Any] = {"cancel_requested": True, "keep_best": keep_best}
    # Locked first: on Postgres a worker could move the row between the two attempts below.
    session.refresh(job, with_for_update=True)
    if job.status in DONE:
        raise JobAlreadyDone(job.status)
    if _take(session, "cancel_waiting", Job.id == job.id, **asked, **_RUN_IS_OVER) is None:
        _take(session, "ask_to_stop", Job.id == job.id, **asked)
    session.refresh(job)
    return job


def reap_expired(session: Session) -> list[str]:
    """Take the jobs of silent workers away from them; returns the ids. They wait again while attempts are left."""
    expired = select(Job).where(Job.status.in_(HELD), Job.lease_until < db_now()).with_for_update(skip_locked=True)
    return [job.id for job in session.scalars(expired).all() if _reap(session, job)]


def _reap(session: Session, job: Job) -> bool:
    still = (Job.id == job.id, Job.attempt == job.attempt, Job.lease_until < db_now())
    over = {**_RUN_IS_OVER, "phases": _closed(job.phases, session.scalars(select(db_now())).one())}
    if job.status == "cancelling":
        row = _take(session, "cancelled", *still, **over)
    elif job.attempt < job.max_attempts:
        row = _take(session, "give_back", *still, event_data={"cause": "worker_lost"}, **_AS_BEFORE_THE_RUN)
        add_ring(session)
    else:
        error = _worker_lost(job)
        row = _take(session, "failed", *still, event_data={"code": error["code"]}, error=error, **over)
    if row is not None:
        _end_attempt(session, job.id, job.attempt, "worker_lost")
    return row is not None


def _worker_lost(job: Job) -> dict[str, Any]:
    return {
        "code": "worker.lost",
        "category": "platform",
        "detail": f"The worker went silent in each of {job.attempt} attempts, the last time in phase {job.phase}.",
        "hint": "Submit it again with a smaller model or repair set; if it repeats, ask the operator for worker logs.",
        "phase": job.phase,
        "attempt": job.attempt,
    }


def queued_without_ring(session: Session) -> bool:
    """Whether jobs wait and no ring was on its way for some seconds: a broker may have lost its data.

    Answer it with `outbox.add_ring(session)`, whose row also keeps this from being true again at once.
    """
    recent = (OutboxMessage.sent_at.is_(None)) | (OutboxMessage.sent_at > db_now() - RERING_AFTER_SECONDS)
    waiting = exists().where(Job.status == "queued")
    return bool(session.scalar(select(waiting & ~exists().where(recent))))


def queue_position(session: Session, job: Job) -> int | None:
    """1 for the job the next free worker takes; None when it does not wait."""
    if job.status != "queued":
        return None
    ahead = (Job.priority > job.priority) | (
        (Job.priority == job.priority)
        & ((Job.created_at < job.created_at) | ((Job.created_at == job.created_at) & (Job.id < job.id)))
    )
    return 1 + (session.scalar(select(func.count()).select_from(Job).where(Job.status == "queued", ahead)) or 0)


def fence(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    """What holds of the job's row while this claim does."""
    return (
        Job.id == claim.job_id,
        Job.owner == claim.owner,
        Job.attempt == claim.attempt,
        Job.status.in_(HELD),
    )


def _take(
    session: Session,
    name: str,
    *conditions: ColumnElement[bool],
    event_data: dict[str, Any] | None = None,
    **values: Any,
) -> Row[Any] | None:
    """Take one transition of the table where `conditions` hold; None when no row could."""
    transition = TRANSITIONS[name]
    moved = update(Job).where(Job.status.in_(transition.sources), *conditions)
    moved = moved.values(status=transition.target, version=Job.version + 1, updated_at=db_now(), **values)
    returned = _unsynchronized(moved).returning(Job.id, Job.attempt, Job.kind, Job.model_id, Job.spec)
    row = session.execute(returned).one_or_none()
    if row is not None:
        data = {"status": transition.target, "attempt": row.attempt, **(event_data or {})}
        _record(session, row.id, transition.event, data)
        announce_job(session, row.id, transition.event)
    return row


def _write(session: Session, claim: Claim, event: str, data: dict[str, Any], **values: Any) -> bool:
    changed = update(Job).where(*fence(claim)).values(version=Job.version + 1, updated_at=db_now(), **values)
    row = session.execute(_unsynchronized(changed).returning(Job.id)).one_or_none()
    if row is not None:
        _record(session, claim.job_id, event, {**data, "attempt": claim.attempt})
    return row is not None


def _unsynchronized(statement: Any) -> Any:
    # Rows are re-read where they are needed; the ORM would otherwise evaluate every condition in Python.
    return statement.execution_options(synchronize_session=False)


def _record(session: Session, job_id: str, event: str, data: dict[str, Any]) -> None:
    session.execute(insert(JobEvent).values(job_id=job_id, type=event, data=data, created_at=db_now()))


def _closed(phases: list[dict[str, Any]], now: float) -> list[dict[str, Any]]:
    return [phase if phase["finished_at"] is not None else {**phase, "finished_at": now} for phase in phases]


def _end_attempt(session: Session, job_id: str, number: int, cause: str) -> None:
    running = (Attempt.job_id == job_id, Attempt.number == number, Attempt.ended_at.is_(None))
    session.execute(_unsynchronized(update(Attempt).where(*running).values(ended_at=db_now(), cause=cause)))
