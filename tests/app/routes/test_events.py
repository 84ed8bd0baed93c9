"""Events as they happen. The pages are tested with the jobs."""

import asyncio
import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from app.routes.events import prefers_stream
from app.shared.claims import claim_job
from app.shared.db import make_engine, make_sessions
from app.shared.jobs import finish_job

STREAM = {"Accept": "text/event-stream"}
WHOLE = ["job.created", "job.started", "job.succeeded"]


def told(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """The events of a stream as a browser reads them; comments and `retry` are no events."""
    event: dict[str, str] = {}
    for line in lines:
        if not line and "data" in event:
            yield event
        if not line:
            event = {}
            continue
        name, _, value = line.partition(":")
        event[name] = value.removeprefix(" ")


def events_of(gateway, job_id, **headers):
    answer = gateway.client.get(f"/v1/jobs/{job_id}/events", headers=STREAM | headers)
    assert answer.status_code == 200, answer.text
    return answer, list(told(iter(answer.text.splitlines())))


def test_a_stream_tells_the_history_and_ends_with_it(gateway, submit, finish):
    job_id = submit()["id"]
    finish(job_id)
    answer, events = events_of(gateway, job_id)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert (answer.headers["x-accel-buffering"], answer.headers["cache-control"]) == ("no", "no-cache, no-transform")
    page = gateway.client.get(f"/v1/jobs/{job_id}/events").json()["data"]
    assert [event["event"] for event in events] == WHOLE
    assert [json.loads(event["data"]) for event in events] == page
    assert [event["id"] for event in events] == [str(event["seq"]) for event in page]


def test_what_happens_is_told_when_it_happens(gateway, submit, finish):
    job_id = submit()["id"]
    with gateway.client.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM) as answer:
        events = told(answer.iter_lines())
        assert next(events)["event"] == "job.created"
        threading.Thread(target=finish, args=(job_id,), kwargs={"verdict": "pass"}).start()
        started = time.monotonic()
        assert [event["event"] for event in events] == WHOLE[1:]
        assert time.monotonic() - started < 10


def test_a_stream_goes_on_where_another_broke_off(gateway, submit, finish):
    job_id = submit()["id"]
    finish(job_id)
    _, (first, second, third) = events_of(gateway, job_id)
    _, resumed = events_of(gateway, job_id, **{"Last-Event-ID": second["id"]})
    assert resumed == [third]
    path = f"/v1/jobs/{job_id}/events"
    by_query = gateway.client.get(path, params={"after": first["id"]}, headers=STREAM)
    assert list(told(iter(by_query.text.splitlines()))) == [second, third]
    nothing_left = gateway.client.get(path, headers=STREAM | {"Last-Event-ID": third["id"]})
    assert (nothing_left.status_code, nothing_left.content) == (204, b""), "EventSource would come back for ever"


@pytest.mark.parametrize("last_seen", ["", "-1", "latest", str(2**53)])
def test_a_wrong_last_event_id_is_named(gateway, submit, last_seen):
    path = f"/v1/jobs/{submit()['id']}/events"
    answer = gateway.client.get(path, headers=STREAM | {"Last-Event-ID": last_seen})
    assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (422, "header last-event-id")


