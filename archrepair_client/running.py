"""A service that is up on this machine: where to find it, and how to have one for a while."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

from archrepair_client.processes import die_with_parent

START_SECONDS = 90.0
STOP_SECONDS = 30.0


@dataclass(frozen=True)
class RunningService:
    """Where a service can be found; kept as `service.json` in its state directory while it is up."""

    url: str
    api_key_file: str
    pid: int

    @property
    def api_key(self) -> str:
        """The key with all scopes. Raises OSError when it cannot be read."""
        return Path(self.api_key_file).read_text().strip()

    def client(self, *, timeout_seconds: float = 60) -> httpx.Client:
        """An HTTP client that is allowed in. No proxy: the service is on this machine."""
        headers = {"Authorization": f"Bearer {self.api_key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout_seconds, trust_env=False)


def note_service(state_dir: Path, service: RunningService) -> None:
    """Let others on this machine find the service."""
    unfinished = state_dir / f".service.json.{service.pid}"
    unfinished.write_text(json.dumps(asdict(service)))
    unfinished.replace(state_dir / "service.json")


def forget_service(state_dir: Path) -> None:
    """The service is no longer up."""
    (state_dir / "service.json").unlink(missing_ok=True)


def find_service(state_dir: Path) -> RunningService | None:
    """The service that said it is up in this directory. After a SIGKILL the note may be older than its service."""
    try:
        return RunningService(**json.loads((state_dir.expanduser() / "service.json").read_text()))
    except FileNotFoundError:
        return None


@contextmanager
def running_service(state_dir: Path, *, port: int = 0) -> Iterator[RunningService]:
    """`archrepair up` in a process of its own until the block ends. Raises RuntimeError with what it said instead."""
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    forget_service(state_dir)
    output = state_dir / "up.log"
    command = (sys.executable, "-P", "-m", "archrepair_client", "up", "--state-dir", str(state_dir))
    with output.open("ab") as log:
        up = subprocess.Popen(
            (*command, "--port", str(port)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent(),
        )
    try:
        yield _wait_for_note(up, state_dir, output)
    finally:
        up.send_signal(signal.SIGTERM)
        try:
            up.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            up.kill()
            up.wait()


def _wait_for_note(up: subprocess.Popen[bytes], state_dir: Path, output: Path) -> RunningService:
    deadline = time.monotonic() + START_SECONDS
    while (service := find_service(state_dir)) is None:
        if up.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"archrepair up did not come up:\n{output.read_text('utf-8', 'replace')[-4000:]}")
        time.sleep(0.05)
    return service
