"""Spans of requests. Only imported into being where there is a collector, see `app.shared.telemetry`."""

from typing import TYPE_CHECKING

from fastapi import FastAPI

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

# Asked every few seconds by machines.
UNTRACED = "/healthz,/readyz,/metrics"


def trace_requests(app: FastAPI, tracing: "TracerProvider") -> None:
    """A span for every request, in the trace its `traceparent` names if it has one."""
    from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor

    FastAPIInstrumentor.instrument_app(
        app, tracer_provider=tracing, excluded_urls=UNTRACED, exclude_spans=["receive", "send"]
    )
