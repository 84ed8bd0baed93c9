import socket
import time
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

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


def test_the_system_shows_queue_and_workers(gateway, submit, finish):
    finish(submit()["id"])
    submit()
    body = gateway.client.get("/v1/system").json()
    assert body["queue"]["queued"] >= 1
    assert body["queue"]["oldest_queued_at"] is not None
    assert {"name": "test-worker", "busy": False} in [
        {name: worker[name] for name in ("name", "busy")} for worker in body["workers"]
    ]


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
