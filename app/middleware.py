"""The border of every request, as plain ASGI: its id, its log line, the answer to a crash, and a polite early end."""

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import answer_to
from app.shared.ids import new_id
from app.shared.metrics import HTTP_REQUESTS, HTTP_SECONDS, OTHER, counted_upload

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# How much of a refused upload is still read, so that the client hears the answer before its connection is cut.
LINGER_BYTES = 64 * 1024 * 1024
LINGER_SECONDS = 10.0
# An answer is data: nothing in it runs, nobody frames it, no cache shares it, whatever a browser takes it for.
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
PAGE_POLICY = "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
# Whatever else a client writes there must not become a label.
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SECURITY_HEADERS = {
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class RequestBorder:
    """ASGI middleware: `X-Request-Id` in and out, one log line per request, no exception beyond it.

    Bodies that are no upload are cut off beyond `small_body_bytes`, whatever a route does with them.
    """

    def __init__(self, app: ASGIApp, small_body_bytes: int) -> None:
        self.app = app
        self.small_body_bytes = small_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        is_upload, started = _is_upload(scope), time.perf_counter()
        with counted_upload(is_upload) as count_bytes:
            max_bytes = None if is_upload else self.small_body_bytes
            exchange = Exchange(scope, receive, send, max_bytes=max_bytes, count_bytes=count_bytes)
            try:
                await self.app(scope, exchange.receive, exchange.send)
            except Exception as error:  # noqa: BLE001  the border of the request: whatever it is, the client gets an answer
                structlog.get_logger().exception("request crashed", path=scope["path"])
                if not exchange.status:  # else half an answer is out: all that is left is to end it, as the server does
                    await answer_to(Request(scope), error)(scope, exchange.receive, exchange.send)
            finally:
                _note_request(scope, exchange.status, seconds=time.perf_counter() - started)


class Exchange:
    """One request's two channels. Holds the end of an early answer back until the client has stopped sending."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        max_bytes: int | None,
        count_bytes: Callable[[int], None],
    ) -> None:
        self.status = 0
        self._scope = scope
        self._receive = receive
        self._send = send
        self._max_bytes = max_bytes
        self._count_bytes = count_bytes
        self._received_bytes = 0
        self._body_ended = False

    async def receive(self) -> Message:
        """The next piece of the request. Raises HTTPException 413, which the framework lets through everywhere."""
        message = await self._next()
        if self._max_bytes is not None and self._received_bytes > self._max_bytes:
            raise HTTPException(413, f"The body is larger than the {self._max_bytes:,} bytes this path takes.")
        return message

    async def _next(self) -> Message:
        message = await self._receive()
        size = len(message.get("body", b""))
        self._received_bytes += size
        self._count_bytes(size)
        self._body_ended = self._body_ended or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """A piece of the answer; what every answer has goes with the first."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": _complete(message.get("headers", []), self._scope["state"])}
        is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if is_last and self.status >= 400 and not self._body_ended:
            # The whole answer is out; closing now would reset a connection on which the client still writes.
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        unread = LINGER_BYTES
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while unread > 0 and not self._body_ended:
                    unread -= len((await self._next()).get("body", b""))
        except TimeoutError:
            return


def _complete(headers: Iterable[tuple[bytes, bytes]], state: Mapping[str, Any]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer with those that every answer has, where it has none of its own of that name."""
    given = list(headers)
    names = {name.lower() for name, _ in given}
    is_page = any(name.lower() == b"content-type" and value.startswith(b"text/html") for name, value in given)
    added = {
        "x-request-id": state["request_id"],
        "content-security-policy": PAGE_POLICY if is_page else DATA_POLICY,
        **SECURITY_HEADERS,
        **state.get("answer_headers", {}),
    }
    missing = {name: value for name, value in added.items() if name.lower().encode() not in names}
    return given + [(name.encode(), value.encode()) for name, value in missing.items()]


def _is_upload(scope: Scope) -> bool:
    """Whether the body is streamed, with limits of its own."""
    content_type = dict(scope["headers"]).get(b"content-type", b"").lower()
    return scope["method"] == "PUT" or content_type.startswith(b"multipart/")


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return new_id("req")


def _note_request(scope: Scope, status: int, *, seconds: float) -> None:
    method = scope["method"] if scope["method"] in METHODS else OTHER
    # The route's template has no ids in it, and no /v1; of paths that do not exist there are too many.
    route = getattr(scope.get("route"), "path", OTHER)
    mount = scope.get("root_path", "").removeprefix(scope.get("app_root_path", ""))
    route = route if route == OTHER else mount + route
    HTTP_REQUESTS.labels(method, route, str(status)).inc()
    HTTP_SECONDS.labels(method, route).observe(seconds)
    log: Callable[..., object] = structlog.get_logger().info
    log("request", method=scope["method"], path=scope["path"], status=status, seconds=round(seconds, 4))
