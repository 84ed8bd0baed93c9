"""A cancel that wants to keep the best so far: the engine is asked once, and has a while to hand it over."""

import time

from worker.engine_process import EngineProcess

# From then on a repair has, or soon has, something to hand over.
KEEPING_PHASES = ("repairing", "verifying", "packaging")


class Finishing:
    """Whether a cancelled repair may go on to its ending. `seconds` is the while it has."""

    def __init__(self, engine: EngineProcess, kind: str, *, seconds: float) -> None:
        self._engine = engine
        self._kind = kind
        self._seconds = seconds
        self._phase = ""
        self._until: float | None = None

    @property
    def was_asked(self) -> bool:
        return self._until is not None

    def enter(self, phase: str) -> None:
        """The engine's phase, as it says."""
        self._phase = phase

    def may_go_on(self) -> bool:
        """Ask the engine, the first time, and say whether to wait for it. False: there is nothing to keep."""
        if self._until is None:
            if self._kind != "repair" or self._phase not in KEEPING_PHASES:
                return False
            self._engine.ask_to_finish()
            self._until = time.monotonic() + self._seconds
        return time.monotonic() < self._until
