"""The outbox: rings decided inside a transaction and sent after it, so that no job is forgotten by a broker outage."""

from collections.abc import Callable

from sqlalchemy import Engine, delete, select, update
from sqlalchemy.orm import Session

from app.shared.db import db_now, read_only
from app.shared.tables import OutboxMessage

RING = "ring"
BATCH = 50
KEEP_SENT_SECONDS = 24 * 3600.0


def add_ring(session: Session) -> None:
    """Ask for one doorbell, to be sent when the caller's transaction has committed."""
    session.add(OutboxMessage(topic=RING, body={}))


def relay_outbox(session: Session, ring: Callable[[], None]) -> int:
    """Send what is unsent and return how many. Whatever `ring` raises passes through and leaves the rows unsent.

    Call it with a session that has not begun: unsent rows are read apart, so a hanging broker never holds a
    database lock. Two relays at once may ring twice, which is harmless.
    """
    engine = session.get_bind()
    assert isinstance(engine, Engine), "the relay needs a session bound to an engine"
    with Session(read_only(engine)) as reader:
        unsent = select(OutboxMessage.id).where(OutboxMessage.sent_at.is_(None)).order_by(OutboxMessage.id).limit(BATCH)
        ids = list(reader.scalars(unsent))
    if not ids:
        return 0
    for _ in ids:
        ring()
    session.execute(update(OutboxMessage).where(OutboxMessage.id.in_(ids)).values(sent_at=db_now()))
    session.execute(delete(OutboxMessage).where(OutboxMessage.sent_at < db_now() - KEEP_SENT_SECONDS))
    return len(ids)
