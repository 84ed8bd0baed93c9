"""What is counted where it happens, for Prometheus. What the database knows is read from it: `app.shared.gauges`.

No label holds an id, an address or a customer's words: every label's values are few and known. A worker is two
processes; with PROMETHEUS_MULTIPROC_DIR set before they start, either tells what both have counted.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    multiprocess,
)
from prometheus_client.registry import Collector

MULTIPROC_DIR = "PROMETHEUS_MULTIPROC_DIR"
# Long polls and streams are requests too, hence the minutes.
REQUEST_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
JOB_BUCKETS = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600)
# Codes of engines come from processes that ran models of strangers: beyond so many they are one.
MOST_CODES = 100
OTHER = "other"

HTTP_REQUESTS = Counter("archrepair_http_requests", "Answered requests.", ["method", "route", "status"])
HTTP_SECONDS = Histogram(
    "archrepair_http_request_seconds",
    "From a request's first byte to its answer's last.",
    ["method", "route"],
    buckets=REQUEST_BUCKETS,
)
PROBLEM_COUNT = Counter("archrepair_problems", "Refusals and failures by code; quota.rate_limited is one.", ["code"])
UPLOADS_RUNNING = Gauge("archrepair_uploads_in_flight", "Requests whose body is a file.", multiprocess_mode="livesum")
UPLOAD_BYTES = Counter("archrepair_upload_received_bytes", "Bytes of such bodies that have arrived.")
RATE_LIMIT_OUTAGES = Counter("archrepair_rate_limit_outages", "How often Redis went away, and nobody was limited.")
DATABASE_ERRORS = Counter("archrepair_database_errors", "Statements and connections the database failed.", ["error"])
STORE_ERRORS = Counter("archrepair_store_errors", "Calls the object store failed.", ["error"])
LEASE_LOSSES = Counter("archrepair_lease_losses", "Running jobs a worker found to be no longer its own.")
JOBS_REAPED = Counter("archrepair_jobs_reaped", "Jobs taken back from silent workers.")
ATTEMPTS = Counter("archrepair_attempts", "Attempts that ended, by cause.", ["kind", "cause"])
ENGINE_FAILURES = Counter("archrepair_engine_failures", "Failed jobs by code of the problem.", ["category", "code"])
JOB_SECONDS = Histogram(
    "archrepair_job_seconds", "From claim to ending of one attempt.", ["kind", "cause"], buckets=JOB_BUCKETS
)
PHASE_SECONDS = Histogram(
    "archrepair_job_phase_seconds", "How long a phase took.", ["kind", "phase"], buckets=JOB_BUCKETS
)
DELIVERED, REFUSED, UNREACHABLE = WEBHOOK_RESULTS = ("delivered", "refused", "unreachable")
WEBHOOK_ATTEMPTS = Counter("archrepair_webhook_attempts", "Attempts to deliver a webhook, by result.", ["result"])

_codes: set[str] = set()


def count_engine_failure(category: str, code: str) -> None:
    """Count a failed job by its code, or as `other` when an engine makes codes up."""
    if code not in _codes and len(_codes) >= MOST_CODES:
        code = OTHER
    _codes.add(code)
    ENGINE_FAILURES.labels("user" if category == "user" else "platform", code).inc()


@contextmanager
def counted_upload(is_upload: bool) -> Iterator[Callable[[int], None]]:
    """Count a request as under way if its body is a file; call the value with the size of every piece of the body."""
    if not is_upload:
        yield lambda _: None
        return
    with UPLOADS_RUNNING.track_inprogress():
        yield UPLOAD_BYTES.inc


def begin_counting() -> None:
    """Have the series of which alerts look at the growth begin with 0: of one that begins with 1 they see none."""
    for result in WEBHOOK_RESULTS:
        WEBHOOK_ATTEMPTS.labels(result)
    STORE_ERRORS.labels("GenericError")
    DATABASE_ERRORS.labels("OperationalError")
    ENGINE_FAILURES.labels("platform", OTHER)


def registry_with(*collectors: Collector) -> CollectorRegistry:
    """Everything: what this process has counted, or all of them together, and what `collectors` read when asked."""
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    if MULTIPROC_DIR in os.environ:
        multiprocess.MultiProcessCollector(registry)
        ProcessCollector(registry=registry)
    else:
        registry.register(REGISTRY)
    return registry
