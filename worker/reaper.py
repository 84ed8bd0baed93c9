"""The sweeps that make lost messages and lost workers harmless. They run in a thread of the worker's main process."""

import threading
import time
from collections.abc import Callable

import structlog
from obstore.store import ObjectStore
from sqlalchemy.orm import Session, sessionmaker

from app.shared.checkpoints import free_checkpoints
from app.shared.datasets import settle_datasets
from app.shared.deletion import expire_jobs, purge_jobs, schedule_expiry
from app.shared.forgetting import forget_deleted
from app.shared.idempotency import forget_old_answers
from app.shared.leftovers import sweep_attempts, sweep_contents
from app.shared.metrics import JOBS_REAPED
from app.shared.models import settle_forgotten_models
from app.shared.outbox import add_ring, relay_outbox
from app.shared.queueing import queued_without_ring
from app.shared.reaping import end_overdue, reap_expired
from app.shared.storage import sweep_uploads
from app.shared.uploads import free_expired_uploads
from app.shared.webhooks import forget_old_deliveries
from app.shared.workers import Worker, note_draining, note_worker, rehome_jobs
from worker.deafness import DeafnessWatch

SWEEP_SECONDS = 2.0
# A store is asked rarely, listing costs; and the slowest of uploads must never be taken for a forgotten one.
STORE_SWEEP_SECONDS = 3600.0
FORGOTTEN_UPLOAD_SECONDS = 24 * 3600.0
# Looked at so long after a job has ended: a sweep or two may be missed.
LOST_ATTEMPTS_SECONDS = 3 * 24 * 3600.0


def sweep(sessions: sessionmaker[Session], ring: Callable[[], None]) -> list[str]:
    """Take back the jobs of silent workers, settle their models, ring for what waits. Returns the reaped."""
    with sessions.begin() as session:
        reaped = reap_expired(session)
        end_overdue(session)
        rehome_jobs(session)
        settle_forgotten_models(session)
        forget_old_deliveries(session)
        settle_datasets(session)
        expire_jobs(session)
        if queued_without_ring(session):
            add_ring(session)
    with sessions() as session:
        relay_outbox(session, ring)
        session.commit()
    return reaped


def sweep_old(sessions: sessionmaker[Session], store: ObjectStore, retention_days: float) -> None:
    """Remove what nobody came back for, what is left of deleted things, and what killed processes left."""
    sweep_uploads(store, older_than_seconds=FORGOTTEN_UPLOAD_SECONDS)
    free_expired_uploads(sessions, store)
    with sessions.begin() as session:
        forget_old_answers(session)
        schedule_expiry(session, retention_days)
    forget_deleted(sessions, store)
    sweep_attempts(sessions, store, since_seconds=LOST_ATTEMPTS_SECONDS, older_than_seconds=STORE_SWEEP_SECONDS)
    sweep_contents(sessions, store, older_than_seconds=FORGOTTEN_UPLOAD_SECONDS)


def sweep_until(
    stopped: threading.Event,
    sessions: sessionmaker[Session],
    ring: Callable[[], None],
    *,
    store: ObjectStore,
    worker: Worker,
    retention_days: float,
    watch: DeafnessWatch,
    give_up: Callable[[], None],
) -> None:
    """Sweep every two seconds, what is old every hour. An outage is logged once, and the sweeps go on.

    `give_up` ends this process, when it is found to be deaf.
    """
    healthy, swept_store_at = True, float("-inf")
    while True:
        try:
            with sessions.begin() as session:
                note_worker(session, worker)
            reaped = sweep(sessions, ring)
            free_checkpoints(sessions, store)
            with sessions() as session:
                deaf = watch.is_deaf(session)
            if deaf:
                structlog.get_logger().error("jobs wait and no ring is heard: this worker ends, to be started anew")
                give_up()
            if time.monotonic() - swept_store_at >= STORE_SWEEP_SECONDS:
                sweep_old(sessions, store, retention_days)
                swept_store_at = time.monotonic()
            # Last: a store that does not let go of one file must not keep all else from being swept.
            purged = purge_jobs(sessions, store)
        except Exception as error:  # noqa: BLE001  the border of the thread: without it, lost workers stay lost
            if healthy:
                structlog.get_logger().warning("sweep failed", error=f"{type(error).__name__}: {error}")
            healthy = False
        else:
            healthy = True
            if reaped:
                JOBS_REAPED.inc(len(reaped))
                structlog.get_logger().warning("took jobs back from silent workers", job_ids=reaped)
            if purged:
                structlog.get_logger().info("removed what was left of deleted jobs", job_ids=purged)
        if stopped.wait(SWEEP_SECONDS):
            break
    with sessions.begin() as session:
        note_draining(session, worker.name)
