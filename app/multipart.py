"""multipart/form-data as a stream of parts, pulled: nothing is read from the socket before someone wants the bytes."""

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError, MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import ApiProblem

# What the parser found, in order: the headers of a part, a piece of its data, or None at its end.
Event = dict[str, str] | bytes | None


@dataclass(frozen=True)
class Part:
    """One part. `chunks` must be read to its end before the next part is asked for."""

    name: str
    filename: str
    chunks: AsyncIterator[bytes]


@dataclass
class _Found:
    """What the parser's callbacks saw in the bytes written so far."""

    events: deque[Event] = field(default_factory=deque)
    headers: dict[str, str] = field(default_factory=dict)
    name: bytes = b""
    value: bytes = b""
    ended: bool = False

    def begin(self) -> None:
        self.headers, self.name, self.value = {}, b"", b""

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self.name += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self.value += data[start:end]

    def header_end(self) -> None:
        # latin-1 keeps the bytes as they are: the library takes nothing else, and gives bytes back.
        self.headers[self.name.decode("latin-1").lower()] = self.value.decode("latin-1")
        self.name = self.value = b""

    def headers_finished(self) -> None:
        self.events.append(self.headers)

    def data(self, data: bytes, start: int, end: int) -> None:
        self.events.append(data[start:end])

    def part_end(self) -> None:
        self.events.append(None)

    def end(self) -> None:
        self.ended = True


async def read_parts(stream: AsyncIterator[bytes], content_type: str) -> AsyncIterator[Part]:
    """The parts of a multipart body. Raises ApiProblem `upload.malformed` or `upload.truncated`."""
    events = _read_events(stream, content_type)
    async for event in events:
        if isinstance(event, dict):
            name, filename = _name_and_filename(event)
            chunks = _until_end(events)
            yield Part(name, filename, chunks)
            # A refused request never comes here; a consumer that took only a part of the bytes does.
            async for _ in chunks:
                continue


async def _until_end(events: AsyncIterator[Event]) -> AsyncIterator[bytes]:
    async for event in events:
        if event is None:
            return
        if isinstance(event, bytes):
            yield event


async def _read_events(stream: AsyncIterator[bytes], content_type: str) -> AsyncIterator[Event]:
    found = _Found()
    parser = _parser(found, content_type)
    async for chunk in stream:
        try:
            parser.write(chunk)
        except MultipartParseError as error:
            raise ApiProblem("upload.malformed", f"The multipart body is malformed: {error}.") from None
        while found.events:
            yield found.events.popleft()
    if not found.ended:
        hint = "Send the whole body, with its closing boundary."
        raise ApiProblem("upload.truncated", "The body ended before its closing boundary.", hint=hint)


def _parser(found: _Found, content_type: str) -> MultipartParser:
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    hint = "Let the HTTP client write this header, e.g. curl --form."
    if not boundary:
        raise ApiProblem("upload.malformed", "The Content-Type header names no boundary.", hint=hint)
    try:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": found.begin,
                "on_header_field": found.header_name,
                "on_header_value": found.header_value,
                "on_header_end": found.header_end,
                "on_headers_finished": found.headers_finished,
                "on_part_data": found.data,
                "on_part_end": found.part_end,
                "on_end": found.end,
            },
        )
    except FormParserError as error:
        raise ApiProblem("upload.malformed", f"The boundary is not usable: {error}.", hint=hint) from None


def _name_and_filename(headers: dict[str, str]) -> tuple[str, str]:
    _, options = parse_options_header(headers.get("content-disposition", ""))
    name = options.get(b"name", b"").decode("utf-8", "replace")
    if not name:
        raise ApiProblem("upload.malformed", "A part has no name.", hint='Every part needs name="…".')
    return name, options.get(b"filename", b"").decode("utf-8", "replace")
