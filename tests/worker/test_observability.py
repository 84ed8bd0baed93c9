"""A gateway, a worker and their operator: one trace, one set of counts, logs that are JSON and hold no secret."""

import gzip
import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from archrepair_client.processes import Child, Program
from tests.servers import environment_of, free_port, running, valkey_command

PASSWORD = "broker-password-of-the-test"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
# Not all of the SDK: redis looks for the part about metrics.
TRACING = ("opentelemetry.sdk.trace", "opentelemetry.exporter", "opentelemetry.instrumentation")
# At the start of the pool process, before logs are configured, and at the end.
CELERYS_OWN = re.compile(
    r"^(\[.*child process \d+ calling self\.run\(\)|worker: Warm shutdown \(MainProcess\))$", re.MULTILINE
)
# Which the engine double takes for: succeed.
SPEC = {"datasets": {"repair": "upload:repair"}, "seed": 200}
CLIENT_SPAN = "00f067aa0ba902b7"


class Collector(BaseHTTPRequestHandler):
    """OTLP over HTTP, as a collector takes it."""

    spans: list

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            facts = {item.key: item.value.string_value for item in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans.extend((facts["service.name"], span) for span in scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        """Quiet."""


@pytest.fixture
def collector(monkeypatch):
    """Spans as (service, span), of all processes started meanwhile."""
    handler = type("Handler", (Collector,), {"spans": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        yield handler.spans
        server.shutdown()


@pytest.fixture
def settings(stack, tmp_path, monkeypatch):
    port = free_port()
    broker_url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
    settings = stack.fresh(tmp_path / "state", broker_url=broker_url, metrics_port=free_port(), secret_key="k" * 40)
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    with running(valkey_command(port, PASSWORD)):
        yield settings


@pytest.fixture
def worker(settings, tmp_path):
    command = (sys.executable, "-P", str(Path(__file__).with_name("worker_with_double.py")))
    child = Child(Program("worker", command, dict(os.environ), stop_seconds=8), tmp_path / "worker.log")
    yield child
    child.stop(lambda: True)


def lines_of(path):
    """Every line of a log; one that is not JSON fails, but for what Celery writes past all loggers."""
    text = CELERYS_OWN.sub("", path.read_text())
    return [json.loads(line) for line in text.splitlines() if line]


@pytest.mark.slow
@pytest.mark.parametrize("stack", ["production"], indirect=True)
def test_one_trace_and_one_set_of_counts_from_request_to_ending(
    collector, settings, start_gateway, worker, submission, tmp_path, eventually
):
    with start_gateway(settings) as gateway:
        answer = gateway.client.post(
            "/v1/jobs", files=submission(SPEC), headers={"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01"}
        )
        job_id = answer.json()["id"]
        job = gateway.client.get(f"/v1/jobs/{job_id}?wait=45").json()
        assert job["status"] == "succeeded", job

        def traced():
            found = {(service, span.name): span for service, span in collector if span.trace_id.hex() == TRACE}
            return found if ("archrepair-worker", "job") in found else None

        spans = eventually(traced, 10)
        told = httpx.get(f"http://127.0.0.1:{settings.metrics_port}/metrics").text
        worker.stop(lambda: False)

    submitted = spans["archrepair-gateway", "POST /v1/jobs"]
    assert submitted.parent_span_id.hex() == CLIENT_SPAN
    attempt = spans["archrepair-worker", "job"]
    assert attempt.parent_span_id == submitted.span_id
    stages = [spans["archrepair-worker", name] for name in ("fetching", "ingesting", "packaging", "storing")]
    assert {stage.parent_span_id for stage in stages} == {attempt.span_id}
    assert [stage.start_time_unix_nano for stage in stages] == sorted(stage.start_time_unix_nano for stage in stages)
    assert attempt.start_time_unix_nano == stages[0].start_time_unix_nano
    assert attempt.end_time_unix_nano == stages[-1].end_time_unix_nano
    assert {item.key: item.value.string_value for item in attempt.attributes}["archrepair.job_id"] == job_id

    check_counts(told)
    check_logs(job_id, tmp_path / "gateway.log", tmp_path / "worker.log")


def check_counts(told):
    """The job ran in the pool process; the main process tells of it, and of the database."""
    found = {}
    for family in text_string_to_metric_families(told):
        for sample in family.samples:
            found[(sample.name, *(value for _, value in sorted(sample.labels.items())))] = sample.value
    assert found["archrepair_attempts_total", "succeeded", "repair"] == 1
    assert found["archrepair_job_seconds_count", "succeeded", "repair"] == 1
    assert found["archrepair_job_phase_seconds_count", "repair", "ingesting"] == 1
    assert found["archrepair_job_phase_seconds_count", "repair", "storing"] == 1
    assert found["archrepair_workers", "cpu"] == 1
    assert found["archrepair_database_up",] == 1


def check_logs(job_id, gateway_log, worker_log):
    of_gateway, of_worker = lines_of(gateway_log), lines_of(worker_log)
    submitted = next(line for line in of_gateway if line.get("method") == "POST")
    assert submitted["trace_id"] == TRACE
    assert submitted["request_id"].startswith("req_")
    started = next(line for line in of_worker if line["event"] == "job started")
    assert (started["job_id"], started["attempt"], started["trace_id"]) == (job_id, 1, TRACE)
    assert any("ready" in line["event"] for line in of_worker), "Celery's own lines"
    for line in of_gateway + of_worker:
        assert line["level"], line
        assert line["timestamp"], line
    for secret in (PASSWORD, "k" * 40):
        assert secret not in gateway_log.read_text()
        assert secret not in worker_log.read_text()


@pytest.mark.slow
def test_without_a_collector_nothing_of_it_is_imported(tmp_path):
    code = (
        "import sys; import app.main, worker.celery_app, worker.tasks; from app.shared.settings import Settings\n"
        "app.main.create_app(Settings()); from app.shared.telemetry import current_traceparent\n"
        "assert current_traceparent() is None\n"
        f"print([name for name in sys.modules if name.startswith({TRACING!r})])"
    )
    env = {**os.environ, "ARCHREPAIR_STATE_DIR": str(tmp_path), "OTEL_EXPORTER_OTLP_ENDPOINT": ""}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
