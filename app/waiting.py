"""Long polls: the answer comes when there is something to say, and no thread or connection is held meanwhile."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from app.deps import Gateway

Seen = TypeVar("Seen")
RETRY_AFTER_SECONDS = 2
WAIT_POLL_SECONDS = (0.1, 0.2, 0.4, 0.5)


async def wait_for(
    request: Request, gateway: Gateway, look: Callable[[], Seen], *, enough: Callable[[Seen], bool], seconds: float
) -> Seen:
    """What `look` sees once it is `enough`, or after `seconds`, or when the client or the gateway goes."""
    deadline, poll = time.monotonic() + seconds, 0
    while True:
        seen = await run_in_threadpool(look)
        left = deadline - time.monotonic()
        if enough(seen) or left <= 0 or gateway.stopping.is_set() or await request.is_disconnected():
            return seen
        await asyncio.sleep(min(left, WAIT_POLL_SECONDS[min(poll, len(WAIT_POLL_SECONDS) - 1)]))
        poll += 1
