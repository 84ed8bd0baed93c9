"""One engine kept warm between jobs: torch is imported before the job comes."""

from collections.abc import Callable

from worker.engine_process import EngineProcess


class WarmEngine:
    """Holds at most one idle engine process, started with `start`."""

    def __init__(self, start: Callable[[], EngineProcess]) -> None:
        self._start = start
        self._idle: EngineProcess | None = None

    def warm(self) -> EngineProcess:
        """Have one ready for the next job, and show it; a dead one is replaced."""
        if self._idle is not None and self._idle.exited():
            self.close()
        if self._idle is None:
            self._idle = self._start()
        return self._idle

    def take(self) -> EngineProcess:
        """The idle engine, from now on the caller's to close."""
        engine, self._idle = self.warm(), None
        return engine

    def close(self) -> None:
        """End the idle engine; it has no work to lose, so it gets no grace."""
        if self._idle is not None:
            self._idle.close()
            self._idle = None
