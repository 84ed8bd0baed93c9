"""What happened to a job, as a page or as it happens."""

from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request
from fastapi.sse import EventSourceResponse
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.auth import JobsReader
from app.deps import CurrentGateway, Gateway
from app.errors import problem_responses
from app.feed import Episode, told
from app.rendering import render_event
from app.rows import find_job
from app.schemas.responses import EventPage
from app.shared.joblog import LOG
from app.shared.jobs import DONE
from app.shared.tables import JobEvent

router = APIRouter(tags=["jobs"], responses=problem_responses(401, 403, 422, 429, 500, 503))
EVENT_STREAM = "text/event-stream"
# Proxies keep answers back until they are whole, nginx unless it is told not to.
STREAM_HEADERS = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}
STREAM_DESCRIPTION = "A page; with `Accept: text/event-stream` all events from there on, as they happen."
NOTHING_LEFT = "Of a stream: the job is done, and its last event was seen. EventSource does not come back after it."
EVENTS_PER_READ = 500
RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": STREAM_DESCRIPTION, "content": {EVENT_STREAM: {"schema": {"type": "string"}}}},
    204: {"description": NOTHING_LEFT},
    **problem_responses(404),
}
Seq = Annotated[int, Query(ge=0, lt=2**53, description="Only events with a greater `seq`.")]
LastEventId = Annotated[
    int | None, Header(ge=0, lt=2**53, description="Of a stream, in place of `after`: where an earlier one broke off.")
]


@router.get("/jobs/{job_id}/events", response_model=EventPage, responses=RESPONSES)
async def list_events(
    job_id: str,
    request: Request,
    gateway: CurrentGateway,
    caller: JobsReader,
    *,
    after: Seq = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="Of a page.")] = 100,
    last_event_id: LastEventId = None,
) -> EventPage | Response:
    """What happened to the job, oldest first; `next_cursor` is the `after` of the next page."""
    look = partial(_look, gateway, job_id, project_id=caller.project_id)
    if not prefers_stream(request.headers.get("accept", "")):
        page = await run_in_threadpool(look, after, limit=limit)
        next_cursor = str(page.events[-1].seq) if page.more else None
        return EventPage(data=page.events, has_more=page.more, next_cursor=next_cursor)
    start = after if last_event_id is None else last_event_id
    first = await gateway.feed.read(partial(look, start, limit=1))
    if first.over and not first.events:
        return Response(status_code=204)
    events = told(gateway.feed, job_id, partial(look, limit=EVENTS_PER_READ), after=start)
    dismiss = gateway.feed.admit(caller.key_id, limit=gateway.settings.event_streams_per_key)
    return CountedStream(events, dismiss)


class CountedStream(EventSourceResponse):
    """A stream that says when it has ended, also one whose client was gone before its first event."""

    def __init__(self, events: AsyncIterator[bytes], on_end: Callable[[], None]) -> None:
        super().__init__(events, headers=STREAM_HEADERS)
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The answer, whose end is told whatever ends it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


def prefers_stream(accept: str) -> bool:
    """Whether this Accept header names event streams, and likes them better than JSON. Wildcards mean JSON."""
    likings = {"application/json": 0.0, EVENT_STREAM: 0.0}
    for item in accept.lower().split(","):
        media_type, *parameters = (part.strip() for part in item.split(";"))
        if media_type in likings:
            quality = [text.removeprefix("q=") for text in parameters if text.startswith("q=")]
            likings[media_type] = _number(quality[0]) if quality else 1.0
    return likings[EVENT_STREAM] > likings["application/json"]


def _number(text: str) -> float:
    return float(text) if text.replace(".", "", 1).isdecimal() else 0.0


def _look(gateway: Gateway, job_id: str, after: int, *, project_id: str, limit: int) -> Episode:
    """The events after `after`, `limit` of them at most. Raises ApiProblem `job.not_found`."""
    rows = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > after, JobEvent.type != LOG)
    with gateway.readers() as session:
        # In this order: a job that is done here has no event that the second query could miss.
        done = find_job(session, job_id=job_id, project_id=project_id).status in DONE
        found = session.scalars(rows.order_by(JobEvent.seq).limit(limit + 1)).all()
    more = len(found) > limit
    return Episode([render_event(row) for row in found[:limit]], more=more, over=done and not more)