def test_another_projects_stream_is_a_404(gateway, submit, stranger_key):
    headers = STREAM | {"Authorization": f"Bearer {stranger_key}"}
    answer = httpx.get(f"{gateway.url}/v1/jobs/{submit()['id']}/events", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (404, "job.not_found")


@pytest.mark.parametrize(
    ("accept", "streamed"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("text/*", False),
        ("text/event-stream", True),
        ("Text/Event-Stream; charset=utf-8", True),
        ("text/event-stream, */*;q=0.5", True),
        ("application/json;q=0.5, text/event-stream", True),
        ("application/json, text/event-stream", False),
        ("application/json, text/event-stream;q=0.9", False),
        ("text/event-stream;q=0", False),
        ("text/event-stream;q=nonsense", False),
    ],
)
def test_accept_decides(accept, streamed):
    assert prefers_stream(accept) is streamed


def test_the_document_tells_of_both_forms(gateway):
    operation = gateway.client.get("/openapi.json").json()["paths"]["/v1/jobs/{job_id}/events"]["get"]
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert "204" in operation["responses"]
    assert {item["name"] for item in operation["parameters"]} == {"job_id", "after", "limit", "last-event-id"}


def _threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def _connections(settings) -> int | None:
    if settings.database_url.startswith("sqlite"):
        return None
    engine = make_engine(settings.database_url)
    with engine.connect() as connection:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        count = connection.execute(text(query)).scalar_one()
    engine.dispose()
    return count


def _run(settings) -> None:
    """Plays the worker for the one job that there is."""
    engine = make_engine(settings.database_url)
    sessions = make_sessions(engine)
    with sessions.begin() as session:
        claim = claim_job(session, owner="test-worker", lease_seconds=600)
    assert claim is not None
    with sessions.begin() as session:
        assert finish_job(session, claim, status="succeeded", cause="completed")
    engine.dispose()


class Listener:
    """One of many: a bare connection, so that two hundred cost the test little."""

    def __init__(self, gateway, job_id: str) -> None:
        self.request = (
            f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: gateway\r\nAccept: text/event-stream\r\n"
            f"Authorization: Bearer {gateway.key}\r\nConnection: close\r\n\r\n"
        ).encode()
        self.port = int(gateway.url.rpartition(":")[2])

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(self.request)
        self.heard = await self.reader.readuntil(b"event: job.created")

    async def hear_out(self) -> bool:
        """Whether it heard the end of the job, and the stream ended."""
        self.heard += await self.reader.read()
        self.writer.close()
        return b"event: job.succeeded" in self.heard and self.heard.endswith(b"0\r\n\r\n")


@pytest.mark.slow
def test_two_hundred_listeners_hold_neither_threads_nor_connections(settings, start_gateway, submission):
    with start_gateway(settings.model_copy(update={"event_streams_per_key": 200})) as gateway:
        check_listeners(gateway, submission)


def check_listeners(own_gateway, submission):
    job_id = own_gateway.client.post("/v1/jobs", files=submission()).json()["id"]

    async def listen() -> list[bool]:
        listeners = [Listener(own_gateway, job_id) for _ in range(200)]
        for start in range(0, 200, 50):
            await asyncio.gather(*(listener.open() for listener in listeners[start : start + 50]))
        # The server's pool of threads holds 40, and the database's 15 connections: what the requests' start took.
        assert _threads(own_gateway.process.pid) < 70
        assert (_connections(own_gateway.settings) or 0) <= 16
        started = time.monotonic()
        assert (await asyncio.to_thread(own_gateway.client.get, "/v1/jobs")).status_code == 200
        assert time.monotonic() - started < 2
        await asyncio.to_thread(_run, own_gateway.settings)
        return await asyncio.wait_for(asyncio.gather(*(listener.hear_out() for listener in listeners)), 30)

    assert asyncio.run(listen()) == [True] * 200


def opened(gateway, job_id, key=None):
    """A stream that is open, as its client; the headers of the answer have come."""
    headers = STREAM | {"Authorization": f"Bearer {key or gateway.key}"}
    client = httpx.Client(base_url=gateway.url, headers=headers, timeout=10)
    request = client.build_request("GET", f"/v1/jobs/{job_id}/events")
    return client, client.send(request, stream=True)


@pytest.mark.slow
def test_a_key_has_so_many_streams_and_a_closed_one_makes_room(settings, start_gateway, submission, eventually):
    with start_gateway(settings.model_copy(update={"event_streams_per_key": 2})) as gateway:
        job_id = gateway.client.post("/v1/jobs", files=submission()).json()["id"]
        made = gateway.client.post("/v1/api-keys", json={"name": "other", "scopes": ["jobs:read"]}).json()
        streams = [opened(gateway, job_id) for _ in range(3)]
        assert [answer.status_code for _, answer in streams] == [200, 200, 429]
        refused = json.loads(streams[2][1].read())
        assert (refused["code"], refused["retryable"]) == ("quota.event_streams", True)
        assert "2 event streams" in refused["detail"]
        assert int(streams[2][1].headers["retry-after"]) > 0
        assert gateway.client.get(f"/v1/jobs/{job_id}/events").status_code == 200, "a page is no stream"
        streams.append(opened(gateway, job_id, made["key"]))
        assert streams[-1][1].status_code == 200, "another key has its own"
        for client, answer in streams[:1]:
            answer.close()
            client.close()

        def let_in() -> bool:
            streams.append(opened(gateway, job_id))
            return streams[-1][1].status_code == 200

        eventually(let_in, 10)
        for client, answer in streams:
            answer.close()
            client.close()


@pytest.mark.slow
def test_a_stream_ends_when_the_gateway_stops(own_gateway, submission):
    job_id = own_gateway.client.post("/v1/jobs", files=submission()).json()["id"]
    with own_gateway.client.stream("GET", f"/v1/jobs/{job_id}/events", headers=STREAM) as answer:
        events = told(answer.iter_lines())
        assert next(events)["event"] == "job.created"
        own_gateway.process.send_signal(signal.SIGTERM)
        assert list(events) == [], "it must end, and not be cut"
    assert own_gateway.process.wait(10) in (0, -signal.SIGTERM)
