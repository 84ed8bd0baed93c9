"""What a caller can do differently about.

ArchRepairError
├── NotConfigured       no URL or no key was found
├── NoConnection        no answer, after all retries
├── WaitTimedOut        it goes on; `last` is what was seen last
├── DigestMismatch      the bytes that arrived are not those that were sent
├── BadInput            a file or a spec on this side cannot be used
└── APIError            the service said no: `problem` is what it said
    ├── InvalidRequest      400, 413, 415, 422
    ├── AuthenticationFailed 401
    ├── PermissionDenied    403
    ├── NotFound            404
    ├── Conflict            409
    ├── QuotaExceeded       429
    └── ServiceFailed       5xx
"""

from collections.abc import Mapping
from typing import Any

import httpx

from archrepair_client.types import Dataset, Job, Model, Problem


class ArchRepairError(Exception):
    """Root of all errors of this package."""


class NotConfigured(ArchRepairError):
    """Where the service is, is not known."""


class NoApiKey(NotConfigured):
    """There is no key to the service."""


class NoConnection(ArchRepairError):
    """The service could not be reached, or the connection broke, as often as it was tried."""


class WaitTimedOut(ArchRepairError):
    """The client stopped waiting. Nothing was cancelled; `last` is what it saw last."""

    def __init__(self, last: Job | Model | Dataset, *, seconds: float) -> None:
        state = last.status if isinstance(last, Job) else last.state
        super().__init__(f"{last.id} is {state} after {seconds:g} s of waiting; it goes on")
        self.last = last


class DigestMismatch(ArchRepairError):
    """A download whose sha256 is not the one the service names, twice."""


class BadInput(ArchRepairError):
    """Something of this machine that was handed over: a missing file, a spec that cannot be read."""


class APIError(ArchRepairError):
    """An answer that is no success. `problem` is RFC 9457; `request_id` finds the request in the service's log."""

    def __init__(self, status: int, problem: Problem, *, request_id: str = "") -> None:
        self.status = status
        self.problem = problem
        self.request_id = request_id or problem.request_id
        super().__init__(self._in_words())

    @property
    def code(self) -> str:
        return self.problem.code

    @property
    def hint(self) -> str:
        return self.problem.hint

    def _in_words(self) -> str:
        words = f"{self.problem.code or f'HTTP {self.status}'}: {self.problem.detail}"
        if self.problem.hint:
            words += f" {self.problem.hint}"
        return f"{words} (request {self.request_id})" if self.request_id else words


class InvalidRequest(APIError):
    """The request, its spec or its files are not valid: `problem.errors` points at what is wrong."""


class AuthenticationFailed(APIError):
    """No key, an unknown or an expired one."""


class PermissionDenied(APIError):
    """The key lacks the scope."""


class NotFound(APIError):
    """There is no such thing in this project."""


class Conflict(APIError):
    """Not in the state it is in."""


class QuotaExceeded(APIError):
    """Too many requests, or too much of something at once."""


class ServiceFailed(APIError):
    """The service, or what is between, is broken."""


CLASSES: Mapping[int, type[APIError]] = {
    401: AuthenticationFailed,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    429: QuotaExceeded,
}


def error_of(response: httpx.Response) -> APIError:
    """The error an answer means. What is no problem document, of a proxy perhaps, is quoted."""
    status = response.status_code
    kind = CLASSES.get(status, ServiceFailed if status >= 500 else InvalidRequest)
    return kind(status, problem_of(response), request_id=response.headers.get("x-request-id", ""))


def problem_of(response: httpx.Response) -> Problem:
    """The problem document of an answer, or its first characters as one."""
    try:
        body: Any = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict) and isinstance(body.get("code"), str):
        return Problem.model_validate(body)
    detail = response.text[:500] or response.reason_phrase
    return Problem(status=response.status_code, detail=f"HTTP {response.status_code} from {response.url}: {detail}")
