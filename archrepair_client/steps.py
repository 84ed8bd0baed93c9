"""What a call of the SDK does, apart from how: generators that ask for effects and are given their answers.

One generator serves both clients. `operation` makes a method of it that, on a resource of ArchRepair, returns the
result and, on one of AsyncArchRepair, an awaitable of it; `listing` one that gives an iterator, or an async one.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, update_wrapper
from pathlib import Path
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeAlias, TypeVar, overload

import httpx

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class FilePart:
    """A part of a form: the file at `path`, or `content`."""

    name: str
    path: Path | None = None
    content: bytes = b""
    media_type: str = "application/octet-stream"


@dataclass(frozen=True)
class FileSlice:
    """A body that is a stretch of a file, never in memory as a whole."""

    path: Path
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class Request:
    """An HTTP request in words; it can be sent again as it is. `path` is below `/v1`.

    A `path` that is a whole URL leads elsewhere, to an object store: the key is not sent there.
    """

    method: str
    path: str
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    form: Sequence[FilePart] = ()
    body: FileSlice | None = None
    # None: as the client's options say.
    timeout_seconds: float | None = None


@dataclass(frozen=True)
class Send:
    """Answered with a httpx.Response that is read."""

    request: Request


@dataclass(frozen=True)
class Open:
    """Answered with a httpx.Response whose body is to be Read; that of an error is read already."""

    request: Request
    chunk_bytes: int | None = None


@dataclass(frozen=True)
class Read:
    """Answered with the next bytes of an open response; with none at its end."""

    response: httpx.Response


@dataclass(frozen=True)
class Close:
    """Ends an open response early. Whatever is open when the steps end is closed then."""

    response: httpx.Response


@dataclass(frozen=True)
class Sleep:
    seconds: float


@dataclass(frozen=True)
class Call:
    """Work that takes a while without the network: answered with what the function returns."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class Together:
    """Several at once, `limit` at most: answered with their results in order. The first error ends it."""

    steps: Sequence[Generator[Any, Any, Any]]
    limit: int


@dataclass(frozen=True)
class Item(Generic[T]):
    """Of a listing: the next one."""

    value: T


Effect: TypeAlias = Send | Open | Read | Close | Sleep | Call | Together
Steps: TypeAlias = Generator[Effect, Any, T]
Listing: TypeAlias = Generator[Effect | Item[T], Any, None]


class Sync(Protocol):
    """A driver that does what is asked in the caller's thread."""

    def run(self, steps: Steps[T]) -> T:
        """The result of the steps."""
        ...

    def iterate(self, steps: Listing[T]) -> Iterator[T]:
        """Their items."""
        ...


class Async(Protocol):
    """A driver that does what is asked in the running event loop."""

    def run(self, steps: Steps[T]) -> Coroutine[Any, Any, T]:
        """The result of the steps."""
        ...

    def iterate(self, steps: Listing[T]) -> AsyncIterator[T]:
        """Their items."""
        ...


D_co = TypeVar("D_co", bound=Sync | Async, covariant=True)


class Driven(Protocol[D_co]):
    """What has operations: it knows its driver."""

    @property
    def driver(self) -> D_co:
        """Sync or async."""
        ...


class operation(Generic[P, T]):
    """A method of both clients, written once as steps. Other steps take it as `Class.method.steps(self, …)`."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Steps[T]]) -> None:
        self.steps = steps
        self.__doc__ = steps.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Driven[Sync], owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, instance: Driven[Async], owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        return update_wrapper(partial(self._run, instance), self.steps)

    def _run(self, instance: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
        return instance.driver.run(self.steps(instance, *args, **kwargs))


class listing(Generic[P, T]):
    """Like `operation`, for steps that yield an Item of a T each."""

    def __init__(self, steps: Callable[Concatenate[Any, P], Listing[T]]) -> None:
        self.steps = steps
        self.__doc__ = steps.__doc__

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Driven[Sync], owner: type) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, instance: Driven[Async], owner: type) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        return update_wrapper(partial(self._iterate, instance), self.steps)

    def _iterate(self, instance: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
        return instance.driver.iterate(self.steps(instance, *args, **kwargs))
