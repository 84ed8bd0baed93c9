import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import update

from app.shared.claims import claim_job
from app.shared.db import db_now
from app.shared.jobs import finish_job
from app.shared.tables import Job, WorkerRow
from app.shared.workers import Worker, forget_worker, note_draining, note_worker

OPEN = ("/healthz", "/readyz", "/openapi.json", "/docs", "/v1/healthz")


def test_probes_and_documents_need_no_key(gateway):
    for path in OPEN:
        assert httpx.get(gateway.url + path).status_code == 200, path
    assert httpx.get(gateway.url + "/readyz").json() == {
        "status": "ready",
        "checks": {"database": "ok", "broker": "ok", "store": "ok"},
    }


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "auth.missing_key"),
        ("Basic YTpi", "auth.missing_key"),
        ("Bearer nonsense", "auth.invalid_key"),
        ("Bearer ar_00000000_x", "auth.invalid_key"),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("GET", "/system")])
def test_everything_else_does(gateway, method, path, header, code):
    answer = httpx.request(method, gateway.url + path, headers={"Authorization": header} if header else {})
    assert (answer.status_code, answer.json()["code"]) == (401, code)
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_key_with_the_right_prefix_but_another_secret_is_refused(gateway):
    answer = httpx.get(gateway.url + "/v1/jobs", headers={"Authorization": f"Bearer {gateway.key[:-2]}xx"})
    assert answer.json()["code"] == "auth.invalid_key"


def test_a_read_only_key_cannot_submit(gateway, read_only_key, submission):
    headers = {"Authorization": f"Bearer {read_only_key}"}
    assert httpx.get(gateway.url + "/v1/jobs", headers=headers).status_code == 200
    answer = httpx.post(gateway.url + "/v1/jobs", headers=headers, files=submission())
    assert (answer.status_code, answer.json()["code"]) == (403, "auth.missing_scope")
    assert "jobs:write" in answer.json()["detail"]


def test_the_system_shows_queues_and_what_each_worker_does(gateway, gateway_sessions, submit, stranger_key):
    job_id = submit()["id"]
    worker = Worker("box:1:A", ("cpu",), "cpu", "0.1")
    with gateway_sessions.begin() as session:
        session.get_one(Job, job_id).priority = 200
        note_worker(session, worker)
        note_worker(session, Worker("box:2:B", ("gpu", "cpu"), "NVIDIA T4", "0.1"))
        note_worker(session, Worker("box:3:C", ("cpu",), "cpu", "0.1"))
        note_draining(session, "box:3:C")
        session.execute(update(WorkerRow).where(WorkerRow.name == "box:2:B").values(seen_at=db_now() - 120))
    with gateway_sessions.begin() as session:
        held = claim_job(session, owner="box:1:A/x", lease_seconds=600)

    body = gateway.client.get("/v1/system").json()
    seen = {row["name"]: row for row in body["workers"]}
    assert held.job_id == job_id
    assert (seen["box:1:A"]["state"], seen["box:1:A"]["job_id"]) == ("busy", job_id)
    assert (seen["box:2:B"]["state"], seen["box:2:B"]["device"]) == ("silent", "NVIDIA T4")
    assert seen["box:3:C"]["state"] == "draining"
    queues = {row["name"]: row for row in body["queues"]}
    assert queues["cpu"]["workers"] == 1
    assert queues["cpu"]["running"] >= 1
    assert (queues["gpu"]["workers"], queues["gpu"]["expected_wait_seconds"]) == (0, None)
    other = httpx.get(gateway.url + "/v1/system", headers={"Authorization": f"Bearer {stranger_key}"}).json()
    assert {row["name"]: row["job_id"] for row in other["workers"]}["box:1:A"] is None, "whose job it is, is private"
    with gateway_sessions.begin() as session:
        assert finish_job(session, held, status="cancelled", cause="cancelled")
        for name in seen:
            forget_worker(session, name)


@pytest.mark.slow
def test_a_gateway_that_is_told_to_stop_is_unready_and_ends_long_polls(stack, tmp_path, start_gateway, submission):
    with start_gateway(stack.fresh(tmp_path / "state", drain_seconds=1.5)) as running:
        job_id = running.client.post("/v1/jobs", files=submission()).json()["id"]
        assert running.client.get("/readyz").status_code == 200
        threading.Timer(0.3, running.process.send_signal, (signal.SIGTERM,)).start()
        asked_at = time.monotonic()
        assert running.client.get(f"/v1/jobs/{job_id}?wait=30").json()["status"] == "queued"
        assert time.monotonic() - asked_at < 2
        ready = httpx.get(running.url + "/readyz")
        assert (ready.status_code, ready.json()["checks"]["gateway"]) == (503, "stopping")
        running.process.wait(10)


def test_without_a_broker_jobs_are_still_taken_in(stack, tmp_path: Path, submission, in_process_gateway):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    settings = stack.fresh(tmp_path / "state", broker_url=f"redis://127.0.0.1:{port}/0")
    with in_process_gateway(settings) as client:
        started = time.monotonic()
        assert client.post("/v1/jobs", files=submission()).status_code == 202
        assert time.monotonic() - started < 5
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["database"]) == (503, "ok")
        assert ready.json()["checks"]["broker"].startswith("failed")
        assert client.get("/healthz").status_code == 200


def test_without_a_database_or_store_the_gateway_is_not_ready(embedded, tmp_path: Path, in_process_gateway):
    state_dir = tmp_path / "state"
    with in_process_gateway(embedded.fresh(state_dir)) as client:
        client: TestClient
        for file in state_dir.glob("archrepair.db*"):
            file.unlink()
        (state_dir / "archrepair.db").write_bytes(b"this is not a database, only a file of that name" * 100)
        client.app.state.gateway.readers.kw["bind"].dispose()
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["broker"]) == (503, "ok")
        assert ready.json()["checks"]["database"].startswith("failed")
