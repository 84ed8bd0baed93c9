"""From the engine's progress events to rows: every change of phase at once, the rest at most four times a second."""

import time
from collections.abc import Callable

from worker.engine_events import Progress

MIN_SECONDS_BETWEEN_ROWS = 0.25


class ProgressRows:
    """Holds the newest event until it may be written; `write` makes the row."""

    def __init__(self, write: Callable[[Progress], None]) -> None:
        self._write = write
        self._phase = ""
        self._waiting: Progress | None = None
        self._written_at = float("-inf")

    def offer(self, progress: Progress) -> None:
        """Take an event. A new phase is written now, or a phase shorter than the throttle would leave no trace."""
        self._waiting = progress
        if progress.phase != self._phase:
            self._phase = progress.phase
            self._flush()

    def flush_due(self) -> None:
        """Write the newest event if the throttle allows it."""
        if time.monotonic() - self._written_at >= MIN_SECONDS_BETWEEN_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting is not None:
            self._write(self._waiting)
            self._waiting, self._written_at = None, time.monotonic()
