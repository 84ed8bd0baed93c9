"""How far a job is, told through one callable."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, SupportsFloat

from archrepair_core.spec import PHASES

# Where each phase begins on the progress bar.
PHASE_PERCENT = dict(zip(PHASES, (0.0, 5.0, 15.0, 20.0, 85.0, 97.0), strict=True))
MIN_SECONDS_BETWEEN_MESSAGES = 0.2


@dataclass(frozen=True)
class Progress:
    """Where a job stands; `percent` of the whole job, 0–100."""

    phase: str
    percent: float
    message: str
    step: int = 0
    total_steps: int = 0
    # Of the training that runs, at `step`; None outside of trainings.
    loss: float | None = None


OnProgress = Callable[[Progress], None]


class Tell(Protocol):
    """Says what is done now, and of a training how far it is. A loss may lie on a GPU: it is read if it is told."""

    def __call__(
        self, message: str, /, *, step: int = 0, total_steps: int = 0, loss: SupportsFloat | None = None
    ) -> None: ...


class Narrator:
    """Tells progress in order, not too often, and remembers how long each phase took.

    `percents` say where each phase begins on the bar; a job that has fewer phases gives its own.
    """

    def __init__(self, on_progress: OnProgress, percents: dict[str, float] = PHASE_PERCENT) -> None:
        self._on_progress = on_progress
        self._percents = percents
        self._began: dict[str, float] = {}
        self._last_message = 0.0
        self._percent = 0.0

    def begin(self, phase: str, message: str) -> None:
        """Enter a phase."""
        self._began[phase] = time.monotonic()
        self._on_progress(Progress(phase, self._percents[phase], message))

    def during(self, phase: str, budget_seconds: float) -> Tell:
        """A callable for messages during a phase; the bar moves with the share of the budget that is spent."""

        def tell(message: str, /, *, step: int = 0, total_steps: int = 0, loss: SupportsFloat | None = None) -> None:
            share = (time.monotonic() - self._began[phase]) / budget_seconds
            self.reached(phase, share, message, step=step, total_steps=total_steps, loss=loss)

        return tell

    def reached(
        self,
        phase: str,
        share: float,
        message: str,
        *,
        step: int = 0,
        total_steps: int = 0,
        loss: SupportsFloat | None = None,
    ) -> None:
        """Say that this share of a phase is done."""
        now = time.monotonic()
        if now - self._last_message < MIN_SECONDS_BETWEEN_MESSAGES:
            return
        self._last_message = now
        phases = list(self._percents)
        first, last = self._percents[phase], self._percents[phases[phases.index(phase) + 1]]
        self._percent = max(self._percent, round(first + min(1.0, share) * (last - first), 1))
        seen = None if loss is None else float(loss)
        self._on_progress(Progress(phase, self._percent, message, step, total_steps, seen))

    def seconds(self) -> dict[str, float]:
        """Seconds per phase so far, by name, and in all."""
        names, times = list(self._began), [*self._began.values(), time.monotonic()]
        spent = {name: round(times[i + 1] - times[i], 2) for i, name in enumerate(names)}
        return spent | {"total": round(times[-1] - times[0], 2)}
