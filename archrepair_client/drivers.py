"""How the effects of steps are done: over httpx, in the caller's thread or in an event loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

from archrepair_client.steps import (
    Call,
    Close,
    Effect,
    FilePart,
    FileSlice,
    Item,
    Listing,
    Open,
    Read,
    Request,
    Send,
    Sleep,
    Steps,
    Together,
)

T = TypeVar("T")
PIECE_BYTES = 256 * 1024
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def pieces(body: FileSlice) -> Iterator[bytes]:
    """The bytes of the slice, a piece at a time. Raises OSError when the file has become shorter."""
    with body.path.open("rb") as file:
        file.seek(body.offset)
        left = body.size_bytes
        while left:
            piece = file.read(min(PIECE_BYTES, left))
            if not piece:
                raise OSError(f"{body.path} became shorter while it was sent")
            left -= len(piece)
            yield piece


async def _pieces_async(body: FileSlice) -> AsyncIterator[bytes]:
    source = pieces(body)
    while piece := await asyncio.to_thread(next, source, b""):
        yield piece


def _built(http: httpx.Client | httpx.AsyncClient, request: Request, content: Any, stack: ExitStack) -> httpx.Request:
    """The request as httpx sends it; files of a form are open as long as `stack` is."""
    arguments = _arguments(request, stack)
    if content is not None:
        arguments["content"] = content
    if not urlsplit(request.path).scheme:
        return http.build_request(request.method, request.path, **arguments)
    # Made apart from the client, whose headers, with the key in them, are the service's.
    timeout = arguments.pop("timeout", http.timeout)
    return httpx.Request(request.method, request.path, **arguments, extensions={"timeout": timeout.as_dict()})


def _arguments(request: Request, stack: ExitStack) -> dict[str, Any]:
    arguments: dict[str, Any] = {"headers": dict(request.headers)}
    if request.query:
        arguments["params"] = {name: value for name, value in request.query.items() if value is not None}
    if request.json is not None:
        arguments["json"] = request.json
    if request.form:
        arguments["files"] = [(part.name, _form_part(part, stack)) for part in request.form]
    if request.body is not None:
        arguments["headers"]["Content-Length"] = str(request.body.size_bytes)
    if request.timeout_seconds is not None:
        arguments["timeout"] = httpx.Timeout(request.timeout_seconds, connect=5.0)
    return arguments


def _form_part(part: FilePart, stack: ExitStack) -> tuple[str | None, Any, str]:
    if part.path is None:
        return None, part.content, part.media_type
    return part.path.name, stack.enter_context(part.path.open("rb")), part.media_type


def uses_environment(base_url: str) -> bool:
    """Whether proxies of the environment apply: not to a service on this machine."""
    return urlsplit(base_url).hostname not in LOOPBACK


class SyncDriver:
    """Does one effect after the other; several Together in threads."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def run(self, steps: Steps[T]) -> T:
        """The result of the steps."""
        with _Session(self._http, self.run) as session:
            resume: Callable[[], Effect] = partial(next, steps)
            while True:
                try:
                    effect = resume()
                except StopIteration as stop:
                    return stop.value
                resume = session.answer(effect, steps)

    def iterate(self, steps: Listing[T]) -> Iterator[T]:
        """The items of the steps."""
        with _Session(self._http, self.run) as session:
            resume: Callable[[], Effect | Item[T]] = partial(next, steps)
            while True:
                try:
                    effect = resume()
                except StopIteration:
                    return
                if isinstance(effect, Item):
                    yield effect.value
                    resume = partial(next, steps)
                else:
                    resume = session.answer(effect, steps)


