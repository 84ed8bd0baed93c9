"""What an engine process wrote to stderr, within bounds: as the customer may read it, and its end as it came.

The customer's is without stack traces of ours: they tell how we are built, and of the customer's fault nothing that the
line after them does not say. What a TorchScript model says of its own code stays. The operator gets the end as it came.
"""

import re

TAIL_BYTES = 32 * 1024
# Of what has not been taken yet: whoever takes it once a second gets all that a sensible engine says.
FRESH_BYTES = 256 * 1024
# Without a line break, so much is a line.
LINE_BYTES = 64 * 1024
# Python's, also of an exception group, whose lines begin with `|` and `+`.
_TRACEBACK = re.compile(rb"[ |+-]*(Exception Group )?Traceback \(most recent call last\):\s*$")
_NATIVE_FRAME = re.compile(rb"frame #\d+: ")


class EngineLog:
    """Keeps the first `limit_bytes - TAIL_BYTES` and the last TAIL_BYTES: what went wrong stands at the end."""

    def __init__(self, limit_bytes: int) -> None:
        self._unfinished = bytearray()
        self._in_frames = False
        self._head_limit = limit_bytes - TAIL_BYTES
        self._head, self._tail, self._raw, self._fresh = (bytearray() for _ in range(4))
        self._dropped = 0
        self._taken = 0

    def append(self, chunk: bytes) -> None:
        """Add output, dropping from the middle when the bound is reached."""
        self._raw += chunk
        _shorten(self._raw, TAIL_BYTES)
        *lines, rest = (bytes(self._unfinished) + chunk).split(b"\n")
        self._unfinished = bytearray(rest)
        self._add(b"".join(line + b"\n" for line in lines if self._is_shown(line)))
        if len(self._unfinished) > LINE_BYTES:
            self.finish()

    def finish(self) -> None:
        """Nothing follows: what has no line break is a line too."""
        line = bytes(self._unfinished)
        self._unfinished.clear()
        if line and self._is_shown(line):
            self._add(line + b"\n")

    def _add(self, lines: bytes) -> None:
        room = self._head_limit - len(self._head)
        self._head += lines[:room]
        self._tail += lines[room:]
        self._dropped += _shorten(self._tail, TAIL_BYTES)
        self._fresh += lines
        self._taken += _shorten(self._fresh, FRESH_BYTES)

    def _is_shown(self, line: bytes) -> bool:
        """Whether the line is none of a stack trace. Frames are indented, the exception after them is not."""
        if _TRACEBACK.match(line):
            self._in_frames = True
        elif not line.startswith(b" "):
            self._in_frames = False
        return not self._in_frames and not _NATIVE_FRAME.match(line)

    def take(self) -> tuple[int, bytes]:
        """What was said since the last time, or the end of it, and at which byte of all that was said it begins."""
        start, lines = self._taken, bytes(self._fresh)
        self._fresh.clear()
        self._taken += len(lines)
        return start, lines

    def content(self) -> bytes:
        """All that was kept; a gap is said, not hidden."""
        gap = f"\n[... {self._dropped} bytes left out ...]\n".encode() if self._dropped else b""
        return bytes(self._head) + gap + bytes(self._tail)

    def last_lines(self, count: int) -> list[str]:
        """The end of the log as text, for the problem of a failed job."""
        return _lines(self.content()[-TAIL_BYTES:], count)

    def raw_lines(self, count: int) -> list[str]:
        """The end with its stack traces, for the operator."""
        return _lines(bytes(self._raw), count)


def _shorten(kept: bytearray, limit: int) -> int:
    """Drop from the beginning what is too much; returns how much that was."""
    surplus = max(len(kept) - limit, 0)
    del kept[:surplus]
    return surplus


def _lines(end: bytes, count: int) -> list[str]:
    return end.decode("utf-8", "replace").splitlines()[-count:]
