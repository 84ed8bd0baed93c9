"""The log of a job over HTTP: in every state, as text and as NDJSON, never taken for an event."""

import json
import re

import pytest

from app.shared.claims import claim_job
from app.shared.joblog import record_log
from app.shared.jobs import finish_job, record_progress
from app.shared.tables import Job

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture
def running(gateway_sessions):
    """Claims the job as a worker does."""

    def claim(job_id):
        with gateway_sessions.begin() as session:
            session.get_one(Job, job_id).priority = 100
        with gateway_sessions.begin() as session:
            claim = claim_job(session, owner="test-worker", lease_seconds=600)
        assert claim.job_id == job_id
        return claim

    return claim


@pytest.fixture
def logged(submit, running, gateway_sessions):
    """A running job with a phase and three lines of its engine."""
    job_id = submit()["id"]
    claim = running(job_id)
    with gateway_sessions.begin() as session:
        record_progress(session, claim, phase="baseline", progress={"percent": 12.5, "message": "half\nof it"})
        record_log(session, claim, b"one\n\x1b[2Jtwo\r\n", start=0)
        record_log(session, claim, "drei ✓\n".encode(), start=100)
    return claim


def lines_of(gateway, job_id, **query):
    return gateway.client.get(f"/v1/jobs/{job_id}/logs", params=query).text.splitlines()


def test_a_log_as_text_says_when_which_attempt_and_who(gateway, logged):
    answer = gateway.client.get(f"/v1/jobs/{logged.job_id}/logs")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    lines = answer.text.splitlines()
    assert all(re.match(rf"{TIME} #[01] (service|engine ) ", line) for line in lines), lines
    assert [line.partition(" ")[2] for line in lines] == [
        "#0 service job.created",
        "#1 service job.started",
        "#1 service job.phase phase=baseline",
        "#1 service baseline 12.5 %: half\ufffdof it",
        "#1 engine  one",
        "#1 engine  \ufffd[2Jtwo",
        "#1 service 87 bytes of the engine's log are left out here",
        "#1 engine  drei ✓",
    ]


@pytest.mark.parametrize("asked", [{"params": {"format": "ndjson"}}, {"headers": {"Accept": "application/x-ndjson"}}])
def test_a_log_as_ndjson_has_an_object_a_line(gateway, logged, asked):
    answer = gateway.client.get(f"/v1/jobs/{logged.job_id}/logs", **asked)
    assert answer.headers["content-type"] == "application/x-ndjson"
    first, *_, last = map(json.loads, answer.text.splitlines())
    assert first == {"object": "log_line", "seq": first["seq"], "at": first["at"], "attempt": None,
                     "source": "service", "text": "job.created"}  # fmt: skip
    assert (last["attempt"], last["source"], last["text"]) == (1, "engine", "drei ✓")


def test_a_log_is_read_from_its_end_and_by_attempt(gateway, logged):
    lines = lines_of(gateway, logged.job_id)
    assert lines_of(gateway, logged.job_id, tail=1) == lines[-1:]
    assert lines_of(gateway, logged.job_id, tail=4) == lines[-4:]
    assert lines_of(gateway, logged.job_id, attempt=1) == lines[1:]
    assert lines_of(gateway, logged.job_id, attempt=2) == []


def test_a_log_is_read_on_from_where_it_was(gateway, logged, gateway_sessions):
    lines = lines_of(gateway, logged.job_id)
    seqs = [json.loads(line)["seq"] for line in lines_of(gateway, logged.job_id, format="ndjson")]
    assert seqs == sorted(seqs)
    assert seqs[4] == seqs[5], "lines of one row come together"
    assert lines_of(gateway, logged.job_id, after=seqs[3])[:2] == lines[4:6]
    assert lines_of(gateway, logged.job_id, after=seqs[-1]) == []
    with gateway_sessions.begin() as session:
        record_log(session, logged, b"four\n", start=109)
    assert [line.split()[-1] for line in lines_of(gateway, logged.job_id, after=seqs[-1])] == ["four"]


def test_a_log_is_no_event_and_wakes_nobody(gateway, logged, gateway_sessions):
    path = f"/v1/jobs/{logged.job_id}"
    etag = gateway.client.get(path).headers["etag"]
    with gateway_sessions.begin() as session:
        record_log(session, logged, b"four\n", start=109)
    assert gateway.client.get(path, headers={"If-None-Match": etag}).status_code == 304
    types = {event["type"] for event in gateway.client.get(f"{path}/events").json()["data"]}
    assert types == {"job.created", "job.started", "job.phase", "job.progress"}


@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_there_is_a_log_in_every_state(gateway, logged, gateway_sessions, status):
    with gateway_sessions.begin() as session:
        error = {"code": "model.frozen_graph", "detail": "frozen", "category": "user"} if status == "failed" else None
        assert finish_job(session, logged, status=status, error=error, cause=status)
    *_, engine, last = lines_of(gateway, logged.job_id)
    assert engine.endswith("drei ✓")
    assert f"job.{status}" in last
    assert ("code=model.frozen_graph" in last) is (status == "failed")


def test_a_waiting_job_has_a_log_and_a_job_of_before_live_logs_has_its_file(gateway, submit, finish):
    job_id = submit()["id"]
    assert [line.split()[-1] for line in lines_of(gateway, job_id)] == ["job.created"]
    finish(job_id, files=[("engine.log", "log", b"".join(b"line %d\n" % number for number in range(20_000)))])
    assert [line.partition(" ")[2] for line in lines_of(gateway, job_id, tail=2)] == [
        "#1 engine  line 19998", "#1 engine  line 19999"]  # fmt: skip
    assert len(lines_of(gateway, job_id, tail=9000)) == 9000
    assert len(lines_of(gateway, job_id)) == 1000


def test_a_log_in_a_format_there_is_not_is_refused(gateway, submit):
    path = f"/v1/jobs/{submit()['id']}/logs"
    refused = gateway.client.get(path, headers={"Accept": "image/png"})
    assert (refused.status_code, refused.json()["code"]) == (406, "request.not_acceptable")
    assert gateway.client.get(path, params={"format": "xml"}).status_code == 422
    assert gateway.client.get(path, params={"tail": 10_001}).status_code == 422
    assert gateway.client.get(path, headers={"Accept": "text/html, */*;q=0.1"}).status_code == 200
