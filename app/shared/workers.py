"""The workers that live, what they serve, and from that: in which queue a job waits. Callers own the transaction."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.orm import Session

from app.shared.db import db_now
from app.shared.tables import Job, WorkerRow

CPU, GPU = "cpu", "gpu"
QUEUES = (CPU, GPU)
# A worker says that it lives every two seconds; a slow database is no death.
LIVE_SECONDS = 30.0
FORGOTTEN_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Worker:
    """What a worker process says of itself: `queues` it serves, the `device` of its engines, its `version`."""

    name: str
    queues: tuple[str, ...]
    device: str
    version: str


def name_of_owner(owner: str) -> str:
    """The worker's name in the owner of a claim, which names the process in it as well."""
    return owner.partition("/")[0]


def note_worker(session: Session, worker: Worker) -> None:
    """The worker lives; those that were silent for a day are forgotten."""
    seen = {"queues": list(worker.queues), "device": worker.device, "version": worker.version, "seen_at": db_now()}
    known = session.execute(update(WorkerRow).where(WorkerRow.name == worker.name).values(seen))
    if not known.rowcount:  # type: ignore[attr-defined]  # an UPDATE has one
        session.add(WorkerRow(name=worker.name, **seen))
    session.execute(delete(WorkerRow).where(WorkerRow.seen_at < db_now() - FORGOTTEN_SECONDS))


def note_draining(session: Session, name: str) -> None:
    """The worker takes no more jobs: it gives back what it runs, and goes."""
    session.execute(update(WorkerRow).where(WorkerRow.name == name).values(draining=True, seen_at=db_now()))


def forget_worker(session: Session, name: str) -> None:
    """The worker has ended by itself."""
    session.execute(delete(WorkerRow).where(WorkerRow.name == name))


def is_live() -> ColumnElement[bool]:
    """Of a worker's row: it may claim a job any moment."""
    return WorkerRow.draining.is_(False) & (WorkerRow.seen_at > db_now() - LIVE_SECONDS)


def live_queues(session: Session) -> list[frozenset[str]]:
    """For every worker that lives, the queues it serves."""
    return [frozenset(queues) for queues in session.scalars(select(WorkerRow.queues).where(is_live()))]


def queue_for(session: Session, hardware: str) -> str:
    """Where a job waits: `auto` is the GPU's queue while a worker serves it, else the other."""
    return hardware if hardware in QUEUES else _best_of(live_queues(session))


def rehome_jobs(session: Session) -> None:
    """Move waiting jobs of hardware `auto` to a queue that is served: the only GPU worker may have gone since."""
    live = live_queues(session)
    served = frozenset[str]().union(*live)
    if served:
        stranded = (Job.status == "queued", Job.hardware == "auto", Job.queue.not_in(served))
        moved = update(Job).where(*stranded).values(queue=_best_of(live), version=Job.version + 1, updated_at=db_now())
        session.execute(moved.execution_options(synchronize_session=False))


def rivals_of(queue: str, live: Sequence[frozenset[str]]) -> frozenset[str]:
    """The queues whose jobs are before or after those of `queue` for every worker that serves it."""
    serving = [queues for queues in live if queue in queues]
    return frozenset({queue}).union(frozenset.intersection(*serving)) if serving else frozenset({queue})


def _best_of(live: Iterable[frozenset[str]]) -> str:
    served = frozenset[str]().union(*live)
    return GPU if GPU in served else CPU
