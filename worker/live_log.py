"""The engine's log on its way to the database while the engine runs, a piece a second at most."""

import time
from collections.abc import Callable, Sequence
from itertools import accumulate

from app.shared.joblog import ATTEMPT_BYTES
from worker.engine_log import EngineLog

SECONDS_BETWEEN_PIECES = 1.0
# (lines, where they begin, rows to forget) to the number of the new row, None where none could be written.
Write = Callable[[bytes, int, Sequence[int]], int | None]


class LiveLog:
    """Takes what is new in `log` and has `write` make a row of it; of ATTEMPT_BYTES the oldest rows make room."""

    def __init__(self, log: EngineLog, write: Write) -> None:
        self._log = log
        self._write = write
        # (seq, bytes), the oldest first.
        self._rows: list[tuple[int, int]] = []
        self._written_at = float("-inf")

    def flush_due(self) -> None:
        """Write what is new if the last piece is old enough."""
        if time.monotonic() - self._written_at >= SECONDS_BETWEEN_PIECES:
            self.flush()

    def flush(self) -> None:
        """Write what is new."""
        start, lines = self._log.take()
        if not lines:
            return
        self._written_at = time.monotonic()
        kept = self._that_may_stay(ATTEMPT_BYTES - len(lines))
        row = self._write(lines, start, [seq for seq, _ in self._rows[: len(self._rows) - len(kept)]])
        if row is not None:
            self._rows = [*kept, (row, len(lines))]

    def _that_may_stay(self, room: int) -> list[tuple[int, int]]:
        """The newest rows, as far as they fit."""
        sizes = accumulate(size for _, size in reversed(self._rows))
        fitting = sum(size <= room for size in sizes)
        return self._rows[len(self._rows) - fitting :]