class _Session:
    """What is open while one call runs."""

    def __init__(self, http: httpx.Client, run: Callable[[Any], Any]) -> None:
        self._http = http
        self._run = run
        self._open = ExitStack()
        self._bodies: dict[int, Iterator[bytes]] = {}

    def __enter__(self) -> "_Session":
        return self

    def __exit__(self, *_error: object) -> None:
        self._open.close()

    def answer(self, effect: Effect, steps: Generator[Any, Any, Any]) -> Callable[[], Any]:
        """How the steps go on: with what the effect gives, or with how the connection failed."""
        try:
            return partial(steps.send, self._perform(effect))
        except httpx.RequestError as error:
            return partial(steps.throw, error)

    def _perform(self, effect: Effect) -> Any:
        match effect:
            case Send(request):
                return self._send(request, stream=False)
            case Open(request, chunk_bytes):
                return self._opened(request, chunk_bytes)
            case Read(response):
                return next(self._bodies[id(response)], b"")
            case Close(response):
                return response.close()
            case Sleep(seconds):
                return time.sleep(seconds)
            case Call(function):
                return function()
            case Together(steps, limit):
                with ThreadPoolExecutor(limit) as pool:
                    futures = [pool.submit(self._run, one) for one in steps]
                    try:
                        return [future.result() for future in futures]
                    except BaseException:
                        pool.shutdown(wait=False, cancel_futures=True)
                        raise

    def _send(self, request: Request, *, stream: bool) -> httpx.Response:
        content = pieces(request.body) if request.body is not None else None
        with ExitStack() as files:
            return self._http.send(_built(self._http, request, content, files), stream=stream)

    def _opened(self, request: Request, chunk_bytes: int | None) -> httpx.Response:
        response = self._send(request, stream=True)
        self._open.callback(response.close)
        if response.is_error:
            response.read()
        else:
            self._bodies[id(response)] = response.iter_raw(chunk_bytes)
        return response


class AsyncDriver:
    """Awaits one effect after the other; what would block the loop is done in threads."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http

    async def run(self, steps: Steps[T]) -> T:
        """The result of the steps."""
        async with _AsyncSession(self._http, self.run) as session:
            resume: Callable[[], Effect] = partial(next, steps)
            while True:
                try:
                    effect = resume()
                except StopIteration as stop:
                    return stop.value
                resume = await session.answer(effect, steps)

    async def iterate(self, steps: Listing[T]) -> AsyncIterator[T]:
        """The items of the steps."""
        async with _AsyncSession(self._http, self.run) as session:
            resume: Callable[[], Effect | Item[T]] = partial(next, steps)
            while True:
                try:
                    effect = resume()
                except StopIteration:
                    return
                if isinstance(effect, Item):
                    yield effect.value
                    resume = partial(next, steps)
                else:
                    resume = await session.answer(effect, steps)


class _AsyncSession:
    """What is open while one call runs."""

    def __init__(self, http: httpx.AsyncClient, run: Callable[[Any], Any]) -> None:
        self._http = http
        self._run = run
        self._open = AsyncExitStack()
        self._bodies: dict[int, AsyncIterator[bytes]] = {}

    async def __aenter__(self) -> "_AsyncSession":
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._open.aclose()

    async def answer(self, effect: Effect, steps: Generator[Any, Any, Any]) -> Callable[[], Any]:
        """How the steps go on: with what the effect gives, or with how the connection failed."""
        try:
            return partial(steps.send, await self._perform(effect))
        except httpx.RequestError as error:
            return partial(steps.throw, error)

    async def _perform(self, effect: Effect) -> Any:
        match effect:
            case Send(request):
                return await self._send(request, stream=False)
            case Open(request, chunk_bytes):
                return await self._opened(request, chunk_bytes)
            case Read(response):
                return await anext(self._bodies[id(response)], b"")
            case Close(response):
                return await response.aclose()
            case Sleep(seconds):
                return await asyncio.sleep(seconds)
            case Call(function):
                return await asyncio.to_thread(function)
            case Together(steps, limit):
                return await _gathered([partial(self._run, one) for one in steps], limit)

    async def _send(self, request: Request, *, stream: bool) -> httpx.Response:
        content = _pieces_async(request.body) if request.body is not None else None
        with ExitStack() as files:
            return await self._http.send(_built(self._http, request, content, files), stream=stream)

    async def _opened(self, request: Request, chunk_bytes: int | None) -> httpx.Response:
        response = await self._send(request, stream=True)
        self._open.push_async_callback(response.aclose)
        if response.is_error:
            await response.aread()
        else:
            self._bodies[id(response)] = response.aiter_raw(chunk_bytes)
        return response


async def _gathered(runs: list[Callable[[], Any]], limit: int) -> list[Any]:
    room = asyncio.Semaphore(limit)

    async def one(run: Callable[[], Any]) -> Any:
        async with room:
            return await run()

    tasks = [asyncio.ensure_future(one(run)) for run in runs]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
