"""Secrets that can be recognised go through the service by every way there is; then they are looked for everywhere."""

import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import select

from app.shared.db import make_engine
from app.shared.secret import service_secret
from app.shared.settings import Settings
from app.shared.tables import Base
from archrepair_client.processes import Child, Program
from tests.servers import environment_of, free_port

WORKER = Path(__file__).parents[1] / "worker" / "worker_with_double.py"
WRONG = "ar_0badc0de_WRONG-SECRET-7f3a91"
HOOK, ROTATE = {"Idempotency-Key": "make a hook"}, {"Idempotency-Key": "rotate its secret"}
ELSEWHERE = "SECRET-IN-THE-WRONG-PLACE-55d0c1"


def secret_of(key: str) -> str:
    return key.split("_", 2)[2]


def use(client: httpx.Client, submission) -> tuple[set[str], list[httpx.Response]]:
    """Make, use and misuse keys, submit, fail. Gives the secrets of this, and every refusal."""
    once = {"Idempotency-Key": "make a key"}
    made = client.post("/v1/api-keys", json={"name": "ci", "scopes": ["jobs:read"]}, headers=once).json()
    client.post("/v1/api-keys", json={"name": "ci", "scopes": ["jobs:read"]}, headers=once)
    revoked = client.post("/v1/api-keys", json={"name": "old", "scopes": ["jobs:read"]}).json()
    client.delete(f"/v1/api-keys/{revoked['id']}")
    hook = client.post("/v1/webhook-endpoints", json={"url": "https://127.0.0.1/hook"}, headers=HOOK).json()
    rotated = client.post(f"/v1/webhook-endpoints/{hook['id']}/rotate-secret", headers=ROTATE).json()
    of_jobs = client.post("/v1/webhook-endpoints/job-secret").json()
    signing = {answer["secret"].removeprefix("whsec_") for answer in (hook, rotated, of_jobs)}
    new, old, wrong = ({"Authorization": f"Bearer {key}"} for key in (made["key"], revoked["key"], WRONG))
    refusals = [
        client.post("/v1/jobs", files=submission(), headers=new),
        client.get("/v1/jobs", headers=old),
        client.get("/v1/jobs", headers=wrong),
        client.post("/v1/jobs", files=submission(), headers=wrong),
        client.get("/v1/jobs", headers={"Authorization": f"Basic {ELSEWHERE}"}),
        client.get("/v1/jobs", params={"limit": 0, "api_key": ELSEWHERE}),
        client.get("/v1/jobs", params={"status": ELSEWHERE + "!", "token": ELSEWHERE}),
        client.post("/v1/api-keys", json={"name": "x", "scopes": ["jobs:read"], "key": ELSEWHERE}),
        client.post("/v1/jobs", files=submission({"token": ELSEWHERE})),
        client.post("/v1/jobs", content=ELSEWHERE.encode(), headers={"Content-Type": "application/json"}),
        client.post("/v1/jobs", content=b"x", headers={"Content-Type": "text/plain", "X-Api-Key": ELSEWHERE}),
    ]
    assert {answer.status_code // 100 for answer in refusals} == {4}
    return signing | {secret_of(made["key"]), secret_of(revoked["key"]), secret_of(WRONG), ELSEWHERE}, refusals


def run_a_job_that_fails(client: httpx.Client, settings: Settings, log: Path, submission, eventually) -> httpx.Response:
    """With a real worker around an engine double; gives the answer that has the error."""
    files = submission(model=b"PK\x03\x04model", repair=b"behave:refuse")
    job = client.post("/v1/jobs", files=files).json()
    command = (sys.executable, "-P", str(WORKER))
    worker = Child(Program("worker", command, os.environ | environment_of(settings), stop_seconds=8), log)
    try:
        eventually(lambda: client.get(f"/v1/jobs/{job['id']}").json()["done"], seconds=60)
    finally:
        worker.stop(lambda: True)
    answer = client.get(f"/v1/jobs/{job['id']}")
    assert answer.json()["status"] == "failed"
    return answer


def everything_in(settings: Settings) -> str:
    """Every row of every table."""
    engine = make_engine(settings.database_url)
    with engine.connect() as connection:
        rows = [repr(row) for table in Base.metadata.sorted_tables for row in connection.execute(select(table))]
    engine.dispose()
    assert len(rows) > 5
    return "\n".join(rows)


def passwords_of(settings: Settings) -> set[str]:
    urls = (settings.database_url, settings.broker_url or "")
    found = {password for url in urls if (password := urlsplit(url).password)}
    return found | {value for name, value in os.environ.items() if name == "AWS_SECRET_ACCESS_KEY"}


def test_no_secret_is_in_a_log_an_error_or_the_database(settings, start_gateway, submission, eventually, tmp_path):
    logs = {name: tmp_path / f"{name}.log" for name in ("gateway", "worker")}
    settings = settings.model_copy(update={"egress_allow": ("127.0.0.1",)})
    with start_gateway(settings) as gateway:
        secrets, refusals = use(gateway.client, submission)
        refusals.append(run_a_job_that_fails(gateway.client, settings, logs["worker"], submission, eventually))
        job_id = refusals[-1].json()["id"]
        refusals += [gateway.client.get(f"/v1/jobs/{job_id}/{part}") for part in ("logs", "events", "model")]
    secrets |= {secret_of(gateway.key)} | passwords_of(settings) | {service_secret(settings).decode()}
    assert len(secrets) >= 10
    places = {f"refusal {number}": answer.text for number, answer in enumerate(refusals)}
    places |= {name: log.read_text() for name, log in logs.items()} | {"database": everything_in(settings)}
    assert all(places.values())
    assert [(name, secret) for name, text in places.items() for secret in secrets if secret in text] == []
    # What was looked for could have been found: the database has what is no secret.
    assert "make a key" in places["database"]
    assert '"status": 401' in places["gateway"]


@pytest.mark.slow
@pytest.mark.parametrize("program", ["app.prepare", "app.projects", "worker.celery_app"])
def test_servers_that_are_not_there_are_named_without_their_passwords(program, tmp_path):
    port = free_port()
    environment = os.environ | {
        "ARCHREPAIR_STATE_DIR": str(tmp_path),
        "ARCHREPAIR_DATABASE_URL": f"postgresql+psycopg://archrepair:PASSWORD-1@127.0.0.1:{port}/archrepair",
        "ARCHREPAIR_BROKER_URL": f"redis://:PASSWORD-2@127.0.0.1:{port}/0",
        "ARCHREPAIR_STORE_URL": (tmp_path / "objects").as_uri(),
        "ARCHREPAIR_SECRET_KEY": "PASSWORD-3" * 4,
    }
    words = ["list"] if program == "app.projects" else []
    try:
        done = subprocess.run([sys.executable, "-m", program, *words], env=environment, capture_output=True, timeout=12)
        said = (done.stdout + done.stderr).decode()
        assert done.returncode != 0
    except subprocess.TimeoutExpired as stopped:  # a worker goes on trying
        said = ((stopped.stdout or b"") + (stopped.stderr or b"")).decode()
    assert str(port) in said
    assert "PASSWORD-" not in said


def test_settings_show_no_password(settings, monkeypatch):
    full = settings.model_copy(
        update={"database_url": "postgresql+psycopg://u:PASSWORD-1@h/d", "broker_url": "redis://:PASSWORD-2@h/0"}
    )
    assert "PASSWORD-" not in repr(full) + str(full) + f"{full}"
    for name in ("STATE_DIR", "BROKER_URL", "STORE_URL"):
        monkeypatch.delenv(f"ARCHREPAIR_{name}", raising=False)
    monkeypatch.setenv("ARCHREPAIR_DATABASE_URL", full.database_url)
    half_configured = refusal_of_settings()
    monkeypatch.setenv("ARCHREPAIR_BROKER_URL", full.broker_url)
    monkeypatch.setenv("ARCHREPAIR_STORE_URL", "file:///x")
    monkeypatch.setenv("ARCHREPAIR_PORT", "70000")
    assert "PASSWORD-" not in half_configured + refusal_of_settings()


def refusal_of_settings() -> str:
    with pytest.raises(ValueError) as caught:
        Settings()
    return "".join(traceback.format_exception(caught.value))


def test_the_log_of_a_gateway_is_json_all_through(gateway, submit):
    submit()
    lines = (gateway.settings.state_dir.parent / "gateway.log").read_text().splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)
