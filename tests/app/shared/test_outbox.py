import time

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from app.shared.db import db_now
from app.shared.outbox import KEEP_SENT_SECONDS, add_ring, relay_outbox
from app.shared.tables import OutboxMessage, Project


def test_every_ring_is_sent_once(sessions: sessionmaker[Session]):
    with sessions.begin() as session:
        add_ring(session)
        add_ring(session)
    rung: list[str] = []
    for _ in range(2):
        with sessions.begin() as session:
            relay_outbox(session, lambda: rung.append("ring"))
    assert rung == ["ring", "ring"]


def test_a_ring_that_could_not_be_sent_is_sent_later(sessions: sessionmaker[Session]):
    def no_broker() -> None:
        raise ConnectionError("broker is down")

    with sessions.begin() as session:
        add_ring(session)
    with pytest.raises(ConnectionError), sessions.begin() as session:
        relay_outbox(session, no_broker)
    with sessions.begin() as session:
        assert relay_outbox(session, lambda: None) == 1


def test_a_hanging_broker_holds_no_lock(sessions: sessionmaker[Session]):
    with sessions.begin() as session:
        add_ring(session)
    waited: list[float] = []

    def slow_broker() -> None:
        started = time.monotonic()
        with sessions.begin() as other:
            other.add(Project(id="prj_during", name="written during the ring"))
        waited.append(time.monotonic() - started)

    with sessions.begin() as session:
        assert relay_outbox(session, slow_broker) == 1
    assert waited[0] < 1


def test_rings_sent_long_ago_are_removed(sessions: sessionmaker[Session]):
    with sessions.begin() as session:
        add_ring(session)
        session.flush()
        session.execute(update(OutboxMessage).values(sent_at=db_now() - KEEP_SENT_SECONDS - 1))
        add_ring(session)
    with sessions.begin() as session:
        relay_outbox(session, lambda: None)
    with sessions() as session:
        assert len(session.scalars(select(OutboxMessage.id)).all()) == 1
