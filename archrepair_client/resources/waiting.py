"""Waiting for the end of something, on the server. `done` says that it has come, never the state."""

import time
from collections.abc import Callable
from typing import TypeVar

import httpx

from archrepair_client.errors import WaitTimedOut
from archrepair_client.retries import Options, answered
from archrepair_client.steps import Request, Sleep, Steps
from archrepair_client.types import Dataset, Job, Model

# Below the minute after which many proxies give up on an answer.
WAIT_SECONDS = 30.0
# An answer that took less came not because of `wait`: a gateway that stops says at once what it knows.
PROMPT_SECONDS = 1.0
Ending = TypeVar("Ending", Job, Model, Dataset)


def waited(
    options: Options,
    path: str,
    kind: type[Ending],
    timeout_seconds: float | None = None,
    seen: Callable[[Ending], Steps[None]] | None = None,
) -> Steps[Ending]:
    """The thing once it is done; `seen` hears of every change until then. Outages of minutes are borne.

    Raises WaitTimedOut, APIError, NoConnection.
    """
    ends_at = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    etag, found = "", None
    while True:
        left = WAIT_SECONDS if ends_at is None else max(min(WAIT_SECONDS, ends_at - time.monotonic()), 0.0)
        # The first look answers at once; without anybody who listens, only the end is waited for.
        wait = round(left, 3) if found is not None else 0
        headers = {"If-None-Match": etag} if etag and seen is not None else {}
        asked_at = time.monotonic()
        response = yield from answered(Request("GET", path, {"wait": wait}, headers), options.patient())
        if response.status_code != httpx.codes.NOT_MODIFIED:
            etag, found = response.headers.get("etag", ""), kind.model_validate_json(response.content)
            if seen is not None:
                yield from seen(found)
        assert found is not None, "the first answer is never 304"
        if found.done:
            return found
        now = time.monotonic()
        if ends_at is not None and now >= ends_at:
            raise WaitTimedOut(found, seconds=timeout_seconds or 0.0)
        is_news = seen is not None and response.status_code != httpx.codes.NOT_MODIFIED
        if wait and not is_news and now - asked_at < PROMPT_SECONDS:
            yield Sleep(PROMPT_SECONDS)
