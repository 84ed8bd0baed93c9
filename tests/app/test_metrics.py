"""What Prometheus is told, by a real gateway and read back with Prometheus' own parser."""

import re
import shutil

import httpx
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import update

from app.shared.claims import claim_job
from app.shared.db import db_now
from app.shared.gauges import DatabaseGauges, DiskGauges
from app.shared.jobs import submit_job
from app.shared.metrics import MOST_CODES, count_engine_failure, registry_with
from app.shared.outbox import relay_outbox
from app.shared.reaping import reap_expired
from app.shared.tables import Job, OutboxMessage

IDENTIFIER = re.compile(r"[a-z]{2,4}_[0-9A-Z]{26}|ar_|127\.0\.0\.1")


def told_with(database):
    return generate_latest(registry_with(database))


def samples(text):
    """{(name, label values in the order of their names): value}"""
    families = text_string_to_metric_families(text if isinstance(text, str) else text.decode())
    found = [sample for family in families for sample in family.samples]
    return {(sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value for sample in found}


def test_requests_are_counted_by_template_and_nothing_tells_whose_they_are(gateway, submit):
    def told():
        answer = httpx.get(gateway.url + "/metrics")
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
        assert not IDENTIFIER.search(answer.text)
        return samples(answer.text)

    before = told()
    job_id = submit()["id"]
    for path in (f"/jobs/{job_id}", f"/v1/jobs/{job_id}", f"/nothing/{job_id}"):
        gateway.client.get(path)
    httpx.get(gateway.url + "/v1/jobs")
    after = told()

    def grown(*key):
        return after.get(key, 0) - before.get(key, 0)

    assert grown("archrepair_http_requests_total", "GET", "/jobs/{job_id}", "200") == 2
    assert grown("archrepair_http_requests_total", "POST", "/jobs", "202") == 1
    assert grown("archrepair_http_requests_total", "GET", "other", "404") == 1
    assert grown("archrepair_http_request_seconds_count", "GET", "/jobs/{job_id}") == 2
    assert grown("archrepair_problems_total", "auth.missing_key") == 1
    assert grown("archrepair_upload_received_bytes_total") > 10_000
    assert after["archrepair_uploads_in_flight",] == 0
    assert after["archrepair_database_up",] == 1


def test_methods_somebody_invents_are_one(gateway):
    httpx.request("BREW", gateway.url + "/v1/jobs")
    told = samples(httpx.get(gateway.url + "/metrics").text)
    assert not [key for key in told if "BREW" in key]
    assert [key for key in told if key[:2] == ("archrepair_http_requests_total", "other")]


def test_a_token_closes_the_metrics(embedded, tmp_path, in_process_gateway):
    settings = embedded.fresh(tmp_path / "state", metrics_token="t" * 16)
    with in_process_gateway(settings) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer ümlaut".encode("latin-1")}):
            answer = client.get("/metrics", headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "auth.invalid_key")
        assert client.get("/metrics", headers={"Authorization": "Bearer " + "t" * 16}).status_code == 200


@pytest.fixture
def gauges(sessions):
    """Reads without keeping, as after some seconds."""
    return lambda: samples(told_with(DatabaseGauges(sessions)))


def test_age_and_depth_of_queues_and_outbox_are_read_from_the_database(sessions, project_id, model_id, gauges):
    empty = gauges()
    assert empty["archrepair_queue_jobs", "cpu"] == empty["archrepair_queue_oldest_seconds", "cpu"] == 0
    assert empty["archrepair_outbox_unsent",] == empty["archrepair_webhooks_due",] == 0
    with sessions.begin() as session:
        for _ in range(2):
            submit_job(session, project_id=project_id, spec={}, kind="repair", model_id=model_id)
        session.execute(update(Job).values(created_at=db_now() - 100))
        session.execute(update(OutboxMessage).values(created_at=db_now() - 50))
    waiting = gauges()
    assert waiting["archrepair_queue_jobs", "cpu"] == 2
    assert waiting["archrepair_queue_jobs", "gpu"] == 0
    assert 100 <= waiting["archrepair_queue_oldest_seconds", "cpu"] < 130
    assert waiting["archrepair_jobs", "repair", "cpu", "queued"] == 2
    assert waiting["archrepair_outbox_unsent",] == 2
    assert 50 <= waiting["archrepair_outbox_oldest_seconds",] < 80
    with sessions() as session:
        relay_outbox(session, lambda: None)
        session.commit()
    assert gauges()["archrepair_outbox_oldest_seconds",] == 0


def test_a_lease_that_nobody_takes_back_grows_older(sessions, project_id, model_id, gauges):
    with sessions.begin() as session:
        submit_job(session, project_id=project_id, spec={}, kind="repair", model_id=model_id)
        assert claim_job(session, owner="lost", lease_seconds=600) is not None
    assert gauges()["archrepair_lease_overdue_seconds",] == 0
    with sessions.begin() as session:
        session.execute(update(Job).values(lease_until=db_now() - 70))
    assert 70 <= gauges()["archrepair_lease_overdue_seconds",] < 100
    with sessions.begin() as session:
        assert reap_expired(session)
    assert gauges()["archrepair_lease_overdue_seconds",] == 0


def test_free_disk_is_told_of_directories_that_are_not_there_yet_too(tmp_path):
    told = samples(told_with(DiskGauges({"scratch": tmp_path / "not" / "yet"})))
    assert told["archrepair_free_bytes", "scratch"] == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)


def test_asked_often_the_database_is_asked_once(sessions, project_id, model_id):
    gauges = DatabaseGauges(sessions)
    assert samples(told_with(gauges))["archrepair_queue_jobs", "cpu"] == 0
    with sessions.begin() as session:
        submit_job(session, project_id=project_id, spec={}, kind="repair", model_id=model_id)
    assert samples(told_with(gauges))["archrepair_queue_jobs", "cpu"] == 0


def test_without_a_database_the_rest_is_still_told(embedded, tmp_path, in_process_gateway):
    with in_process_gateway(embedded.fresh(tmp_path / "state")) as client:
        for file in (tmp_path / "state").glob("archrepair.db*"):
            file.unlink()
        (tmp_path / "state" / "archrepair.db").write_bytes(b"this is not a database" * 1000)
        client.app.state.gateway.readers.kw["bind"].dispose()
        told = samples(client.get("/metrics").text)
    assert told["archrepair_database_up",] == 0
    assert ("archrepair_queue_jobs", "cpu") not in told
    assert ("archrepair_lease_losses_total",) in told


def test_an_engine_cannot_make_up_labels_without_end():
    for number in range(MOST_CODES + 50):
        count_engine_failure("made up", f"model.nonsense_{number}")

    class Nothing:
        def collect(self):
            return []

    told = samples(told_with(Nothing()))
    codes = [key for key in told if key[0] == "archrepair_engine_failures_total"]
    assert len(codes) <= MOST_CODES + 1
    assert told["archrepair_engine_failures_total", "platform", "other"] >= 50
