"""What routes ask for by type: the gateway's connections, a session, and the row that a path names."""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from celery import Celery
from fastapi import Depends, Request
from obstore.store import ObjectStore
from sqlalchemy.orm import Session, sessionmaker

from app.relay import Relay
from app.shared.settings import Settings

IDENTIFIER = re.compile(r"[a-z]{2,4}_[0-9A-Z]{26}")


@dataclass(frozen=True)
class Gateway:
    """The process's connections, made at start. `readers` are sessions that never wait for SQLite's writer."""

    settings: Settings
    sessions: sessionmaker[Session]
    readers: sessionmaker[Session]
    store: ObjectStore
    celery: Celery
    relay: Relay
    stopping: threading.Event


def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


CurrentGateway = Annotated[Gateway, Depends(_gateway)]


def _reading(gateway: CurrentGateway) -> Iterator[Session]:
    with gateway.readers() as session:
        yield session


def _writing(gateway: CurrentGateway) -> Iterator[Session]:
    with gateway.sessions.begin() as session:
        yield session


# scope="function": committed and given back before the answer goes out, so that what was answered is true, and a
# slow download holds no connection.
ReadSession = Annotated[Session, Depends(_reading, scope="function")]
WriteSession = Annotated[Session, Depends(_writing, scope="function")]
