"""Who waits, at what place, and until when: the order of `claims`, and times from what was measured, or none.

Times are estimates of the earliest: a job that runs longer than others of its kind is taken to end any moment.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from app.shared.claims import may_start, order_of, shares_of
from app.shared.db import db_now
from app.shared.jobs import HELD, INSPECT
from app.shared.tables import Job, OutboxMessage
from app.shared.workers import live_queues, rivals_of

RERING_AFTER_SECONDS = 5.0
# How many of the newest runs of a kind say how long the next one takes.
NUM_RECENT = 20
# For so long a look at the queues is as good as new.
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Place:
    """`position` is None for a job that does not wait; times are epoch seconds, None where nothing tells them."""

    position: int | None
    start_at: float | None
    finish_at: float | None


@dataclass(frozen=True)
class _Recent:
    """The newest runs of one kind in one queue: seconds, and seconds per second of budget where budgets are known."""

    seconds: float
    per_budget: float | None


# By kind and queue; None where no run has succeeded yet.
_RecentRuns = Callable[[str, str], _Recent | None]


@dataclass(frozen=True)
class _Line:
    """What one look at a queue tells: the `place` of the job, the seconds ahead of it, and who works them off."""

    position: int
    seconds_ahead: float | None
    num_workers: int
    num_running: int


@dataclass(frozen=True)
class _Queues:
    """Queues that share workers: the position of each job and the seconds of work ahead of it; what runs, how long."""

    places: dict[str, tuple[int, float | None]]
    num_running: int
    seconds_left: float | None


@dataclass(eq=False)
class Look:
    """What was seen of the queues, asked of the database piece by piece and once each."""

    running_jobs: int | None = None
    now: float | None = None
    live: list[frozenset[str]] | None = None
    recent: dict[tuple[str, str], _Recent | None] = field(default_factory=dict)
    queues: dict[frozenset[str], _Queues] = field(default_factory=dict)

    def recent_runs(self, session: Session) -> _RecentRuns:
        """The newest runs, by kind and queue."""

        def look(kind: str, queue: str) -> _Recent | None:
            if (kind, queue) not in self.recent:
                self.recent[kind, queue] = _recent(session, kind, queue)
            return self.recent[kind, queue]

        return look


class Looks:
    """A look that is shared for a moment: hundreds who wait for their place need not each sort the whole queue."""

    def __init__(self, running_jobs: int | None, *, seconds: float = LOOK_SECONDS) -> None:
        self._running_jobs, self._seconds = running_jobs, seconds
        self._look, self._until = Look(running_jobs), 0.0

    def current(self) -> Look:
        """The one of this moment. Two threads may both make a new one, which costs a look and nothing else."""
        now = time.monotonic()
        if now >= self._until:
            self._look, self._until = Look(self._running_jobs), now + self._seconds
        return self._look


def queue_places(session: Session, jobs: Sequence[Job], look: Look | None = None) -> dict[str, Place]:
    """The places of these jobs by id, as they are now, or as `look` has seen them, for jobs that it has."""
    pending = [job for job in jobs if job.status in ("queued", "running")]
    if not pending:
        return {job.id: Place(None, None, None) for job in jobs}
    look = look or Look()
    recent = look.recent_runs(session)
    if look.now is None:
        look.now = session.scalars(select(db_now())).one()
    if look.live is None:
        look.live = live_queues(session)
    now, live = look.now, look.live
    places = {job.id: Place(None, None, _finish(job, job.started_at, recent, now)) for job in jobs}
    waiting = [job for job in pending if job.status == "queued"]
    for queue in {job.queue for job in waiting}:
        rivals = rivals_of(queue, live)
        mine = [job for job in waiting if job.queue == queue]
        if rivals not in look.queues or any(job.id not in look.queues[rivals].places for job in mine):
            # In one step: other threads read the same look meanwhile.
            look.queues[rivals] = _Queues(
                _lines(session, rivals, recent, look.running_jobs), *_running(session, rivals, recent, now)
            )
        seen = look.queues[rivals]
        workers = sum(bool(rivals & queues) and queue in queues for queues in live)
        for job in mine:
            if job.id in seen.places:
                position, seconds_ahead = seen.places[job.id]
                line = _Line(position, _plus(seconds_ahead, seen.seconds_left), workers, seen.num_running)
                start = _start(line, now)
                places[job.id] = Place(line.position, start, _finish(job, start, recent, now))
    return places


def expected_wait_seconds(session: Session, queue: str) -> float | None:
    """How long a job that came to the end of this queue now would wait; None where nothing tells."""
    recent, now, live = Look().recent_runs(session), session.scalars(select(db_now())).one(), live_queues(session)
    rivals = rivals_of(queue, live)
    rows = select(Job.kind, Job.queue, func.count()).where(Job.status == "queued", Job.queue.in_(rivals))
    counts = [(row[0], row[1], row[2]) for row in session.execute(rows.group_by(Job.kind, Job.queue))]
    ahead: float | None = 0.0
    for kind, name, count in counts:
        runs = recent(kind, name)
        ahead = _plus(ahead, runs.seconds * count if runs else None)
    busy, busy_seconds = _running(session, rivals, recent, now)
    workers = sum(queue in queues for queues in live)
    start = _start(_Line(1 + sum(row[2] for row in counts), _plus(ahead, busy_seconds), workers, busy), now)
    return None if start is None else start - now


def queued_without_ring(session: Session) -> bool:
    """Whether jobs wait and no ring was on its way for some seconds: a broker may have lost its data.

    Answer it with `outbox.add_ring(session)`, whose row also keeps this from being true again at once.
    """
    recent = (OutboxMessage.sent_at.is_(None)) | (OutboxMessage.sent_at > db_now() - RERING_AFTER_SECONDS)
    waiting = exists().where(Job.status == "queued")
    return bool(session.scalar(select(waiting & ~exists().where(recent))))


def _lines(
    session: Session, queues: frozenset[str], recent: _RecentRuns, running_jobs: int | None
) -> dict[str, tuple[int, float | None]]:
    """Position and seconds of work ahead, None where a kind ahead is unknown, of all waiting jobs by id.

    A project's next job is claimed when it runs one more than now, so the whole order is one sort. What waits for a
    quota comes last.
    """
    columns = (Job.id, Job.project_id, Job.priority, Job.kind, Job.queue, Job.created_at)
    oldest_first = (Job.priority.desc(), Job.created_at, Job.id)
    jobs = session.execute(select(*columns).where(*may_start(), Job.queue.in_(queues)).order_by(*oldest_first)).all()
    shares, keys = shares_of(session, running_jobs), []
    for job in jobs:
        share = shares[job.project_id]
        keys.append((share.is_full and job.kind != INSPECT, order_of(job, share.running)))
        if job.kind != INSPECT:
            shares[job.project_id] = replace(share, running=share.running + 1)
    lines: dict[str, tuple[int, float | None]] = {}
    known_ahead: float | None = 0.0
    for position, index in enumerate(sorted(range(len(jobs)), key=keys.__getitem__), 1):
        job = jobs[index]
        lines[job.id] = (position, known_ahead)
        runs = recent(job.kind, job.queue)
        known_ahead = _plus(known_ahead, runs.seconds if runs else None)
    return lines


def _running(session: Session, queues: frozenset[str], recent: _RecentRuns, now: float) -> tuple[int, float | None]:
    """How many jobs of these queues run, and the seconds they still need together, None where nothing tells."""
    rows = select(Job.kind, Job.queue, Job.started_at).where(Job.status.in_(HELD), Job.queue.in_(queues))
    jobs = session.execute(rows.where(Job.lease_until > db_now())).all()
    seconds_left: float | None = 0.0
    for job in jobs:
        runs = recent(job.kind, job.queue)
        left = None if runs is None else max(0.0, runs.seconds - (now - (job.started_at or now)))
        seconds_left = _plus(seconds_left, left)
    return len(jobs), seconds_left


def _recent(session: Session, kind: str, queue: str) -> _Recent | None:
    # As JSON, not as a number: an engine said it, and a database would stumble over what is none.
    budget = Job.resolved_spec["repair"]["budget_seconds"].label("budget")
    rows = select((Job.finished_at - Job.started_at).label("seconds"), budget)
    newest = rows.where(Job.kind == kind, Job.queue == queue, Job.status == "succeeded")
    runs = session.execute(newest.order_by(Job.finished_at.desc()).limit(NUM_RECENT)).all()
    if not runs:
        return None
    budgets = [_number(run.budget) for run in runs]
    ratios = [run.seconds / seconds for run, seconds in zip(runs, budgets, strict=True) if seconds]
    return _Recent(median(run.seconds for run in runs), median(ratios) if len(ratios) == len(runs) else None)


def _expected_seconds(job: Job, recent: _RecentRuns) -> float | None:
    """How long the job's run takes: as its kind did lately, in proportion to its budget; else its budget, if it has."""
    asked = (job.resolved_spec or job.spec).get("repair")
    budget = _number(asked.get("budget_seconds")) if isinstance(asked, dict) else None
    runs = recent(job.kind, job.queue)
    if runs is None:
        return budget
    return runs.seconds if budget is None or runs.per_budget is None else runs.per_budget * budget


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None


def _start(line: _Line, now: float) -> float | None:
    if line.num_workers == 0:
        return None
    if line.position <= line.num_workers - line.num_running:
        return now
    return None if line.seconds_ahead is None else now + line.seconds_ahead / line.num_workers


def _finish(job: Job, started_at: float | None, recent: _RecentRuns, now: float) -> float | None:
    """None too for a job that has taken longer than it should have: nothing tells when it ends."""
    seconds = _expected_seconds(job, recent)
    if started_at is None or seconds is None or job.status not in ("queued", "running"):
        return None
    return started_at + seconds if started_at + seconds > now else None


def _plus(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second
