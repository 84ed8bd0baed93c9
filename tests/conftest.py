"""Real servers for tests, on 127.0.0.1 and in temporary directories: broker, migrated database, store, gateway.

And who is alive of the processes they are, read from /proc, zombies not counted.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.keys import ensure_project
from app.shared.claims import claim_job
from app.shared.db import make_engine, make_sessions
from app.shared.jobs import StoredArtifact, finish_job
from app.shared.settings import Settings
from app.shared.storage import artifact_key, open_store, put_file
from app.shared.tables import Job, Model
from tests.servers import (
    Stack,
    accepts,
    die_with_parent,
    environment_of,
    free_port,
    running_broker,
    running_stack,
    stop,
    wait_until,
)

# By default on the second alone.
STACKS = (pytest.param("embedded", marks=pytest.mark.embedded), "production")
SPEC = {"datasets": {"repair": "upload:repair"}}
MODEL_BYTES = b"PK\x03\x04" + bytes(range(256)) * 40


@pytest.fixture(scope="session")
def broker_url() -> Iterator[str]:
    """A real Valkey for the whole run."""
    with running_broker() as url:
        yield url


def _start_stack(name: str, broker_url: str, factory: pytest.TempPathFactory) -> AbstractContextManager[Stack]:
    return running_stack(name, broker_url, factory.mktemp(f"{name}-template") / "state")


@pytest.fixture(scope="session", params=STACKS)
def stack(request: pytest.FixtureRequest, broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Both ways to deploy the service, one after the other: whoever asks for it runs on each."""
    with _start_stack(request.param, broker_url, tmp_path_factory) as running:
        yield running


