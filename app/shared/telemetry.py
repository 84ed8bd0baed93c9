"""Traces, for an OpenTelemetry collector named by OTEL_EXPORTER_OTLP_ENDPOINT. Without one nothing of it is imported.

A trace begins where a client or the gateway began it; the job's row carries it to the worker. The SDK reads the other
OTEL_* variables itself.
"""

import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
# version-trace-parent-flags
TRACEPARENT_FIELDS = 4


def is_traced(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the operator has a collector."""
    return any(environment.get(name) for name in ENDPOINTS)


def start_tracing(service: str) -> "TracerProvider | None":
    """What makes spans of this process; shut it down to send the last. Raises RuntimeError without the packages."""
    if not is_traced():
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        names = " or ".join(ENDPOINTS)
        raise RuntimeError(f"{names} is set, but traces need: pip install 'archrepair[telemetry]'") from error
    resource = Resource.create({"service.name": service, "service.version": version("archrepair")})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def tracer_of(provider: "TracerProvider | None") -> "Tracer | None":
    """To make spans with, where there are any."""
    return None if provider is None else provider.get_tracer("archrepair")


def current_traceparent() -> str | None:
    """The W3C `traceparent` of the span that is under way in this context."""
    if not is_traced():
        return None
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get("traceparent")


def trace_id_of(traceparent: str | None) -> str | None:
    """The trace in a `traceparent`, for logs."""
    fields = (traceparent or "").split("-")
    return fields[1] if len(fields) == TRACEPARENT_FIELDS else None
