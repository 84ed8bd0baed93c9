"""What an engine process wrote to stderr, within a bound: the beginning and the end, and how much fell out between."""

TAIL_BYTES = 32 * 1024


class EngineLog:
    """Keeps the first `limit_bytes - TAIL_BYTES` and the last TAIL_BYTES: a traceback stands at the end."""

    def __init__(self, limit_bytes: int) -> None:
        self._head_limit = limit_bytes - TAIL_BYTES
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0

    def append(self, chunk: bytes) -> None:
        """Add output, dropping from the middle when the bound is reached."""
        room = self._head_limit - len(self._head)
        self._head += chunk[:room]
        self._tail += chunk[room:]
        surplus = len(self._tail) - TAIL_BYTES
        if surplus > 0:
            del self._tail[:surplus]
            self._dropped += surplus

    def content(self) -> bytes:
        """All that was kept; a gap is said, not hidden."""
        gap = f"\n[... {self._dropped} bytes left out ...]\n".encode() if self._dropped else b""
        return bytes(self._head) + gap + bytes(self._tail)

    def last_lines(self, count: int) -> list[str]:
        """The end of the log as text, for the problem of a failed job."""
        return self.content()[-TAIL_BYTES:].decode("utf-8", "replace").splitlines()[-count:]
