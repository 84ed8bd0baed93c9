"""One engine process: started warm, given one job, watched without blocking, and always gone in the end.

It leads its own process group, dies with the worker, sees none of the worker's secrets, has a directory of its own and
is told to close itself off from everything else (`archrepair_core.sandbox`). It runs models of strangers: believe
nothing it says beyond what `engine_events` checks.
"""

import contextlib
import ctypes
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from archrepair_core.events import FINISH_SIGNAL
from worker.engine_events import Event, parse_event
from worker.engine_log import EngineLog
from worker.limits import EngineLimits, rlimits
from worker.oom import may_be_oom, oom_kills
from worker.scratch import scratch_directory

# -P: the working directory must never be searched for modules.
STANDBY = (sys.executable, "-P", "-m", "archrepair_core.standby")
MAX_LINE_BYTES = 8 << 20
ENGINE_CRASHED = "worker.engine_crashed"
_CHUNK_BYTES = 1 << 16
_PR_SET_PDEATHSIG = 1

# An allow-list: a deny-list forgets the next secret. No ARCHREPAIR_* name passes, they hold URLs with passwords.
_PASSED_NAMES = frozenset({"PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH"})
_PASSED_PREFIXES = ("LC_", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "CUDA_", "CUBLAS_", "NVIDIA_", "TORCH_", "PYTORCH_")


class ProtocolError(ValueError):
    """The engine wrote something that is not an event."""


def engine_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of the worker's environment an engine may see."""
    return {
        name: value for name, value in environment.items() if name in _PASSED_NAMES or name.startswith(_PASSED_PREFIXES)
    }


