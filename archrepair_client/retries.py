"""Sending until there is an answer: what is tried again, after how long, and what is an error.

A POST carries an `Idempotency-Key` of its own, the same each time, so that sending it again does nothing twice; every
other method can be repeated by its nature.
"""

import logging
import random
import uuid
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from archrepair_client.config import URL_VARIABLE
from archrepair_client.errors import NoConnection, error_of, problem_of
from archrepair_client.steps import Open, Request, Send, Sleep, Steps

log = logging.getLogger("archrepair_client")
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 8.0
# Whoever is told to come back later than this had better be told so than wait.
LONGEST_RETRY_AFTER_SECONDS = 120.0
# A gateway that is restarted, or moved to another machine: about ten minutes of pauses.
PATIENT_RETRIES = 80
PASSING = (408, 425, 429, 500, 502, 503, 504)
NOBODY_THERE = (
    f"Is the service up, and is this its address? `archrepair up` starts one here; {URL_VARIABLE} or "
    "`archrepair login URL` names another."
)


@dataclass(frozen=True)
class Options:
    """How a client asks. `timeout_seconds` is for connecting (5 at most), and between bytes, not for the whole."""

    timeout_seconds: float = 60.0
    max_retries: int = 5

    def patient(self) -> "Options":
        """For waiting, where an outage of the service is no reason to give up; 0 retries stay 0."""
        return replace(self, max_retries=PATIENT_RETRIES) if self.max_retries else self


def answered(request: Request, options: Options) -> Steps[httpx.Response]:
    """The answer, read. Raises APIError, NoConnection."""
    return (yield from _until_answered(Send(prepared(request, options)), options))


def opened(request: Request, options: Options, *, chunk_bytes: int | None = None) -> Steps[httpx.Response]:
    """The answer, to be read. Raises APIError, NoConnection."""
    return (yield from _until_answered(Open(prepared(request, options), chunk_bytes), options))


def prepared(request: Request, options: Options) -> Request:
    """The request as it is sent, each time: with its key and its timeout."""
    headers = dict(request.headers)
    if request.method == "POST":
        headers.setdefault("Idempotency-Key", str(uuid.uuid4()))
    return replace(request, headers=headers, timeout_seconds=request.timeout_seconds or options.timeout_seconds)


def _until_answered(effect: Send | Open, options: Options) -> Steps[httpx.Response]:
    request, attempt = effect.request, 0
    while True:
        try:
            response: httpx.Response = yield effect
        except httpx.RequestError as error:
            if attempt >= options.max_retries:
                what = f"{request.method} {request.path}: {type(error).__name__} {error}".strip()
                hint = f". {NOBODY_THERE}" if isinstance(error, httpx.ConnectError) else ""
                raise NoConnection(f"{what}, after {attempt + 1} attempts{hint}") from error
            seconds, why = pause_seconds(attempt), type(error).__name__
        else:
            if not response.is_error:
                return response
            if attempt and request.method == "DELETE" and response.status_code == 404:
                return response  # the attempt before has deleted it, and its answer was lost
            seconds, why = _pause_after(response, attempt), f"HTTP {response.status_code}"
            if attempt >= options.max_retries or not is_passing(response) or seconds > LONGEST_RETRY_AFTER_SECONDS:
                raise error_of(response)
        log.info("%s %s: %s; again in %.1f s", request.method, request.path, why, seconds)
        yield Sleep(seconds)
        attempt += 1


def is_passing(response: httpx.Response) -> bool:
    """Whether the same request may succeed later. The service says so; of others the status has to."""
    if response.status_code not in PASSING:
        return False
    said = problem_of(response).retryable
    return said if said is not None else True


def pause_seconds(attempt: int) -> float:
    """Twice as long each time, up to a bound, and by up to a half shorter, so that many do not come back at once."""
    pause = min(FIRST_PAUSE_SECONDS * 2**attempt, LONGEST_PAUSE_SECONDS)
    return pause * random.uniform(0.5, 1.0)


def _pause_after(response: httpx.Response, attempt: int) -> float:
    told = retry_after_seconds(response)
    return max(told, pause_seconds(attempt)) if told is not None else pause_seconds(attempt)


def retry_after_seconds(response: httpx.Response) -> float | None:
    """`Retry-After`, a number or a date, in seconds from now; None without a valid one."""
    value = response.headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        when = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max((when - datetime.now(UTC)).total_seconds(), 0.0)
