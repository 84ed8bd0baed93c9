"""What an attempt tells operators: how long each stage took, how it ended, and the spans of its trace.

The engine knows nothing of this: its stages are seen from here, by its progress events.
"""

import time
from typing import TYPE_CHECKING

from app.shared.causes import cause_of
from app.shared.jobs import Claim
from app.shared.metrics import ATTEMPTS, JOB_SECONDS, PHASE_SECONDS, count_engine_failure
from worker.engine_events import Result
from worker.engine_run import Ending, Failure

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

# Before and after the engine's own phases.
FETCHING, STORING = "fetching", "storing"
NANOSECONDS = 1e9


class Timeline:
    """When the stages of an attempt began, by this machine's clock."""

    def __init__(self) -> None:
        self._begun: list[tuple[str, int]] = [(FETCHING, time.time_ns())]

    def enter(self, stage: str) -> None:
        """A stage begins, and ends the one before; said again while it lasts, it is the same."""
        if stage != self._begun[-1][0]:
            self._begun.append((stage, time.time_ns()))

    def stages(self) -> list[tuple[str, int, int]]:
        """(stage, began, ended) in nanoseconds, the last one ending now."""
        ends = [*(began for _, began in self._begun[1:]), time.time_ns()]
        return [(stage, began, ended) for (stage, began), ended in zip(self._begun, ends, strict=True)]


def record_attempt(claim: Claim, timeline: Timeline, ending: Ending, tracer: "Tracer | None") -> None:
    """Count it, and send its spans."""
    cause, stages = cause_of_ending(ending), timeline.stages()
    ATTEMPTS.labels(claim.kind, cause).inc()
    JOB_SECONDS.labels(claim.kind, cause).observe((stages[-1][2] - stages[0][1]) / NANOSECONDS)
    for stage, began, ended in stages:
        PHASE_SECONDS.labels(claim.kind, stage).observe((ended - began) / NANOSECONDS)
    if isinstance(ending, Failure):
        count_engine_failure(ending.problem["category"], ending.problem["code"])
    if tracer is not None:
        _send_spans(tracer, claim, stages, ending)


def cause_of_ending(ending: Ending) -> str:
    """As in `app.shared.causes`; `lost`, when somebody else has the job and this attempt was ended there."""
    match ending:
        case Result():
            return "succeeded"
        case Failure():
            return cause_of(ending.problem["code"], ending.problem["category"])
        case _:
            return {"stopped": "preempted", "overdue": "deadline"}.get(ending.reason, ending.reason)


def _send_spans(tracer: "Tracer", claim: Claim, stages: list[tuple[str, int, int]], ending: Ending) -> None:
    """One span for the attempt, under the request that submitted the job, and one in it for each stage."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    parent = TraceContextTextMapPropagator().extract({"traceparent": claim.traceparent or ""})
    cause = cause_of_ending(ending)
    facts: dict[str, str | int] = {"job_id": claim.job_id, "attempt": claim.attempt, "kind": claim.kind, "cause": cause}
    attempt = tracer.start_span(
        "job", parent, kind=trace.SpanKind.CONSUMER, start_time=stages[0][1],
        attributes={f"archrepair.{name}": value for name, value in facts.items()},
    )  # fmt: skip
    if isinstance(ending, Failure):
        attempt.set_status(trace.StatusCode.ERROR, ending.problem["code"])
    inside = trace.set_span_in_context(attempt, parent)
    for stage, began, ended in stages:
        tracer.start_span(stage, inside, start_time=began).end(ended)
    attempt.end(stages[-1][2])
