"""Server-sent events, from the bytes of a stream."""

from collections.abc import Iterator

from archrepair_client.types import JobEvent


class EventStream:
    """Cuts a stream into events. Half a line at the end of a chunk waits for the rest; comments and retries pass."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[JobEvent]:
        """The events that are complete with this chunk."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            name, _, value = line.rstrip(b"\r").decode().partition(":")
            if name == "data":
                self._data.append(value.removeprefix(" "))
            elif not name and not value and self._data:
                yield JobEvent.model_validate_json("\n".join(self._data))
                self._data = []
