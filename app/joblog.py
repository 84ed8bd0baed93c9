"""The log of a job: what the service did with it and what its engine said, in the order it happened, in every state."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from obstore.store import ObjectStore
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.shared.joblog import LOG
from app.shared.storage import open_range
from app.shared.tables import Artifact, JobEvent
from app.shared.times import rfc3339

FIRST_WINDOW_BYTES = 64 * 1024
# What every event says in another way.
_SAID = {"attempt", "status"}


@dataclass(frozen=True)
class LogLine:
    """`source` is `service` or `engine`; of an attempt that is given back uncounted the number comes twice.

    `seq` grows along the log; lines that came in together share one. None where the log is a stored file.
    """

    seq: int | None
    at: str | None
    attempt: int | None
    source: str
    text: str

    def as_text(self) -> str:
        """Time, attempt, source and text."""
        return f"{self.at} #{self.attempt or 0} {self.source:<7} {self.text}\n"

    def as_json(self) -> str:
        """One line of NDJSON."""
        return json.dumps({"object": "log_line", **asdict(self)}, ensure_ascii=False) + "\n"


def log_lines(session: Session, job_id: str, *, tail: int, attempt: int | None, after: int) -> list[LogLine]:
    """The last `tail` lines, of one attempt or of all, of those after the seq `after`."""
    rows = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.seq > after)
    if attempt is not None:
        rows = rows.where(JobEvent.data["attempt"].as_integer() == attempt)
    # A row is one line at least.
    newest_first = session.scalars(rows.order_by(JobEvent.seq.desc()).limit(tail)).all()
    return list(_lines(newest_first[::-1]))[-tail:]


def _lines(rows: Sequence[JobEvent]) -> Iterator[LogLine]:
    end: int | None = None
    for row in rows:
        at, attempt = rfc3339(row.created_at), row.data.get("attempt")
        if row.type != LOG:
            end = 0 if row.type == "job.started" else end
            yield LogLine(row.seq, at, attempt, "service", _printable(_told(row.type, row.data)))
            continue
        start = row.data["start"]
        if end is not None and start > end:
            yield LogLine(row.seq, at, attempt, "service", f"{start - end} bytes of the engine's log are left out here")
        end = row.data["end"]
        for line in row.data["text"].removesuffix("\n").split("\n"):
            yield LogLine(row.seq, at, attempt, "engine", _printable(line))


def _told(kind: str, data: dict[str, Any]) -> str:
    """An event in words: progress as people read it, of the others what they say."""
    if kind == "job.progress":
        return f"{data.get('phase')} {data.get('percent', 0):.1f} %: {data.get('message', '')}"
    facts = [f"{name}={value}" for name, value in data.items() if name not in _SAID and value is not None]
    return " ".join([kind, *facts])


def _printable(line: str) -> str:
    """A stranger's model wrote it: it may neither begin a line of its own nor command a terminal."""
    return "".join(letter if letter.isprintable() or letter == "\t" else "\ufffd" for letter in line.rstrip("\r"))


async def stored_lines(store: ObjectStore, log: Artifact, *, tail: int) -> list[LogLine]:
    """The last lines of a log of before there were rows of it."""
    text = await _end_of(store, log.storage_key, size_bytes=log.size_bytes, tail=tail)
    at = rfc3339(log.created_at)
    return [LogLine(None, at, log.attempt, "engine", _printable(line)) for line in text.split("\n")[-tail:]]


async def _end_of(store: ObjectStore, key: str, *, size_bytes: int, tail: int) -> str:
    """The last `tail` lines of a stored text, reading no more of it than needed."""
    window = FIRST_WINDOW_BYTES
    while True:
        start = max(size_bytes - window, 0)
        chunks = await open_range(store, key, start=start, stop=size_bytes)
        raw = b"".join([chunk async for chunk in chunks])
        lines = raw.removesuffix(b"\n").split(b"\n")
        if start == 0 or len(lines) > tail:
            return b"\n".join(lines[-tail:]).decode("utf-8", "replace")
        window *= 4
