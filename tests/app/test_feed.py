import asyncio
import threading

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from app import feed as feeds
from app.errors import ApiProblem
from app.feed import Episode, Feed, running_feed, told
from app.schemas.responses import EventRead
from app.shared import jobs
from app.shared.claims import claim_job
from app.shared.jobs import record_progress, request_cancel, submit_job
from app.shared.tables import Job

NOTHING_NEW = Episode([], more=False, over=False)


def event(seq: int) -> EventRead:
    return EventRead(seq=seq, type="job.progress", data={"message": "a\nb"}, created_at="2026-01-01T00:00:00Z")


@pytest.fixture
def tell(sessions: sessionmaker[Session]):
    """Runs a stream and gives its first `count` pieces. `plot`: what each look sees, the last of it for ever."""

    def run(plot: list, *, count: int, stopping: threading.Event | None = None) -> tuple[list[bytes], Feed]:
        left = list(plot)

        def look(_after: int) -> Episode:
            seen = left.pop(0) if len(left) > 1 else left[0]
            if isinstance(seen, Exception):
                raise seen
            return seen

        async def listen() -> tuple[list[bytes], Feed]:
            async with running_feed(sessions, stopping or threading.Event()) as feed:
                stream = told(feed, "job_x", look, after=0)
                said = []
                async with asyncio.timeout(10):
                    async for piece in stream:
                        said.append(piece)
                        if len(said) == count:
                            await stream.aclose()
                            break
                return said, feed

        return asyncio.run(listen())

    return run


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(feeds, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(feeds, "LOOK_SECONDS", 0.02)


@pytest.mark.parametrize("stack", ["embedded"], indirect=True)
def test_a_silent_job_is_heard_to_be_alive_and_nobody_is_kept_who_left(tell, impatient):
    said, feed = tell([NOTHING_NEW], count=4)
    assert said == [b"retry: 3000\n\n", b": ping\n\n", b": ping\n\n", b": ping\n\n"]
    assert feed.listeners == {}


@pytest.mark.parametrize("stack", ["embedded"], indirect=True)
def test_a_long_history_is_told_without_a_pause(tell):
    plot = [Episode([event(1), event(2)], more=True, over=False), Episode([event(5)], more=False, over=True)]
    said, feed = tell(plot, count=9)
    assert [piece.splitlines()[2] for piece in said[1:]] == [b"id: 1", b"id: 2", b"id: 5"]
    assert said[1].splitlines()[1].startswith(b'data: {"object":"job_event","seq":1,')
    assert feed.listeners == {}


@pytest.mark.parametrize("stack", ["embedded"], indirect=True)
def test_an_outage_of_the_database_is_outlived(tell, impatient):
    outage = OperationalError("SELECT", {}, Exception("gone"))
    said, _ = tell([outage, outage, Episode([event(1)], more=False, over=True)], count=9)
    assert said[1:3] == [b": ping\n\n", b": ping\n\n"]
    assert b"id: 1" in said[3]
    assert len(said) == 4


@pytest.mark.parametrize("stack", ["embedded"], indirect=True)
def test_the_stream_of_a_job_that_is_deleted_ends(tell, impatient):
    said, _ = tell([NOTHING_NEW, ApiProblem("job.not_found", "No such job.")], count=9)
    assert said == [b"retry: 3000\n\n", b": ping\n\n"]


@pytest.mark.parametrize("stack", ["embedded"], indirect=True)
def test_no_stream_goes_on_for_ever(tell, impatient, monkeypatch):
    monkeypatch.setattr(feeds, "LONGEST_SECONDS", 0.2)
    said, _ = tell([NOTHING_NEW], count=100)
    assert 1 < len(said) < 20


@pytest.mark.parametrize("stack", ["embedded"], indirect=True)
def test_a_stopping_gateway_does_not_wait_for_a_heartbeat(tell, monkeypatch):
    monkeypatch.setattr(feeds, "LOOK_SECONDS", 0.02)
    stopping = threading.Event()
    threading.Timer(0.2, stopping.set).start()
    said, _ = tell([NOTHING_NEW], count=9, stopping=stopping)
    assert said == [b"retry: 3000\n\n"]


def test_a_change_wakes_those_who_listen_to_that_job(sessions, project_id, model_id, monkeypatch):
    monkeypatch.setattr(feeds, "LOOK_SECONDS", 0.02)

    def submit() -> Job:
        with sessions.begin() as session:
            return submit_job(session, project_id=project_id, spec={}, kind="repair", model_id=model_id)

    def cancel(job: Job) -> None:
        with sessions.begin() as session:
            request_cancel(session, session.get_one(Job, job.id), keep_best=False)

    async def listen() -> tuple[bool, bool]:
        async with running_feed(sessions, threading.Event()) as feed:
            with feed.listening(changed.id) as news, feed.listening(other.id) as silence:
                await asyncio.gather(news.wait(), silence.wait())  # both are new to the feed
                news.clear()
                silence.clear()
                await asyncio.to_thread(cancel, changed)
                await news.wait()
                return news.is_set(), silence.is_set()

    changed, other = submit(), submit()
    assert asyncio.run(asyncio.wait_for(listen(), 10)) == (True, False)


def test_the_events_of_a_job_are_seen_in_their_order(sessions, project_id, model_id, monkeypatch):
    """Else a reader who has seen a later one would never see an earlier one. On Postgres it rests on locks of the job:
    whoever moves it locks it first, and recording an event, which refers to it, holds that up."""
    with sessions.begin() as session:
        job = submit_job(session, project_id=project_id, spec={}, kind="repair", model_id=model_id)
    with sessions.begin() as session:
        claim = claim_job(session, owner="w", lease_seconds=60)
    assert claim is not None

    def cancel() -> None:
        with sessions.begin() as session:
            request_cancel(session, session.get_one(Job, job.id), keep_best=False)

    canceller, write = threading.Thread(target=cancel), jobs._write
    overtaken = []

    def slow_write(*args, **values):
        canceller.start()
        canceller.join(0.5)
        overtaken.append(not canceller.is_alive())
        return write(*args, **values)

    monkeypatch.setattr(jobs, "_write", slow_write)
    with sessions.begin() as session:
        assert record_progress(session, claim, phase="baseline", progress={"percent": 1.0})
    canceller.join(20)
    assert overtaken == [False]
