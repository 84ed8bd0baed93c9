"""The border of every request, as plain ASGI: its id, its log line, the answer to a crash, and a polite early end."""

import asyncio
import re
import time
from collections.abc import Callable

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ApiProblem, problem_response
from app.shared.ids import new_id

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# How much of a refused upload is still read, so that the client hears the answer before its connection is cut.
LINGER_BYTES = 64 * 1024 * 1024
LINGER_SECONDS = 10.0


class RequestBorder:
    """ASGI middleware: `X-Request-Id` in and out, one log line per request, no exception beyond it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        exchange = Exchange(receive, send, request_id)
        started = time.perf_counter()
        try:
            await self.app(scope, exchange.receive, exchange.send)
        except Exception:  # noqa: BLE001  the border of the request: whatever it is, the client gets an answer
            structlog.get_logger().exception("request crashed", path=scope["path"])
            await _answer_crash(scope, exchange)
        finally:
            _log_request(scope, exchange.status, seconds=time.perf_counter() - started)


class Exchange:
    """One request's two channels. Holds the end of an early answer back until the client has stopped sending."""

    def __init__(self, receive: Receive, send: Send, request_id: str) -> None:
        self.status = 0
        self._receive = receive
        self._send = send
        self._request_id = request_id
        self._body_ended = False

    async def receive(self) -> Message:
        """The next piece of the request."""
        message = await self._receive()
        self._body_ended = self._body_ended or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """A piece of the answer; the request id goes with the first."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message.get("headers", []), (b"x-request-id", self._request_id.encode())]
            message = {**message, "headers": headers}
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
                    unread -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            return


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return new_id("req")


async def _answer_crash(scope: Scope, exchange: Exchange) -> None:
    if exchange.status:
        return  # half an answer is out: all that is left is to end it, which the server does
    problem = ApiProblem("platform.internal", "The gateway failed on this request.", hint="Quote the request_id.")
    await problem_response(Request(scope), problem)(scope, exchange.receive, exchange.send)


def _log_request(scope: Scope, status: int, *, seconds: float) -> None:
    log: Callable[..., object] = structlog.get_logger().info
    log("request", method=scope["method"], path=scope["path"], status=status, seconds=round(seconds, 4))
