"""Backup and restore as docs/operation.md has them: the database first, then the objects."""

import os
import sqlite3
import subprocess
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

import obstore
import pytest
from sqlalchemy.engine import make_url

from app.shared.claims import claim_job
from app.shared.db import make_engine, make_sessions
from app.shared.jobs import StoredArtifact, finish_job
from app.shared.settings import Settings
from app.shared.storage import artifact_key, open_store, put_file
from tests.servers import Stack, database_url, execute_alone, plain_url, postgres_binaries, stored_bytes, stored_keys

REPAIRED = b"the repaired model" * 1000


def back_up_database(settings: Settings, target: Path) -> None:
    """`pg_dump`, or SQLite's own backup: a copy of the file alone would miss what stands in the WAL."""
    if settings.database_url.startswith("sqlite"):
        source = make_url(settings.database_url).database
        assert source is not None
        with closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(target)) as copy:
            live.backup(copy)
        return
    postgres("pg_dump", "--format=custom", f"--file={target}", plain_url(settings.database_url))


def restore_database(settings: Settings, source: Path) -> None:
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        for path in settings.state_dir.glob("archrepair.db*"):
            path.unlink()
        with closing(sqlite3.connect(source)) as copy, closing(sqlite3.connect(str(url.database))) as live:
            copy.backup(live)
            live.execute("PRAGMA journal_mode=WAL")
        return
    execute_alone(database_url(settings.database_url, "postgres"), f"CREATE DATABASE {url.database}")
    postgres("pg_restore", "--exit-on-error", f"--dbname={plain_url(settings.database_url)}", source)


def postgres(name: str, *words: str | Path) -> None:
    command = [postgres_binaries() / name, *words]
    done = subprocess.run([str(word) for word in command], env={**os.environ, "LC_ALL": "C"}, capture_output=True,
                          text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr


def copy_objects(settings: Settings, target: Path) -> None:
    for key in stored_keys(settings):
        path = target / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(stored_bytes(settings, key))


def restore_objects(settings: Settings, source: Path) -> None:
    store = open_store(settings.store_url)
    for path in source.rglob("*"):
        if path.is_file():
            obstore.put(store, str(path.relative_to(source)), path)


def lose_everything(settings: Settings) -> None:
    store = open_store(settings.store_url)
    for key in stored_keys(settings):
        obstore.delete(store, key)
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        Path(str(url.database)).unlink()
    else:
        execute_alone(database_url(settings.database_url, "postgres"), f"DROP DATABASE {url.database} WITH (FORCE)")
    assert stored_keys(settings) == []


def run_job(settings: Settings, tmp_path: Path) -> str:
    """Play the worker for the next job in the queue; its id."""
    engine = make_engine(settings.database_url)
    sessions, store = make_sessions(engine), open_store(settings.store_url)
    with sessions.begin() as session:
        claim = claim_job(session, owner="w", lease_seconds=60)
    assert claim is not None
    assert stored_bytes(settings, claim.model_storage_key).startswith(b"PK")
    path = tmp_path / "repaired.pt"
    path.write_bytes(REPAIRED)
    kept = put_file(store, artifact_key(claim.job_id, claim.attempt, path.name), path)
    artifact = StoredArtifact(path.name, "model", "application/octet-stream", kept.size_bytes, kept.sha256,
                              kept.storage_key)  # fmt: skip
    with sessions.begin() as session:
        assert finish_job(session, claim, status="succeeded", artifacts=[artifact], cause="succeeded")
    engine.dispose()
    return claim.job_id


def seen_by_the_customer(client: Any, job_id: str) -> tuple[Any, ...]:
    job = client.get(f"/v1/jobs/{job_id}").json()
    download = client.get(f"/v1/jobs/{job_id}/model")
    events = client.get(f"/v1/jobs/{job_id}/events").json()["data"]
    return job, download.status_code, sha256(download.content).hexdigest(), download.headers["etag"], events


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    (tmp_path / "backup" / "objects").mkdir(parents=True)
    return tmp_path / "backup"


@pytest.mark.slow
def test_all_is_there_again_and_what_waited_runs_on(
    stack: Stack, tmp_path: Path, backup: Path, start_gateway, submission
):
    settings = stack.fresh(tmp_path / "state")
    with start_gateway(settings) as gateway:
        done = gateway.client.post("/v1/jobs", files=submission()).json()["id"]
        assert run_job(settings, tmp_path) == done
        waiting = gateway.client.post("/v1/jobs", files=submission()).json()["id"]
        before = seen_by_the_customer(gateway.client, done)
        back_up_database(settings, backup / "database")
        copy_objects(settings, backup / "objects")
    lose_everything(settings)
    restore_database(settings, backup / "database")
    restore_objects(settings, backup / "objects")
    with start_gateway(settings) as gateway:
        assert gateway.client.get("/readyz").status_code == 200
        assert seen_by_the_customer(gateway.client, done) == before
        assert before[2] == sha256(REPAIRED).hexdigest()
        jobs = gateway.client.get("/v1/jobs").json()["data"]
        assert [(job["id"], job["status"]) for job in jobs] == [(waiting, "queued"), (done, "succeeded")]
        assert run_job(settings, tmp_path) == waiting
        assert gateway.client.get(f"/v1/jobs/{waiting}").json()["status"] == "succeeded"