class EngineProcess:
    """A running engine. `pump` reads what it says, `kill` ends it with everything it started, `close` forgets it.

    `scratch` is its directory: the sandbox is closed before the engine knows its job, so the job comes to the engine.
    """

    def __init__(self, limits: EngineLimits, *, scratch_root: Path, command: Sequence[str] = STANDBY) -> None:
        """Start it. Call from the main thread: the kernel ends the engine when the *thread* that started it ends."""
        self.log = EngineLog(limits.log_bytes)
        self._grace_seconds = limits.grace_seconds
        self._oom_kills = oom_kills()
        with contextlib.ExitStack() as stack:
            self.scratch = stack.enter_context(scratch_directory(scratch_root))
            self._process = self._start(limits, command)
            self._directory = stack.pop_all()
        self._unfinished = bytearray()
        self._output = selectors.DefaultSelector()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self._output.register(stream, selectors.EVENT_READ)

    def _start(self, limits: EngineLimits, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            (*command, limits.sandbox, *map(str, (self.scratch.inputs, self.scratch.work, self.scratch.out))),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            cwd="/",
            env=engine_environment(os.environ),
            start_new_session=True,
            preexec_fn=_child_setup(limits),
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, request: Mapping[str, Any]) -> None:
        """Give it its one job. Only after `ready`: before, a request larger than the pipe would block us."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # It is dead already; `exited` says so, and its exit code tells more than this exception.

    def ask_to_finish(self) -> None:
        """Have it end its search and hand over the best it has; whether it does, its events will say."""
        if self._process.returncode is None:  # not reaped yet, so the pid is its own
            os.kill(self.pid, FINISH_SIGNAL)

    def pump(self, timeout_seconds: float) -> list[Event]:
        """Wait at most that long for output and return the events in it. Raises ProtocolError."""
        if not self._output.get_map():
            time.sleep(timeout_seconds)
            return []
        lines: list[bytes] = []
        for key, _ in self._output.select(timeout_seconds):
            chunk = os.read(key.fd, _CHUNK_BYTES)
            if not chunk:
                self._output.unregister(key.fileobj)
            elif key.fileobj is self._process.stderr:
                self.log.append(chunk)
            else:
                lines = self._complete_lines(chunk)
        return [_event(line) for line in lines]

    def _complete_lines(self, chunk: bytes) -> list[bytes]:
        """The lines that end in this chunk. Only the chunk is searched: a long line must not cost its square."""
        first, *rest = chunk.split(b"\n")
        self._unfinished += first
        if len(self._unfinished) > MAX_LINE_BYTES:
            raise ProtocolError(f"a line of more than {MAX_LINE_BYTES} bytes")
        if not rest:
            return []
        lines = [bytes(self._unfinished), *rest[:-1]]
        self._unfinished = bytearray(rest[-1])
        return lines

    def drain(self) -> list[Event]:
        """Everything it wrote that nobody has read yet. Raises ProtocolError."""
        events: list[Event] = []
        while self._output.get_map() and self._output.select(0):
            events += self.pump(0)
        return events

    def exited(self) -> bool:
        """Whether it has ended. It is not reaped here: its pid must stay ours until `kill` has cleared its group."""
        if self._process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self, *, grace_seconds: float | None = None) -> int:
        """End it and everything in its group: SIGTERM, a grace, SIGKILL. Returns the exit code."""
        if self._process.returncode is None:
            if not self.exited():
                os.killpg(self.pid, signal.SIGTERM)
                self._wait(self._grace_seconds if grace_seconds is None else grace_seconds)
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
            with contextlib.suppress(ProtocolError):
                self.drain()
            self.log.finish()
            self._close_pipes()
        return self._process.returncode

    def problem(self) -> dict[str, str]:
        """Why it ended, where it did not say so itself: problem fields. Ends it first if it has not."""
        return problem_of_exit(self.kill(), may_be_oom=may_be_oom(self._oom_kills, oom_kills()))

    def close(self) -> None:
        """End it if it still runs, and remove its directory with all it left there."""
        self.kill(grace_seconds=0)
        self._directory.close()

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not self.exited() and time.monotonic() < deadline:
            time.sleep(0.02)

    def wait(self, seconds: float) -> None:
        """Let it end by itself for a while; what it still writes goes to the log."""
        deadline = time.monotonic() + seconds
        while not self.exited() and time.monotonic() < deadline:
            self.pump(0.02)

    def _close_pipes(self) -> None:
        self._output.close()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


def _event(line: bytes) -> Event:
    try:
        return parse_event(line)
    except ValueError as error:
        raise ProtocolError(f"not an event: {line[:200]!r}") from error


def _child_setup(limits: EngineLimits) -> Callable[[], None]:
    """What the child does between fork and exec: die with us, die before us when memory is short, obey the limits."""
    pairs = rlimits(limits)
    parent = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def set_up() -> None:
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # the worker died before the line above could count
                os._exit(1)
            with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
                score.write("1000")
        for which, bounds in pairs:
            resource.setrlimit(which, bounds)

    return set_up


def problem_of_exit(returncode: int, *, may_be_oom: bool) -> dict[str, str]:
    """Problem fields for an engine that ended without saying `result` or `error`; negative codes are signals."""
    if returncode == -signal.SIGKILL and may_be_oom:
        code, detail = "worker.out_of_memory", "the engine process was killed (SIGKILL): the machine ran out of memory"
        hint = "use a smaller model, fewer samples, or a larger machine"
    elif returncode == -signal.SIGKILL:
        code, detail = "worker.engine_killed", "the engine process was killed (SIGKILL), and not for want of memory"
        hint = "somebody or something on the worker's machine ended it; submit the job again"
    elif returncode == -signal.SIGXCPU:
        code, detail = "job.max_runtime_exceeded", "the engine process used all the processor time one job may have"
        hint = "set repair.budget_seconds lower, or ask the operator for more (ARCHREPAIR_ENGINE_MAX_RUNTIME_SECONDS)"
        return {"code": code, "detail": detail, "hint": hint, "category": "user"}
    elif returncode < 0:
        name = signal.Signals(-returncode).name
        code, detail = ENGINE_CRASHED, f"the engine process crashed ({name})"
        hint = "the last lines of the log may say where; if it happens again, report it with the job id"
    else:
        code, detail = "platform.engine_failed", f"the engine process ended with code {returncode} and no result"
        hint = "this is a defect of the service, not of your upload; report it with the id of the job"
    return {"code": code, "detail": detail, "hint": hint, "category": "platform"}
