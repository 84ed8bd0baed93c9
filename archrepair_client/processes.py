"""A child process of `archrepair up`: started with a log, restarted with patience, gone when we are gone."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_PR_SET_PDEATHSIG = 1
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
HEALTHY_SECONDS = 60.0  # after so long a run the next failure is a new one, not the same again


@dataclass(frozen=True)
class Program:
    """What to run. Secrets go into `stdin` or the environment, never into `command`: `ps` shows that to everybody."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)
    stdin: bytes = field(default=b"", repr=False)
    stop_seconds: float = 5.0


class Child:
    """One program and its current process, which leads its own group and dies with this process."""

    def __init__(self, program: Program, log_path: Path) -> None:
        self.program = program
        self.log_path = log_path
        self._log_start = 0
        self._pause_seconds = 0.0
        self._start_at = 0.0
        self.start()

    def start(self) -> None:
        """Start the process. From the main thread only: the kernel ends children when the *thread* ends."""
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self.program.command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.program.environment,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        self._started_at = time.monotonic()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(self.program.stdin)

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> str | None:
        """How it ended, in words; None while it runs."""
        code = self._process.poll()
        if code is None:
            return None
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"

    def plan_restart(self) -> float:
        """Decide when to start it again: at once after a long run, ever later when it keeps failing."""
        ran_seconds = time.monotonic() - self._started_at
        again = self._pause_seconds * 2 if ran_seconds < HEALTHY_SECONDS else 0
        self._pause_seconds = min(max(again, FIRST_PAUSE_SECONDS), LONGEST_PAUSE_SECONDS)
        self._start_at = time.monotonic() + self._pause_seconds
        return self._pause_seconds

    def restart_if_due(self) -> bool:
        """Start it when the planned pause is over."""
        if time.monotonic() < self._start_at:
            return False
        self.start()
        return True

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """SIGTERM, wait as long as the program may take, then SIGKILL for its whole group."""
        deadline = time.monotonic() + self.program.stop_seconds
        if self._process.poll() is None:
            self._process.terminate()
            while self._process.poll() is None and time.monotonic() < deadline and not hurry():
                time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def log_tail(self, lines: int = 20) -> str:
        """The last lines this process wrote."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            return "\n".join(log.read().decode("utf-8", "replace").splitlines()[-lines:])


def die_with_parent() -> Callable[[], None]:
    """For `preexec_fn`: have the kernel kill the child when we die, even by SIGKILL."""
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def set_up() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # we died before the line above could count
                os._exit(1)

    return set_up
