"""The fault matrix: kill, stop, fill and forget while clients submit; then audit. `make test-faults REPEAT=10` for all.

`ARCHREPAIR_FAULTS_REPEAT` is how often each fault is tried, `ARCHREPAIR_FAULTS_OUTAGE_SECONDS` how long servers stay
away (30 for the long run).
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from app.shared.queue import make_celery, ring
from tests.faults.audit import audit, wait_until_done
from tests.faults.deployment import LEASE_SECONDS, Deployment, family
from tests.faults.stream import MODEL, Stream
from worker.deafness import DEAF_SECONDS

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
REPEAT = int(os.environ.get("ARCHREPAIR_FAULTS_REPEAT", "1"))
OUTAGE_SECONDS = float(os.environ.get("ARCHREPAIR_FAULTS_OUTAGE_SECONDS", "3"))
SILENCE_SECONDS = 60 + DEAF_SECONDS + OUTAGE_SECONDS
Inject = Callable[[Deployment, Stream], None]


@dataclass(frozen=True)
class Fault:
    """`stacks` are those where it can happen; `may_fail` has the codes with which jobs may fail of it.

    `causes`: how attempts ended of it, which must have been seen, or nothing was hit; `leaves_uploads`: whether files
    that were on their way may lie about until they are swept.
    """

    inject: Inject
    stacks: tuple[str, ...] = ("embedded", "production")
    may_fail: frozenset[str] = frozenset()
    causes: frozenset[str] = frozenset()
    leaves_uploads: bool = False


def away(name: str, seconds: float, number: int = signal.SIGKILL) -> Inject:
    """The server ends by that signal and is back some time later."""

    def inject(deployment: Deployment, _stream: Stream) -> None:
        deployment.wait_for_a_run()
        deployment.servers[name].end(number)
        time.sleep(seconds)
        deployment.start(name)

    return inject


def gateway_killed_during_upload(deployment: Deployment, stream: Stream) -> None:
    half = threading.Event()

    def body():
        yield MODEL
        half.set()
        while True:
            yield MODEL[:1000]
            time.sleep(0.01)

    def upload() -> None:
        headers = {"Authorization": f"Bearer {deployment.key}", "Content-Type": "multipart/form-data; boundary=b"}
        with suppress(httpx.TransportError):
            httpx.post(f"{deployment.url}/v1/models", headers=headers, content=_model_part(body()), timeout=30)

    sender = threading.Thread(target=upload, daemon=True)
    sender.start()
    assert half.wait(20)
    deployment.kill("gateway")
    deployment.start("gateway")
    sender.join(30)
    assert not sender.is_alive()


def _model_part(content):
    yield b'--b\r\nContent-Disposition: form-data; name="model"; filename="m.pt"\r\n\r\n'
    yield from content


def pool_process_killed(deployment: Deployment, _stream: Stream) -> None:
    deployment.wait_for_a_run()
    deployment.pool_of("worker").kill()


def engine_killed(deployment: Deployment, _stream: Stream) -> None:
    deployment.wait_for_a_run()
    engine = deployment.engine_of("worker")
    if engine is not None:
        with suppress(psutil.NoSuchProcess):
            engine.kill()


def worker_frozen_past_its_lease(deployment: Deployment, _stream: Stream) -> None:
    if "worker-2" not in deployment.servers:
        deployment.add_worker("worker-2")
    deployment.wait_for_a_run("worker")
    frozen = family(deployment.servers["worker"].process.pid)
    for member in frozen:
        with suppress(psutil.NoSuchProcess):
            member.suspend()
    time.sleep(LEASE_SECONDS * 4)  # Postgres ends its transactions after one, sweeps come every two seconds
    for member in frozen:
        with suppress(psutil.NoSuchProcess):
            member.resume()


def every_message_twice(deployment: Deployment, _stream: Stream) -> None:
    if "worker-2" not in deployment.servers:
        deployment.add_worker("worker-2")
    celery = make_celery(deployment.settings)
    for _ in range(20):
        ring(celery)
        ring(celery)
        time.sleep(0.1)
    celery.close()


def broker_away_while_submitting(deployment: Deployment, stream: Stream) -> None:
    deployment.kill("broker")
    started = time.monotonic()
    assert [stream.submit() for _ in range(5)].count(None) == 0
    assert time.monotonic() - started < 10, "a POST waits for the broker"
    deployment.start("broker")


def disk_full(deployment: Deployment, _stream: Stream) -> None:
    """The state directory is a small disk of its own; on the embedded stack with database and store."""
    deployment.wait_for_a_run()
    filler = deployment.settings.state_dir / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1 << 16))
    time.sleep(OUTAGE_SECONDS)
    filler.unlink()


LOST = frozenset({"worker_lost"})
FAULTS = {
    "gateway killed": Fault(away("gateway", 0.5), leaves_uploads=True),
    "gateway killed during an upload": Fault(gateway_killed_during_upload, leaves_uploads=True),
    "worker killed": Fault(away("worker", 0.5), causes=LOST),
    "pool process killed": Fault(pool_process_killed, causes=LOST),
    "engine killed": Fault(engine_killed, causes=frozenset({"engine_crashed"})),
    "broker killed, data lost": Fault(away("broker", 1.0)),
    "broker away while submitting": Fault(broker_away_while_submitting),
    "database restarted": Fault(away("database", 1.0, signal.SIGINT), stacks=("production",)),
    "database killed": Fault(away("database", 1.0), stacks=("production",)),
    "store away": Fault(away("store", OUTAGE_SECONDS), stacks=("production",), leaves_uploads=True),
    "worker frozen past its lease": Fault(worker_frozen_past_its_lease, causes=LOST),
    "every message twice": Fault(every_message_twice),
    "disk full": Fault(disk_full, may_fail=frozenset({"worker.disk_full"}), leaves_uploads=True),
}


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 200 MB that is mounted where the state goes; needs the right to mount."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(path)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a file system cannot be mounted here: " + mounted.stderr.decode())
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.fixture
def disk(request, tmp_path) -> Path:
    return request.getfixturevalue("small_disk") if request.node.callspec.params["name"] == "disk full" else tmp_path


@pytest.fixture
def environment(monkeypatch):
    """What the stores of the run need is put into the environment, and leaves it again."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ALLOW_HTTP"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


