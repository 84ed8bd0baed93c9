"""A job in this worker's hands: what every step of it needs, whether it is to go on, and patience with servers."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from obstore.exceptions import BaseError as StoreError
from obstore.store import ObjectStore
from sqlalchemy.orm import Session, sessionmaker

from app.shared.db import DATABASE_GONE
from app.shared.jobs import Claim
from app.shared.metrics import STORE_ERRORS
from app.shared.settings import Settings
from app.shared.workers import QUEUES
from worker.attempts import Timeline
from worker.engine_process import EngineProcess
from worker.engine_run import Interruption
from worker.finishing import Finishing
from worker.lease import Lease
from worker.limits import EngineLimits
from worker.live_log import LiveLog
from worker.scratch import Scratch
from worker.warm_engine import WarmEngine

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

RETRY_SECONDS = (0.5, 1, 2, 4, 8, 15)
T = TypeVar("T")


@dataclass(frozen=True)
class Workbench:
    """What a worker process keeps between jobs. `stopping` is set when it shall give its job back and go."""

    sessions: sessionmaker[Session]
    store: ObjectStore
    engines: WarmEngine
    limits: EngineLimits
    owner: str
    lease_seconds: float
    stopping: threading.Event
    settings: Settings
    queues: tuple[str, ...] = QUEUES
    running_jobs: int | None = None
    tracing: "TracerProvider | None" = None


@dataclass(frozen=True)
class Job:
    """One job and all that belongs to it while it runs. `overdue_at` is in `time.monotonic()` seconds."""

    bench: Workbench
    claim: Claim
    lease: Lease
    engine: EngineProcess
    log: Any
    overdue_at: float
    timeline: Timeline
    live_log: LiveLog
    finishing: Finishing

    @property
    def scratch(self) -> Scratch:
        """The directories of its engine."""
        return self.engine.scratch


class Interrupted(Exception):
    """The job is to end before its engine has begun."""

    def __init__(self, interruption: Interruption) -> None:
        super().__init__(interruption.reason)
        self.interruption = interruption


def raise_if_interrupted(job: Job) -> None:
    """Raises Interrupted when the job is not to go on."""
    interruption = interruption_of(job)
    if interruption is not None:
        raise Interrupted(interruption)


def interruption_of(job: Job) -> Interruption | None:
    """Why the job is not to go on here, if it is not."""
    if job.lease.state == "lost":
        return Interruption("lost")
    if job.lease.state == "cancel_requested":
        return Interruption("cancelled")
    if job.lease.state == "keep_best_requested" and not job.finishing.may_go_on():
        return Interruption("cancelled")
    if time.monotonic() >= job.overdue_at:
        return Interruption("overdue")
    return Interruption("stopped") if job.bench.stopping.is_set() else None


def persist(job: Job, action: Callable[[], T]) -> T:
    """Try again for half a minute: hours of work must not be lost to a restart of the database or the store."""
    for pause_seconds in RETRY_SECONDS:
        try:
            return action()
        except FileNotFoundError:
            raise
        except (*DATABASE_GONE, StoreError, OSError) as error:
            job.log.warning("trying again", error=str(error))
            if isinstance(error, StoreError):
                STORE_ERRORS.labels(type(error).__name__).inc()
            if job.lease.state in ("lost", "cancel_requested") or job.bench.stopping.wait(pause_seconds):
                raise
    return action()
