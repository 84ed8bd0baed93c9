"""What a job does: the one table of transitions, and the functions that take them. Callers own the transaction.

Every change bumps `version` and writes a row to `job_events`. A worker's writes are *fenced*: they only touch the row
while this worker's claim (owner and attempt) still holds, and say so when it does not.

How a worker gets its claim is in `claims`, what is done to jobs nobody holds in `reaping`, who is next in `queueing`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Row, func, insert, select, update
from sqlalchemy.orm import Session

from app.shared.cache import key_of_job
from app.shared.causes import cause_of, retries_of
from app.shared.db import db_now
from app.shared.ids import new_id
from app.shared.labels import add_labels
from app.shared.outbox import add_ring
from app.shared.tables import Artifact, Attempt, Job, JobEvent, JobInput
from app.shared.telemetry import current_traceparent
from app.shared.webhooks import announce_job
from app.shared.workers import queue_for

QUEUED = ("queued",)
HELD = ("running", "cancelling")
LIVE = QUEUED + HELD
# Events that are told of again, beside the newest in a job's row.
PROGRESS, LOCALIZED = "job.progress", "job.localized"
DONE = ("succeeded", "failed", "cancelled")
# The kind of job that only looks at a model.
INSPECT = "inspect"

Lease = Literal["held", "cancel_requested", "keep_best_requested", "lost"]


@dataclass(frozen=True)
class Transition:
    """From any of `sources` to `target`; `event` is what the history calls it."""

    sources: tuple[str, ...]
    target: str
    event: str


TRANSITIONS = {
    "claim": Transition(QUEUED, "running", "job.started"),
    "cancel_waiting": Transition(QUEUED, "cancelled", "job.cancelled"),
    "fail_waiting": Transition(QUEUED, "failed", "job.failed"),
    "ask_to_stop": Transition(("running",), "cancelling", "job.cancelling"),
    "succeeded": Transition(HELD, "succeeded", "job.succeeded"),
    "failed": Transition(HELD, "failed", "job.failed"),
    "cancelled": Transition(HELD, "cancelled", "job.cancelled"),
    "give_back": Transition(("running",), "queued", "job.requeued"),
}
RUN_IS_OVER: dict[str, Any] = {
    "lease_until": None,
    "finished_at": db_now(),
    "expires_at": db_now() + Job.keep_seconds,  # NULL without a number
}
AS_BEFORE_THE_RUN: dict[str, Any] = {
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
    """A worker's right to run one attempt, and what it needs for it. `inputs`: (name, storage key, filename) each.

    `seconds_left` of the job's `timeout_seconds`, when it was claimed. `checkpoint_key`: what an earlier attempt left.
    """

    job_id: str
    attempt: int
    owner: str
    kind: str
    spec: dict[str, Any]
    model_id: str | None
    model_storage_key: str | None
    inputs: tuple[tuple[str, str, str], ...]
    timeout_seconds: float | None = None
    seconds_left: float | None = None
    checkpoint_key: str | None = None
    traceparent: str | None = None


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
    model_id: str | None,
    inputs: Sequence[JobInput] = (),
    metadata: Mapping[str, str] | None = None,
    max_attempts: int = 3,
    priority: int = 0,
    webhook: dict[str, Any] | None = None,
    hardware: str = "auto",
    timeout_seconds: float | None = None,
    retry_of: str | None = None,
    keep_seconds: float | None = None,
) -> Job:
    """Create a queued job with its input rows, its first event and the ring that will wake a worker.

    `timeout_seconds` is for the whole job, from now; `hardware` as in `workers.queue_for`; `keep_seconds` from its end.
    """
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
        traceparent=current_traceparent(),
        hardware=hardware,
        queue=queue_for(session, hardware),
        deadline_at=None if timeout_seconds is None else db_now() + timeout_seconds,
        retry_of=retry_of,
        keep_seconds=keep_seconds,
    )
    session.add(job)
    session.flush()
    for job_input in inputs:
        job_input.job_id = job.id
        session.add(job_input)
    add_labels(session, job, job.labels)
    _record(session, job.id, "job.created", {"status": "queued"})
    announce_job(session, job.id, "job.created")
    add_ring(session)
    return job


def renew_lease(session: Session, claim: Claim, *, lease_seconds: float) -> Lease:
    """Heartbeat. Not a change a reader can see, so `version` stays."""
    renewed = update(Job).where(*fence(claim)).values(lease_until=db_now() + lease_seconds)
    row = session.execute(_unsynchronized(renewed).returning(Job.cancel_requested, Job.keep_best)).one_or_none()
    if row is None:
        return "lost"
    if not row.cancel_requested:
        return "held"
    return "keep_best_requested" if row.keep_best else "cancel_requested"


def record_progress(session: Session, claim: Claim, *, phase: str, progress: dict[str, Any]) -> bool:
    """Note how far the run is; a new `phase` closes the one before. False: the lease is lost."""
    row = session.execute(select(Job.phase, Job.phases, db_now().label("now")).where(*fence(claim))).one_or_none()
    if row is None:
        return False
    phases, entered = row.phases, row.phase != phase
    if entered:
        phases = [*closed(row.phases, row.now), {"name": phase, "started_at": row.now, "finished_at": None}]
        _record(session, claim.job_id, "job.phase", {"phase": phase, "attempt": claim.attempt})
    return _write(
        session,
        claim,
        PROGRESS,
        {"phase": phase, **progress},
        phase=phase,
        phases=phases,
        progress=progress,
    )


def record_localization(session: Session, claim: Claim, localization: dict[str, Any]) -> bool:
    """Note which blocks are to blame, while the repair goes on. False: the lease is lost."""
    return _write(session, claim, LOCALIZED, localization)


def record_resolved_spec(session: Session, claim: Claim, spec: dict[str, Any]) -> bool:
    """Note what every `auto` became, and which bytes every reference was. False: the lease is lost."""
    rows = session.scalars(select(JobInput).where(JobInput.job_id == claim.job_id).order_by(JobInput.name))
    inputs = {row.name: {"sha256": row.sha256, "size_bytes": row.size_bytes} for row in rows}
    return _write(session, claim, "job.resolved_spec", {}, resolved_spec={**spec, "inputs": inputs})


def record_input(session: Session, claim: Claim, job_input: JobInput) -> bool:
    """Note the bytes a reference led to: a later attempt takes the same. False: the lease is lost."""
    if session.scalar(select(Job.id).where(*fence(claim)).with_for_update()) is None:
        return False
    job_input.job_id = claim.job_id
    session.add(job_input)
    return True


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
    row = take(
        session,
        status,
        *fence(claim),
        event_data={"verdict": verdict, "code": error and error.get("code"), "outcome": (result or {}).get("outcome")},
        result=result,
        verdict=verdict,
        error=error,
        phases=closed(before.phases, before.now),
        cache_key=key_of_job(session, claim.job_id) if status == "succeeded" else None,
        **RUN_IS_OVER,
    )
    if row is None:
        return False
    for stored in artifacts:
        session.add(Artifact(id=new_id("art"), job_id=claim.job_id, attempt=claim.attempt, **vars(stored)))
    end_attempt(session, claim.job_id, claim.attempt, cause)
    return True


def fail_job(
    session: Session, claim: Claim, *, error: dict[str, Any], artifacts: Sequence[StoredArtifact] = ()
) -> Literal["failed", "queued", "lost"]:
    """End the job as failed, or give it back, counted, where `causes` knows that another attempt may do better."""
    cause = cause_of(error["code"], error.get("category", "platform"))
    if may_try_again(session, claim.job_id, claim.attempt, cause=cause, code=error["code"]):
        data = {"cause": cause, "code": error["code"]}
        if take(session, "give_back", *fence(claim), event_data=data, **AS_BEFORE_THE_RUN) is not None:
            add_ring(session)
            end_attempt(session, claim.job_id, claim.attempt, cause)
            return "queued"
    written = finish_job(session, claim, status="failed", error=error, artifacts=artifacts, cause=cause)
    return "failed" if written else "lost"


def may_try_again(session: Session, job_id: str, attempt: int, *, cause: str, code: str) -> bool:
    """Whether an attempt that ends so now is followed by another."""
    before = session.scalar(select(func.count()).where(Attempt.job_id == job_id, Attempt.cause == cause)) or 0
    has_attempts = session.scalar(select(Job.max_attempts > attempt).where(Job.id == job_id))
    return bool(has_attempts) and before < retries_of(cause, code)


def release_job(session: Session, claim: Claim) -> bool:
    """Give a running job back, its attempt not counted; a cancelling one is cancelled instead. False: lease lost."""
    if take(session, "give_back", *fence(claim), attempt=Job.attempt - 1, **AS_BEFORE_THE_RUN) is None:
        return finish_job(session, claim, status="cancelled", cause="cancelled")
    add_ring(session)
    end_attempt(session, claim.job_id, claim.attempt, "preempted")
    return True


def request_cancel(session: Session, job: Job, *, keep_best: bool) -> Job:
    """Cancel a waiting job, ask a running one to stop, leave a cancelling one. Raises JobAlreadyDone.

    With `keep_best` a running repair is given time to hand over the best it has; asked again without, no longer.
    """
    asked: dict[str, Any] = {"cancel_requested": True, "keep_best": keep_best}
    # Locked first: on Postgres a worker could move the row between the two attempts below.
    session.refresh(job, with_for_update=True)
    if job.status in DONE:
        raise JobAlreadyDone(job.status)
    if job.status == "cancelling":
        job.keep_best = job.keep_best and keep_best
        session.flush()
    elif take(session, "cancel_waiting", Job.id == job.id, **asked, **RUN_IS_OVER) is None:
        take(session, "ask_to_stop", Job.id == job.id, **asked)
    session.refresh(job)
    return job


def fence(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    """What holds of the job's row while this claim does."""
    return (
        Job.id == claim.job_id,
        Job.owner == claim.owner,
        Job.attempt == claim.attempt,
        Job.status.in_(HELD),
    )


def take(
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
    row = session.execute(_unsynchronized(moved).returning(Job.id, Job.attempt)).one_or_none()
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


def closed(phases: list[dict[str, Any]], now: float) -> list[dict[str, Any]]:
    """The phases of a run that ends now."""
    return [phase if phase["finished_at"] is not None else {**phase, "finished_at": now} for phase in phases]


def end_attempt(session: Session, job_id: str, number: int, cause: str) -> None:
    """Note how the attempt that runs under this number has ended."""
    running = (Attempt.job_id == job_id, Attempt.number == number, Attempt.ended_at.is_(None))
    session.execute(_unsynchronized(update(Attempt).where(*running).values(ended_at=db_now(), cause=cause)))
