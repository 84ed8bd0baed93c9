"""Who is asking: a Bearer API key, its project and its scopes."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.concurrency import run_in_threadpool

from app.deps import CurrentGateway, Gateway
from app.errors import ApiProblem
from app.keys import FoundKey, find_api_key
from app.ratelimits import client_network, kind_of
from app.shared.times import rfc3339

HINT = "Send the header Authorization: Bearer ar_…; `archrepair up` writes a key to STATE_DIR/api-key."
CHALLENGE = {"WWW-Authenticate": "Bearer"}
bearer = HTTPBearer(auto_error=False, description="An API key, ar_<prefix>_<secret>.")


@dataclass(frozen=True)
class Caller:
    """The project a request acts for, and what its key allows."""

    project_id: str
    key_id: str
    scopes: frozenset[str]


async def authenticate(
    request: Request,
    gateway: CurrentGateway,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
) -> Caller:
    """The caller of this request. Raises ApiProblem `auth.*`."""
    if credentials is None:
        raise ApiProblem("auth.missing_key", "The request has no API key.", hint=HINT, headers=CHALLENGE)
    # Nothing here leaves for a thread that need not: most requests are polls, of keys that are known.
    return await admit(request, gateway, await presented(request, gateway, credentials.credentials))


async def presented(request: Request, gateway: Gateway, key: str) -> FoundKey:
    """The key that was shown. Raises ApiProblem `auth.invalid_key`."""
    found = gateway.known_keys.get(key) or await run_in_threadpool(_look_up, gateway, key)
    if found is None:
        await run_in_threadpool(_count_failure, request, gateway)
        detail = "This API key is not known here, or was revoked."
        raise ApiProblem("auth.invalid_key", detail, hint=HINT, headers=CHALLENGE)
    return found


async def admit(request: Request, gateway: Gateway, found: FoundKey) -> Caller:
    """The caller whose key this is. Raises ApiProblem `auth.expired_key` or `quota.rate_limited`."""
    if found.expired:
        detail = f"The API key {found.row.name!r} expired at {rfc3339(found.row.expires_at)}."
        raise ApiProblem("auth.expired_key", detail, hint="POST /v1/api-keys makes a new one.", headers=CHALLENGE)
    if found.to_note:
        gateway.key_uses.note(found.row.id)
    await _count_request(request, gateway, found.row.id)
    return Caller(found.row.project_id, found.row.id, frozenset(found.row.scopes))


def _look_up(gateway: Gateway, key: str) -> FoundKey | None:
    with gateway.readers() as session:
        found = find_api_key(session, key)
    if found is not None and not found.expired:
        gateway.known_keys.keep(key, found)
    return found


def _count_failure(request: Request, gateway: Gateway) -> None:
    """Only reached with a wrong key: whoever has a good one is never kept out by others at the same address."""
    address = client_network(request.client.host if request.client else None)
    limit = gateway.settings.rate_limit_failed_authentications
    if allowance := gateway.rate_limiter.take("failed authentications", address, limit):
        allowance.require()


async def _count_request(request: Request, gateway: Gateway, key_id: str) -> None:
    kind = kind_of(request.method, request.headers.get("content-type", ""))
    limit = getattr(gateway.settings, f"rate_limit_{kind}")
    if not limit:
        return
    allowance = gateway.rate_limiter.take_in_hand(kind, key_id, limit) or await run_in_threadpool(
        gateway.rate_limiter.take, kind, key_id, limit
    )
    if allowance:
        request.state.answer_headers = allowance.headers()
        allowance.require()


def requires(scope: str) -> Callable[[Caller], Awaitable[Caller]]:
    """A dependency that lets only keys with `scope` pass."""

    async def check(caller: Annotated[Caller, Depends(authenticate)]) -> Caller:
        if scope not in caller.scopes:
            held = ", ".join(sorted(caller.scopes)) or "none"
            detail = f"This needs the scope {scope!r}; the key has {held}."
            raise ApiProblem("auth.missing_scope", detail, hint="Use a key with that scope.")
        return caller

    return check


JobsReader = Annotated[Caller, Depends(requires("jobs:read"))]
JobsWriter = Annotated[Caller, Depends(requires("jobs:write"))]
ModelsReader = Annotated[Caller, Depends(requires("models:read"))]
ModelsWriter = Annotated[Caller, Depends(requires("models:write"))]
DatasetsReader = Annotated[Caller, Depends(requires("datasets:read"))]
DatasetsWriter = Annotated[Caller, Depends(requires("datasets:write"))]
UploadsReader = Annotated[Caller, Depends(requires("uploads:read"))]
UploadsWriter = Annotated[Caller, Depends(requires("uploads:write"))]
WebhooksReader = Annotated[Caller, Depends(requires("webhooks:read"))]
WebhooksWriter = Annotated[Caller, Depends(requires("webhooks:write"))]
KeysReader = Annotated[Caller, Depends(requires("keys:read"))]
KeysWriter = Annotated[Caller, Depends(requires("keys:write"))]
SystemReader = Annotated[Caller, Depends(requires("system:read"))]
