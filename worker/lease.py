"""Keeping a claimed job ours: a thread renews the lease while the main thread runs the engine, downloads or uploads."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from app.shared.jobs import Claim, renew_lease
from app.shared.jobs import Lease as LeaseState
from app.shared.metrics import LEASE_LOSSES

CANCEL_POLL_SECONDS = 1.0


class Lease:
    """What the last renewal said. `lost` is final: somebody else may be running the job already."""

    def __init__(self, renew: Callable[[], LeaseState], lease_seconds: float) -> None:
        self.state: LeaseState = "held"
        self._renew = renew
        self._lease_seconds = lease_seconds
        self._renewed_at = time.monotonic()
        self._closed = threading.Event()

    def keep(self) -> None:
        """Renew until closed or lost; the renewal also brings the wish to cancel, hence at least once per second."""
        interval = min(self._lease_seconds / 3, CANCEL_POLL_SECONDS)
        while self.state != "lost" and not self._closed.wait(interval):
            self._renew_once()

    def close(self) -> None:
        self._closed.set()

    def _renew_once(self) -> None:
        try:
            self.state = self._renew()
            self._renewed_at = time.monotonic()
        except SQLAlchemyError as error:
            # Without the database nobody else can claim the job either, but after the lease somebody may have.
            structlog.get_logger().warning("lease not renewed", error=str(error))
            if time.monotonic() - self._renewed_at > self._lease_seconds:
                self.state = "lost"
        if self.state == "lost":
            LEASE_LOSSES.inc()


@contextmanager
def kept_lease(sessions: sessionmaker[Session], claim: Claim, *, lease_seconds: float) -> Iterator[Lease]:
    """The lease of this claim, renewed in the background until the block ends."""

    def renew() -> LeaseState:
        with sessions.begin() as session:
            return renew_lease(session, claim, lease_seconds=lease_seconds)

    lease = Lease(renew, lease_seconds)
    thread = threading.Thread(target=lease.keep, name=f"lease {claim.job_id}", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        lease.close()
        thread.join()