@pytest.fixture(scope="session")
def embedded(broker_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The embedded one alone, for what is about SQLite or local files."""
    with _start_stack("embedded", broker_url, tmp_path_factory) as running:
        yield running


@pytest.fixture
def settings(stack: Stack, tmp_path: Path) -> Settings:
    """A service that was just prepared: migrated database, empty store, and a key in `api-key`."""
    return stack.fresh(tmp_path / "state")


@pytest.fixture
def sessions(settings: Settings) -> Iterator[sessionmaker[Session]]:
    """Sessions on a fresh, really migrated database that has the default project."""
    engine = make_engine(settings.database_url)
    yield make_sessions(engine)
    engine.dispose()


@pytest.fixture
def project_id(sessions: sessionmaker[Session]) -> str:
    with sessions.begin() as session:
        return ensure_project(session).id


@pytest.fixture
def model_id(sessions: sessionmaker[Session], project_id: str) -> str:
    """A registered model whose bytes nobody reads."""
    with sessions.begin() as session:
        row = Model(id="mdl_" + "0" * 26, project_id=project_id, filename="resnet18.pt", sha256="0" * 64,
                    size_bytes=4, storage_key="blobs/none")  # fmt: skip
        session.add(row)
    return row.id


@dataclass(frozen=True)
class RunningGateway:
    """A gateway process, and an HTTP client that has its key."""

    url: str
    key: str
    settings: Settings
    process: subprocess.Popen
    client: httpx.Client


def launch_gateway(settings: Settings, log: Path, app: str = "app.main:create_app") -> RunningGateway:
    port = free_port()
    environment = os.environ | environment_of(settings)
    command = [sys.executable, "-m", "uvicorn", app, "--factory", "--port", str(port)]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, env=environment, stdout=stderr, stderr=stderr, preexec_fn=die_with_parent)
    wait_until(lambda: accepts(port) or process.poll() is not None, seconds=30, what="the gateway's start")
    assert process.poll() is None, log.read_text()
    key = (settings.state_dir / "api-key").read_text().strip()
    url = f"http://127.0.0.1:{port}"
    client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30)
    return RunningGateway(url, key, settings, process, client)


@contextmanager
def _running_gateway(settings: Settings, **options: Any) -> Iterator[RunningGateway]:
    running = launch_gateway(settings, settings.state_dir.parent / "gateway.log", **options)
    yield running
    running.client.close()
    stop(running.process)


@pytest.fixture(scope="session")
def start_gateway() -> Callable[..., AbstractContextManager[RunningGateway]]:
    """Starts a gateway process on the settings of a fresh service."""
    return _running_gateway


@pytest.fixture(scope="session")
def gateway(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A real gateway under uvicorn, one per stack for the whole run: its tests must bear each other's jobs."""
    limits = {"spec_bytes": 16 * 1024, "one_shot_body_bytes": 8 * 1024 * 1024}
    with _running_gateway(stack.fresh(tmp_path_factory.mktemp("gateway") / "state", **limits)) as running:
        yield running


def _submission(spec: Any = SPEC, **files: bytes) -> list[tuple[str, tuple]]:
    raw = spec if isinstance(spec, bytes) else json.dumps(spec).encode()
    parts: list[tuple[str, tuple]] = [("spec", (None, raw, "application/json"))]
    for name, content in (files or {"model": MODEL_BYTES, "repair": b"images and labels"}).items():
        filename = "resnet18.pt" if name == "model" else f"{name}.npz"
        parts.append((name, (filename, content, "application/octet-stream")))
    return parts


@pytest.fixture(scope="session")
def submission() -> Callable[..., list[tuple[str, tuple]]]:
    """Makes the parts of `POST /jobs`, spec first; without files named, a model and a repair set."""
    return _submission


@pytest.fixture
def submit(gateway: RunningGateway) -> Callable[..., dict[str, Any]]:
    """Submits over HTTP and gives the job."""

    def submit_one(spec: Any = SPEC, **files: bytes) -> dict[str, Any]:
        answer = gateway.client.post("/v1/jobs", files=_submission(spec, **files))
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    return submit_one


@pytest.fixture
def gateway_sessions(gateway: RunningGateway) -> Iterator[sessionmaker[Session]]:
    """The gateway's database, as a worker sees it."""
    engine = make_engine(gateway.settings.database_url)
    yield make_sessions(engine)
    engine.dispose()


@pytest.fixture
def finish(gateway: RunningGateway, gateway_sessions: sessionmaker[Session], tmp_path: Path) -> Callable[..., None]:
    """Plays the worker for one job: claims it, stores `files` of (name, kind, bytes), and ends it."""
    store = open_store(gateway.settings.store_url)

    def finish_one(job_id: str, status: str = "succeeded", files: Sequence[tuple] = (), **ends: Any) -> None:
        with gateway_sessions.begin() as session:
            session.get_one(Job, job_id).priority = 100  # the next in the queue, whatever other tests left
        with gateway_sessions.begin() as session:
            claim = claim_job(session, owner="test-worker", lease_seconds=600)
        assert claim is not None
        assert claim.job_id == job_id
        stored = []
        for name, kind, content in files:
            (tmp_path / name).write_bytes(content)
            kept = put_file(store, artifact_key(job_id, claim.attempt, name), tmp_path / name)
            media_type = "application/json" if name.endswith(".json") else "application/octet-stream"
            stored.append(StoredArtifact(name, kind, media_type, kept.size_bytes, kept.sha256, kept.storage_key))
        with gateway_sessions.begin() as session:
            assert finish_job(session, claim, status=status, artifacts=stored, cause="completed", **ends)

    return finish_one


def _stat(pid):
    """(state, parent, start time) of a process, or None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], int(fields[1]), int(fields[19])


class Processes:
    """Processes are known by pid and start time, because pids come again."""

    def tree(self, pid):
        """The process and all its descendants, as {(pid, start time): command line}."""
        stats = {int(path.name): _stat(path.name) for path in Path("/proc").glob("[0-9]*")}
        found = {pid}
        while more := {child for child, stat in stats.items() if stat and stat[1] in found} - found:
            found |= more
        return {(member, stats[member][2]): self._command(member) for member in found if stats.get(member)}

    def alive(self, tree):
        """Those of `tree` that still run, by command line."""
        return [command for (pid, start), command in tree.items() if self._runs(pid, start)]

    def wait_until_gone(self, tree, seconds):
        """Assert that all of `tree` end in time; returns the seconds it took."""
        started_at = time.monotonic()
        while left := self.alive(tree):
            assert time.monotonic() - started_at < seconds, f"still running: {left}"
            time.sleep(0.02)
        return time.monotonic() - started_at

    def _runs(self, pid, start):
        stat = _stat(pid)
        return stat is not None and stat[0] not in "ZX" and stat[2] == start

    def _command(self, pid):
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except (FileNotFoundError, ProcessLookupError):
            return ""


@pytest.fixture(scope="session")
def processes():
    return Processes()


@pytest.fixture(scope="session")
def eventually():
    """Wait for a condition and return its first true value."""

    def wait(condition, seconds=10.0):
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, f"did not happen within {seconds} s"
            time.sleep(0.02)
        return value

    return wait
