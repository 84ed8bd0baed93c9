"""The log of a job as text: the engine's own when an attempt has ended, the job's events before that."""

import json

from obstore.store import ObjectStore
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.shared.storage import open_range
from app.shared.tables import JobEvent
from app.shared.times import rfc3339

FIRST_WINDOW_BYTES = 64 * 1024


def event_lines(session: Session, job_id: str, *, tail: int) -> str:
    """The last `tail` events, one line each."""
    rows = select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.seq.desc()).limit(tail)
    newest_first = session.scalars(rows).all()
    lines = [f"{rfc3339(row.created_at)} {row.type} {json.dumps(row.data)}\n" for row in reversed(newest_first)]
    return "".join(lines)


async def last_lines(store: ObjectStore, key: str, *, size_bytes: int, tail: int) -> str:
    """The last `tail` lines of a stored text, reading no more of it than needed."""
    window = FIRST_WINDOW_BYTES
    while True:
        start = max(size_bytes - window, 0)
        chunks = await open_range(store, key, start=start, stop=size_bytes)
        raw = b"".join([chunk async for chunk in chunks])
        lines = raw.splitlines(keepends=True)
        if start == 0 or len(lines) > tail:
            return b"".join(lines[-tail:]).decode("utf-8", "replace")
        window *= 4
