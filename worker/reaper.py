"""The sweeps that make lost messages and lost workers harmless. They run in a thread of the worker's main process."""

import threading
from collections.abc import Callable

import structlog
from sqlalchemy.orm import Session, sessionmaker

from app.shared.jobs import queued_without_ring, reap_expired
from app.shared.outbox import add_ring, relay_outbox

SWEEP_SECONDS = 2.0


def sweep(sessions: sessionmaker[Session], ring: Callable[[], None]) -> list[str]:
    """Take back the jobs of silent workers, ring again for forgotten ones, send what is unsent. Returns the reaped."""
    with sessions.begin() as session:
        reaped = reap_expired(session)
        if queued_without_ring(session):
            add_ring(session)
    with sessions() as session:
        relay_outbox(session, ring)
        session.commit()
    return reaped


def sweep_until(stopped: threading.Event, sessions: sessionmaker[Session], ring: Callable[[], None]) -> None:
    """Sweep every two seconds. An outage of broker or database is logged once, and the sweeps go on."""
    healthy = True
    while not stopped.wait(SWEEP_SECONDS):
        try:
            reaped = sweep(sessions, ring)
        except Exception as error:  # noqa: BLE001  the border of the thread: without it, lost workers stay lost
            if healthy:
                structlog.get_logger().warning("sweep failed", error=f"{type(error).__name__}: {error}")
            healthy = False
        else:
            healthy = True
            if reaped:
                structlog.get_logger().warning("took jobs back from silent workers", job_ids=reaped)
