"""A worker that lives and hears no rings any more: seen to be so by the jobs it leaves waiting, and started anew.

A consumer that does not come back after the broker was away, or a pool process that never starts, looks alive from all
sides: it sweeps, renews and is counted. What gives it away is a job it could claim while it has none.
"""

import time
from collections.abc import Callable

from obstore.exceptions import BaseError as StoreError
from obstore.store import ObjectStore
from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from app.shared import storage
from app.shared.claims import has_claimable
from app.shared.jobs import HELD
from app.shared.tables import Job
from app.shared.workers import Worker

# A pool process may take two minutes to start (`worker_proc_alive_timeout`).
DEAF_SECONDS = 150.0


class DeafnessWatch:
    """Asked every few seconds; `seconds` of idling beside work that could be done are deafness."""

    def __init__(
        self,
        worker: Worker,
        store: ObjectStore,
        running_jobs: int | None,
        *,
        seconds: float = DEAF_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._worker, self._store, self._running_jobs = worker, store, running_jobs
        self._seconds, self._clock = seconds, clock
        self._since: float | None = None

    def is_deaf(self, session: Session) -> bool:
        """Whether to give this process up. While the store is away, its pool process waits for that on purpose."""
        if not self._idles_beside_work(session):
            self._since = None
            return False
        self._since = self._since if self._since is not None else self._clock()
        if self._clock() - self._since <= self._seconds:
            return False
        try:
            storage.probe(self._store)
        except (StoreError, OSError):
            self._since = None
            return False
        return True

    def _idles_beside_work(self, session: Session) -> bool:
        mine = exists().where(Job.status.in_(HELD), Job.owner.like(f"{self._worker.name}/%"))
        busy = session.scalar(select(mine))
        return not busy and has_claimable(session, queues=self._worker.queues, running_jobs=self._running_jobs)
