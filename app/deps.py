"""What routes ask for by type: the gateway's connections.

There is no session among them on purpose. A session given to a request would keep its connection while the request
waits for a thread, a slow reader or a long poll; enough of those, and nobody gets a connection. Routes open one where
they use it, in one call of one thread.
"""

import re
import threading
from dataclasses import dataclass, field
from typing import Annotated

from celery import Celery
from fastapi import Depends, Request
from obstore.store import ObjectStore, S3Store
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from app.browser_sessions import BrowserSessions
from app.completions import Completions
from app.feed import Feed
from app.keys import KeyUses, KnownKeys
from app.ratelimits import RateLimiter
from app.relay import Relay
from app.shared.gauges import DatabaseGauges
from app.shared.queueing import Looks
from app.shared.settings import Settings
from app.views import JobViews

IDENTIFIER = re.compile(r"[a-z]{2,4}_[0-9A-Z]{26}")


@dataclass(frozen=True)
class Gateway:
    """The process's connections, made at start. `readers` are sessions that never wait for SQLite's writer, `lookups`
    connections for a single SELECT, without a transaction around it.

    `signer` is the store as clients name it; None where URLs cannot be signed.
    """

    settings: Settings
    sessions: sessionmaker[Session]
    readers: sessionmaker[Session]
    lookups: Engine
    store: ObjectStore
    celery: Celery
    relay: Relay
    key_uses: KeyUses
    known_keys: KnownKeys
    completions: Completions
    feed: Feed
    signer: S3Store | None
    rate_limiter: RateLimiter
    browser_sessions: BrowserSessions
    gauges: DatabaseGauges
    looks: Looks
    job_views: JobViews
    stopping: threading.Event
    service_secret: bytes = field(repr=False)


# Asynchronous for no wait of its own: a plain function would go to a thread and back in every request.
async def _gateway(request: Request) -> Gateway:
    gateway: Gateway = request.app.state.gateway
    return gateway


CurrentGateway = Annotated[Gateway, Depends(_gateway)]
