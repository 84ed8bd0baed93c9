"""Histories of jobs as server-sent events, for many listeners at once.

A listener holds no thread and no connection of the database while nothing happens. One task asks, for all of them,
which jobs have changed; a listener that is told so reads what is new by itself, a few of them at a time, and only as
fast as its client takes it. Nothing is kept for listeners: whoever comes back reads on in the database.
"""

import asyncio
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import structlog
from anyio import CapacityLimiter, to_thread
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from app.errors import ApiProblem
from app.schemas.responses import EventRead
from app.shared.tables import Job

LOOK_SECONDS = 0.5
HEARTBEAT_SECONDS = 15.0
# Then the client comes back with Last-Event-ID, and its key is checked again.
LONGEST_SECONDS = 3600.0
RECONNECT_MILLISECONDS = 3000
# Of the pool's connections and the process's threads, what listeners may use together.
PARALLEL_READS = 4
Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Episode:
    """The next events of a job. `more`: others follow at once; `over`: none will ever follow."""

    events: list[EventRead]
    more: bool
    over: bool


@dataclass
class Feed:
    """Tells listeners that a job has changed. `run` it in one task."""

    readers: sessionmaker[Session]
    stopping: threading.Event
    reading: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(PARALLEL_READS))
    listeners: dict[str, set[asyncio.Event]] = field(default_factory=lambda: defaultdict(set))
    # How many streams each key has open here.
    streams: Counter[str] = field(default_factory=Counter)
    _healthy: bool = True

    def admit(self, key_id: str, *, limit: int) -> Callable[[], None]:
        """Count a stream of this key, until what is returned is called. Raises ApiProblem `quota.event_streams`."""
        if limit and self.streams[key_id] >= limit:
            detail = (
                f"This key has {self.streams[key_id]:,} event streams open, the most that event_streams_per_key allows."
            )
            hint = "Close one, follow several jobs by a webhook, or ask with GET /v1/jobs/{id}?wait=60."
            raise ApiProblem("quota.event_streams", detail, hint=hint)
        self.streams[key_id] += 1
        return partial(self._dismiss, key_id)

    def _dismiss(self, key_id: str) -> None:
        self.streams[key_id] -= 1
        if not self.streams[key_id]:
            del self.streams[key_id]

    @contextmanager
    def listening(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the job has changed, or the gateway stops."""
        news = asyncio.Event()
        self.listeners[job_id].add(news)
        try:
            yield news
        finally:
            self.listeners[job_id].discard(news)
            if not self.listeners[job_id]:
                del self.listeners[job_id]

    async def read(self, look: Callable[[], Seen]) -> Seen:
        """`look` in a thread, when it is this listener's turn."""
        return await to_thread.run_sync(look, limiter=self.reading)

    async def run(self) -> None:
        """Look for changes until cancelled. An outage of the database is logged once, and outlived."""
        versions: dict[str, int] = {}
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self.stopping.is_set():
                self._tell(list(self.listeners))
                continue
            try:
                watched = list(self.listeners)
                seen = await self.read(partial(self._versions, watched)) if watched else {}
            except Exception as error:  # noqa: BLE001  the border of the task: without it, no listener hears more
                if self._healthy:
                    structlog.get_logger().warning("no news for listeners", error=f"{type(error).__name__}: {error}")
                self._healthy = False
                continue
            self._healthy = True
            # A job that is in one of them only is new to us, or was deleted.
            self._tell([job_id for job_id in versions | seen if versions.get(job_id) != seen.get(job_id)])
            versions = seen

    def _versions(self, job_ids: list[str]) -> dict[str, int]:
        with self.readers() as session:
            rows = session.execute(select(Job.id, Job.version).where(Job.id.in_(job_ids)))
            return {row.id: row.version for row in rows}

    def _tell(self, job_ids: list[str]) -> None:
        for job_id in job_ids:
            for news in self.listeners.get(job_id, ()):
                news.set()


@asynccontextmanager
async def running_feed(readers: sessionmaker[Session], stopping: threading.Event) -> AsyncIterator[Feed]:
    """A feed whose task runs meanwhile."""
    feed = Feed(readers, stopping)
    task = asyncio.create_task(feed.run())
    try:
        yield feed
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def told(feed: Feed, job_id: str, look: Callable[[int], Episode], *, after: int) -> AsyncIterator[bytes]:
    """The job's events as they happen, and a comment whenever it was silent for long; ends with the job's last event.

    It also ends when the job is deleted, after an hour, and when the gateway stops: clients then resume.
    """
    ends_at = time.monotonic() + LONGEST_SECONDS
    with feed.listening(job_id) as news:
        yield format_sse_event(retry=RECONNECT_MILLISECONDS)
        while time.monotonic() < ends_at and not feed.stopping.is_set():
            news.clear()
            episode = await _next(feed, look, after)
            for event in episode.events:
                yield _as_text(event)
                after = event.seq
            if episode.over:
                return
            if not episode.more and not await _happens(news):
                yield KEEPALIVE_COMMENT


async def _next(feed: Feed, look: Callable[[int], Episode], after: int) -> Episode:
    try:
        return await feed.read(lambda: look(after))
    except ApiProblem:  # the job was deleted meanwhile
        return Episode([], more=False, over=True)
    except OperationalError:  # an outage: asked again at the next heartbeat, or when something happens
        return Episode([], more=False, over=False)


async def _happens(news: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(HEARTBEAT_SECONDS):
            return await news.wait()
    except TimeoutError:
        return False


def _as_text(event: EventRead) -> bytes:
    data = json.dumps(event.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))
    return format_sse_event(data_str=data, event=event.type, id=str(event.seq))
