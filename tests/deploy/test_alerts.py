"""deploy/prometheus: what alerts ask for is told by a real gateway and a real worker, and each has its runbook."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from archrepair_client.processes import Child, Program
from tests.servers import environment_of, free_port

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "deploy/prometheus"
GROUPS = yaml.safe_load((DIRECTORY / "alerts.yml").read_text())["groups"]
ALERTS = [rule for group in GROUPS for rule in group["rules"]]
RUNBOOKS = (ROOT / "docs/operation.md").read_text()
WORKER = ROOT / "tests/worker/worker_with_double.py"
# Prometheus makes it itself, of every target.
OF_PROMETHEUS = {"up"}
# A gateway has no such processes and directories; on a server's store it has no disk of its own.
OF_WORKERS_ALONE = {"archrepair_free_bytes"}
OF_GATEWAYS_ALONE = {"archrepair_http_requests_total", "archrepair_http_request_seconds_bucket",
                     "archrepair_problems_total", "archrepair_rate_limit_outages_total"}  # fmt: skip
# Labels that only exist once something has been counted, with a value each that alerts ask for.
DURATION = re.compile(r"\d+[smhd]")


@pytest.fixture(scope="module")
def promql() -> Any:
    """Prometheus' own grammar, as a library."""
    return pytest.importorskip("promql_parser", reason="pip install -c constraints.txt 'archrepair[dev]'")


def names_of(alert: dict[str, Any]) -> set[str]:
    """The series an expression asks for."""
    return set(re.findall(r"\barchrepair_\w+|\bup\b", alert["expr"]))


def test_expressions_are_those_of_prometheus_and_ask_for_the_names_read_from_them(promql):
    for alert in ALERTS:
        expression = promql.parse(alert["expr"])
        assert set(selected(promql, expression)) == names_of(alert), alert["alert"]


def selected(promql: Any, expression: Any) -> Iterator[str]:
    """Names in every selector of the tree."""
    if isinstance(expression, promql.VectorSelector):
        yield expression.name
    for part in ("lhs", "rhs", "expr", "vector_selector"):
        if (inner := getattr(expression, part, None)) is not None:
            yield from selected(promql, inner)
    for argument in getattr(expression, "args", None) or ():
        yield from selected(promql, argument)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_has_all_that_whoever_it_wakes_needs(alert):
    assert set(alert) == {"alert", "expr", "for", "labels", "annotations"}
    assert DURATION.fullmatch(alert["for"])
    assert alert["labels"]["severity"] in ("warning", "critical")
    assert set(alert["annotations"]) == {"summary", "runbook"}
    page, _, section = alert["annotations"]["runbook"].partition("#")
    assert (page, section) == ("docs/operation.md", alert["alert"].lower())
    runbook = re.search(rf"^#### {alert['alert']}\n(.+?)(?=^#)", RUNBOOKS, re.MULTILINE | re.DOTALL)
    assert runbook, "it has no runbook"
    for word in ("*Means:*", "*Look:*", "*Do:*"):
        assert word in runbook[1], word


def test_alerts_and_runbooks_are_the_same_and_once():
    names = [alert["alert"] for alert in ALERTS]
    assert sorted(set(names)) == sorted(names)
    assert re.findall(r"^#### (ArchRepair\w+)$", RUNBOOKS, re.MULTILINE) == names


def series_in(text: str) -> set[str]:
    return {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}


def families_in(text: str) -> set[str]:
    """Series that are or may come: a counter with labels has none until it counts."""
    kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    return {name + ("_bucket" if kind == "histogram" else "") for name, kind in kinds.items()}


@pytest.fixture
def told(stack, tmp_path, start_gateway, submission, eventually, monkeypatch) -> tuple[str, str]:
    """What a gateway and a worker tell after one job that could tell its webhook nothing."""
    settings = stack.fresh(tmp_path / "state", metrics_port=free_port(), egress_allow=("127.0.0.1",))
    for name, value in environment_of(settings).items():
        monkeypatch.setenv(name, value)
    worker = Child(Program("worker", (sys.executable, "-P", str(WORKER)), dict(os.environ), stop_seconds=8),
                   tmp_path / "worker.log")  # fmt: skip
    try:
        with start_gateway(settings) as gateway:
            spec = {"datasets": {"repair": "upload:repair"}, "seed": 200,
                    "webhook": {"url": f"http://127.0.0.1:{free_port()}/hook"}}  # fmt: skip
            job_id = gateway.client.post("/v1/jobs", files=submission(spec)).json()["id"]
            gateway.client.get("/v1/jobs")
            assert gateway.client.get(f"/v1/jobs/{job_id}?wait=60").json()["done"]
            of_worker = httpx.get(f"http://127.0.0.1:{settings.metrics_port}/metrics", timeout=30).text
            return httpx.get(f"{gateway.url}/metrics", timeout=30).text, of_worker
    finally:
        worker.stop(lambda: False)


@pytest.mark.slow
def test_what_alerts_ask_for_is_told_by_gateway_and_worker(told):
    of_gateway, of_worker = told
    asked = set().union(*map(names_of, ALERTS)) - OF_PROMETHEUS
    assert asked - OF_WORKERS_ALONE <= families_in(of_gateway)
    # Of a worker the series themselves: the growth of one that is not there yet is not seen.
    assert asked - OF_GATEWAYS_ALONE <= series_in(of_worker)
    assert {"archrepair_http_requests_total", "archrepair_rate_limit_outages_total"} <= series_in(of_gateway)
    assert "archrepair_free_bytes" in series_in(of_worker)
    for label in ('category="platform"', 'result="unreachable"', 'place="scratch"'):
        assert label in of_worker


def test_prometheus_finds_the_rules_and_the_ports_of_compose():
    config = yaml.safe_load((DIRECTORY / "prometheus.yml").read_text())
    assert [(DIRECTORY / name).is_file() for name in config["rule_files"]] == [True]
    jobs = {job["job_name"]: job["dns_sd_configs"][0] for job in config["scrape_configs"]}
    compose = (ROOT / "docker-compose.yml").read_text()
    assert jobs["archrepair-gateway"] == {"names": ["gateway"], "type": "A", "port": 8000}
    assert jobs["archrepair-worker"]["port"] == int(re.findall(r"ARCHREPAIR_METRICS_PORT:-(\d+)", compose)[0])
    for job in jobs.values():
        for service in job["names"]:
            assert re.search(rf"^  {service}:$", compose, re.MULTILINE)
