"""The whole service as processes that a test may kill: its servers, a gateway, workers whose engine is a double."""

import os
import secrets
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import select

from app.prepare import prepare
from app.shared.db import make_engine, make_sessions
from app.shared.models import INSPECT
from app.shared.settings import Settings
from app.shared.tables import Job
from tests.servers import (
    BUCKET,
    LOOPBACK,
    accepts,
    client_environment,
    die_with_parent,
    embedded_urls,
    environment_of,
    free_port,
    init_postgres,
    postgres_answers,
    postgres_command,
    store_answers,
    store_command,
    store_environment,
    store_ports,
    valkey_command,
    wait_until,
)

LEASE_SECONDS = 2.0
WORKER = Path(__file__).parents[1] / "worker" / "worker_with_double.py"


@dataclass
class Server:
    """One program that is started again with the same command, in the same directory, on the same port."""

    command: list[Any]
    answers: Any
    log: Path
    options: dict[str, Any] = field(default_factory=dict)
    process: Any = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            options = {"stdout": log, "stderr": log, "preexec_fn": die_with_parent, **self.options}
            self.process = subprocess.Popen([str(word) for word in self.command], **options)
        wait_until(self.answers, seconds=60, what=f"the start of {self.command[0]}")

    def end(self, number: int = signal.SIGKILL) -> None:
        """By that signal, with all it has started."""
        tree = family(self.process.pid)
        self.process.send_signal(number)
        if number == signal.SIGKILL:
            kill(tree)
        self.process.wait(30)


def family(pid: int) -> list[psutil.Process]:
    """The process and its descendants."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def kill(members: list[psutil.Process]) -> None:
    for member in members:
        with suppress(psutil.NoSuchProcess):
            member.kill()


class Deployment:
    """`production`: Postgres, S3 and Valkey; `embedded`: SQLite, files and Valkey. Everything on this machine."""

    def __init__(self, stack: str, directory: Path, disk: Path) -> None:
        """`disk` holds the state directory and nothing else: what the servers of production keep has one of its own."""
        self.directory = directory
        self.servers: dict[str, Server] = {}
        self.environment: dict[str, str] = {}
        state = disk / "state"
        state.mkdir(mode=0o700)
        urls = self._start_production() if stack == "production" else embedded_urls(state)
        self.settings = Settings(
            state_dir=state, broker_url=self._start_broker(), lease_seconds=LEASE_SECONDS, max_attempts=5, **urls
        )
        os.environ.update(self.environment)  # for the store of the audit
        prepare(self.settings)
        self.engine = make_engine(self.settings.database_url)
        self.sessions = make_sessions(self.engine)
        self.port = free_port()
        self.key = (state / "api-key").read_text().strip()
        self._add_gateway()
        self.add_worker("worker")

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def start(self, name: str) -> None:
        self.servers[name].start()

    def kill(self, name: str) -> None:
        self.servers[name].end()

    def close(self) -> None:
        """Workers first: they have work to give back to the others."""
        for server in reversed(self.servers.values()):
            if server.process is not None and server.process.poll() is None:
                server.end()
        self.engine.dispose()

    def _add(self, name: str, command: list[Any], answers: Any, **options: Any) -> None:
        self.servers[name] = Server(command, answers, self.directory / f"{name}.log", options)
        self.start(name)

    def _start_broker(self) -> str:
        port, password = free_port(), secrets.token_hex(8)
        self._add("broker", valkey_command(port, password), lambda: accepts(port))
        return f"redis://:{password}@{LOOPBACK}:{port}/0"

    def _start_production(self) -> dict[str, str]:
        port, password = free_port(), secrets.token_hex(8)
        init_postgres(self.directory, password)
        command, options = postgres_command(self.directory, port)
        command += ["-c", "synchronous_commit=on"]  # or it forgets what it has confirmed when it is killed
        url = f"postgresql+psycopg://postgres:{password}@{LOOPBACK}:{port}/postgres"
        self._add("database", command, lambda: postgres_answers(url), **options)
        access, secret, ports = secrets.token_hex(8), secrets.token_hex(16), store_ports()
        objects = self.directory / "weed"
        objects.mkdir()
        environment = store_environment(access, secret)
        command = store_command(objects, ports)
        self._add("store", command, lambda: store_answers(ports["s3"]), env=environment, cwd=objects)
        self.environment = client_environment(ports["s3"], access, secret)
        return {"database_url": url, "store_url": f"s3://{BUCKET}/faults", "secret_key": secrets.token_hex(16)}

    def _process_environment(self) -> dict[str, str]:
        return {**os.environ, **self.environment, **environment_of(self.settings), "PYTHONUNBUFFERED": "1"}

    def _add_gateway(self) -> None:
        command = [sys.executable, "-m", "uvicorn", "app.main:create_app", "--factory", "--port", self.port]
        self._add("gateway", command, lambda: accepts(self.port), env=self._process_environment())

    def add_worker(self, name: str) -> None:
        """Ready when its pool process has started an engine ahead."""
        command = [sys.executable, "-P", WORKER]
        self._add(name, command, lambda: self.engine_of(name) is not None, env=self._process_environment())

    def start_ended_workers(self) -> None:
        """As whoever keeps workers running does."""
        for name, server in self.servers.items():
            if name.startswith("worker") and server.process.poll() is not None:
                self.start(name)

    def engine_of(self, name: str) -> psutil.Process | None:
        """The engine that this worker has, running or waiting."""
        for member in family(self.servers[name].process.pid):
            with suppress(psutil.NoSuchProcess):
                if any("engine_double.py" in word for word in member.cmdline()):
                    return member
        return None

    def pool_of(self, name: str) -> psutil.Process:
        """The process of this worker that runs jobs: the parent of its engines."""
        wait_until(lambda: self.engine_of(name) is not None, seconds=30, what="the start of an engine")
        engine = self.engine_of(name)
        assert engine is not None
        return engine.parent()

    def wait_for_a_run(self, worker: str = "worker") -> None:
        """Until a job is in the hands of an engine of this worker."""
        of_worker = f"%:{self.servers[worker].process.pid}:%"

        def runs() -> bool:
            with self.sessions() as session:
                running = select(Job.id).where(Job.status == "running", Job.kind != INSPECT, Job.progress.is_not(None))
                return session.scalars(running.where(Job.owner.like(of_worker)).limit(1)).first() is not None

        wait_until(runs, seconds=60, what="the run of a job")
        time.sleep(0.1)
