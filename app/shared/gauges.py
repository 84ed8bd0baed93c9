"""What is read when Prometheus asks: the service's state from the database, kept for some seconds, and room on disks.

Of the database every gateway and worker tells the same: rules take `max` over them.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import case, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from app.shared.db import db_now
from app.shared.disk import free_bytes
from app.shared.jobs import HELD, LIVE
from app.shared.tables import Job, OutboxMessage, WebhookDelivery
from app.shared.webhooks import PENDING
from app.shared.workers import QUEUES, live_queues

KEEP_SECONDS = 5.0


class DatabaseGauges(Collector):
    """Prometheus calls `collect`. Without a database it says so and tells nothing that is no longer known."""

    def __init__(self, readers: sessionmaker[Session]) -> None:
        self._readers = readers
        self._lock = threading.Lock()
        self._kept: Sequence[GaugeMetricFamily] = ()
        self._read_at = float("-inf")

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The families. One reader at a time: the others wait for what it finds."""
        with self._lock:
            if time.monotonic() - self._read_at >= KEEP_SECONDS:
                self._kept, self._read_at = self._read(), time.monotonic()
            yield from self._kept

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing: being registered must not need a database."""
        return []

    def _read(self) -> Sequence[GaugeMetricFamily]:
        up = GaugeMetricFamily("archrepair_database_up", "Whether the database answered just now.")
        try:
            with self._readers() as session:
                families = [
                    *_jobs(session),
                    _leases(session),
                    *_outbox(session),
                    *_webhooks(session),
                    _workers(session),
                ]
        except SQLAlchemyError:  # counted where it happened
            up.add_metric([], 0)
            return [up]
        up.add_metric([], 1)
        return [up, *families]


class DiskGauges(Collector):
    """How much is free in directories of this machine, by the name of what they are for."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self._places = places

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One family, also where there is no place to tell of."""
        family = GaugeMetricFamily("archrepair_free_bytes", "Free disk, by what it is for.", labels=["place"])
        for name, path in self._places.items():
            family.add_metric([name], free_bytes(path))
        yield family


def _jobs(session: Session) -> Iterator[GaugeMetricFamily]:
    jobs = GaugeMetricFamily("archrepair_jobs", "Jobs that are not done.", labels=["queue", "kind", "status"])
    live = select(Job.queue, Job.kind, Job.status, func.count()).where(Job.status.in_(LIVE))
    for queue, kind, status, count in session.execute(live.group_by(Job.queue, Job.kind, Job.status)):
        jobs.add_metric([queue, kind, status], count)
    yield jobs
    depth = GaugeMetricFamily("archrepair_queue_jobs", "Jobs that wait.", labels=["queue"])
    age = GaugeMetricFamily(
        "archrepair_queue_oldest_seconds", "How long the longest waiting job has waited.", labels=["queue"]
    )
    # With no job waiting a queue is empty, not unknown: an alert must be able to end.
    waits = case((Job.status == "queued", 1))
    rows = select(Job.queue, func.count(waits), db_now() - func.min(case((Job.status == "queued", Job.created_at))))
    found = {queue: (count, seconds or 0) for queue, count, seconds in session.execute(
        rows.where(Job.status.in_(LIVE)).group_by(Job.queue))}  # fmt: skip
    for queue, (count, seconds) in (dict.fromkeys(QUEUES, (0, 0)) | found).items():
        depth.add_metric([queue], count)
        age.add_metric([queue], seconds)
    yield from (depth, age)


def _leases(session: Session) -> GaugeMetricFamily:
    expired = (Job.status.in_(HELD), Job.lease_until < db_now())
    seconds = session.scalar(select(db_now() - func.min(Job.lease_until)).where(*expired))
    return _single("archrepair_lease_overdue_seconds", "Since when a silent worker still has its job.", seconds or 0)


def _outbox(session: Session) -> Iterator[GaugeMetricFamily]:
    unsent = select(func.count(), db_now() - func.min(OutboxMessage.created_at))
    count, seconds = session.execute(unsent.where(OutboxMessage.sent_at.is_(None))).one()
    yield _single("archrepair_outbox_unsent", "Rings the broker has not taken.", count)
    yield _single("archrepair_outbox_oldest_seconds", "How long the oldest of them waits.", seconds or 0)


def _webhooks(session: Session) -> Iterator[GaugeMetricFamily]:
    pending = WebhookDelivery.state == PENDING
    overdue = select(func.count(), db_now() - func.min(WebhookDelivery.next_attempt_at))
    count, seconds = session.execute(overdue.where(pending, WebhookDelivery.next_attempt_at < db_now())).one()
    yield _single("archrepair_webhooks_due", "Deliveries whose time has come.", count)
    yield _single("archrepair_webhooks_overdue_seconds", "How long the oldest of them is due.", seconds or 0)


def _workers(session: Session) -> GaugeMetricFamily:
    family = GaugeMetricFamily("archrepair_workers", "Workers that may claim a job now, by queue.", labels=["queue"])
    live = live_queues(session)
    for queue in QUEUES:
        family.add_metric([queue], sum(queue in served for served in live))
    return family


def _single(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, documentation)
    family.add_metric([], value)
    return family