CASES = [(stack, name) for stack in ("embedded", "production") for name in FAULTS if stack in FAULTS[name].stacks]


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_every_accepted_job_is_done_exactly_once(kind, name, disk, tmp_path, capsys):
    fault, slowest, checked = FAULTS[name], 0.0, set()
    deployment = Deployment(kind, tmp_path, disk)
    try:
        stream = Stream(deployment)
        for _ in range(REPEAT):
            slowest = max(slowest, one_run(deployment, fault, stream))
            found = audit(deployment, stream, checked)
            assert (found.lost, found.doubled, found.stuck, found.wrong) == (0, 0, 0, []), found
            assert set(found.failures) <= fault.may_fail, found
            assert fault.leaves_uploads or not found.uploads_left, found
    finally:
        deployment.close()
    assert found.jobs >= REPEAT
    assert fault.causes <= set(found.causes), found
    failed, causes = sum(found.failures.values()), ", ".join(f"{count} {name}" for name, count in found.causes.items())
    row = (name, kind, REPEAT, found.jobs, found.lost, found.doubled, found.stuck, failed, causes, f"{slowest:.1f}")
    with capsys.disabled():
        print("\n|", " | ".join(map(str, row)), "|", end="")


def one_run(deployment: Deployment, fault: Fault, stream: Stream) -> float:
    """Seconds from the end of the fault to the end of the last job."""
    stream.start()
    try:
        fault.inject(deployment, stream)
        back_at = time.monotonic()
        time.sleep(1)
    finally:
        stream.stop()
    wait_until_done(deployment, silence_seconds=SILENCE_SECONDS)
    seconds = time.monotonic() - back_at
    time.sleep(1.0)  # what a late process still writes, the audit shall see
    return seconds
