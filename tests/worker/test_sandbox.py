"""What code in the place of the engine can reach: each test runs a line of Python there, through EngineProcess."""

import os
import signal
import socket
import sys

import pytest

from archrepair_core.errors import EngineError
from archrepair_core.sandbox.sandbox import missing_layers
from worker.celery_app import check_sandbox
from worker.engine_run import Failure, Watcher, run_engine

pytestmark = pytest.mark.skipif(bool(missing_layers()), reason=f"this machine has no sandbox: {missing_layers()}")

# What archrepair_core.standby does first, without the seconds torch takes.
ENTER = """
import json, os, signal, socket, subprocess, sys, threading, time
from pathlib import Path
{before}
from archrepair_core.sandbox.sandbox import enter_sandbox
mode, inputs, work, out = sys.argv[1:]
layers = enter_sandbox(mode, readable=[Path(inputs)], writable=[Path(work), Path(out)])
try:
    said = (lambda: ({code}))()
except BaseException as error:
    said = f"{{type(error).__name__}}: {{error}}"
print(said, file=sys.stderr)
"""
# A link to what Landlock hides is a link to another device.
DENIED = ("PermissionError", "Operation not permitted", "Permission denied", "Invalid cross-device link")


@pytest.fixture
def start(start_double, limits):
    """Starts an engine that enters the sandbox, evaluates an expression and says what came of it."""

    def start(code, *, before="", **changes):
        command = (sys.executable, "-P", "-c", ENTER.format(code=code, before=before))
        return start_double(limits.model_copy(update={"sandbox": "required", **changes}), command=command)

    return start


@pytest.fixture
def said_by(start, eventually):
    def said_by(code, **options):
        engine = start(code, **options)
        eventually(engine.exited)
        engine.drain()
        return engine.log.content().decode().strip()

    return said_by


def is_denied(said):
    return said.startswith(DENIED) or any(word in said for word in DENIED[1:])


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "state" / "archrepair.db"
    path.parent.mkdir()
    path.write_text("secret")
    return path


def test_an_engine_reads_its_inputs_and_writes_its_results(said_by):
    code = "Path(work, 'a').write_text('x'), Path(out, 'b').write_text('y'), os.rename(work + '/a', out + '/a'), "
    code += "sorted(os.listdir(out)), os.listdir(inputs), os.remove(out + '/b'), os.environ['HOME'] == work"
    assert said_by(code).endswith("['a', 'b'], [], None, True)")


@pytest.mark.parametrize(
    "code",
    [
        "Path({secret!r}).read_text()",
        "Path({secret!r}).write_text('x')",
        "os.listdir({state!r})",
        "os.remove({secret!r})",
        "os.rename({secret!r}, work + '/stolen')",
        "os.link({secret!r}, work + '/stolen')",
        "os.symlink({secret!r}, out + '/repaired.pt')",
        "os.chmod({secret!r}, 0o777)",
        "os.utime({secret!r})",
        "os.truncate({secret!r}, 0)",
        "Path(inputs, 'model.pt').write_text('another')",
        "os.mkfifo(work + '/pipe')",
        "os.listdir('/home')",
        "os.listdir('/root')",
        "os.listdir('/tmp')",
        "os.listdir('/')",
        "Path('/etc/passwd').read_text()",
        "Path(f'/proc/{{os.getppid()}}/environ').read_bytes()",
        "Path(f'/proc/{{os.getppid()}}/cmdline').read_bytes()",
        "Path(os.path.dirname(os.__file__), 'sitecustomize.py').write_text('')",
    ],
)
def test_files_that_are_not_the_jobs_are_closed(said_by, secret, code):
    assert is_denied(said_by(code.format(secret=str(secret), state=str(secret.parent))))
    assert secret.read_text() == "secret"
    assert secret.stat().st_mode & 0o777 == 0o644


def test_the_directory_of_another_job_is_closed(start, said_by):
    other = start("time.sleep(600)").scratch.inputs / "model.pt"
    other.write_text("of somebody else")
    assert is_denied(said_by(f"Path({str(other)!r}).read_text()"))
    assert is_denied(said_by(f"os.listdir({str(other.parent.parent)!r})"))


def test_the_network_is_closed(said_by):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert is_denied(said_by(f"socket.create_connection(('127.0.0.1', {port}))"))
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()
    for kind in (
        "AF_INET, socket.SOCK_DGRAM",
        "AF_INET6, socket.SOCK_STREAM",
        "AF_UNIX",
        "AF_NETLINK, socket.SOCK_RAW",
    ):
        assert is_denied(said_by(f"socket.socket(socket.{kind})"))
    assert said_by("socket.getaddrinfo('example.org', 80)").startswith("gaierror")
    assert "socket.socket" in said_by("socket.socketpair()"), "a thread may talk to another"


def test_what_landlock_knows_of_the_network_is_closed_without_the_filter(said_by):
    before = "import archrepair_core.sandbox.sandbox as sandbox; sandbox.restrict_system_calls = lambda: None"
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"socket.create_connection(('127.0.0.1', {server.getsockname()[1]}))"
        assert is_denied(said_by(code, before=before))


@pytest.mark.parametrize(
    "code",
    [
        "os.fork()",
        "subprocess.run(['/bin/true'])",
        "os.posix_spawn('/bin/true', ['true'], {{}})",
        "os.execv('/bin/true', ['true'])",
        "os.kill(os.getppid(), signal.SIGKILL)",
        "os.kill(0, signal.SIGKILL)",
        "signal.pidfd_send_signal(os.pidfd_open(os.getppid()), signal.SIGKILL)",
        "os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "__import__('resource').prlimit(os.getppid(), 7, (0, 0))",
        "os.unshare(0x10000000)" if hasattr(os, "unshare") else "os.chroot(work)",
    ],
)
def test_processes_other_than_itself_are_closed(said_by, code):
    assert is_denied(said_by(code.format()))


def test_the_parents_memory_is_closed(said_by):
    attach = "(lambda c: (c.ptrace(16, os.getppid(), 0, 0), os.strerror(__import__('ctypes').get_errno())))"
    assert is_denied(said_by(attach + "(__import__('ctypes').CDLL(None, use_errno=True))"))
    assert is_denied(said_by("open(f'/proc/{os.getppid()}/mem', 'rb')"))


def test_an_engine_cannot_choose_to_outlive_its_worker(said_by):
    code = "c.prctl(1, 0), os.strerror(__import__('ctypes').get_errno())"
    said = said_by(f"(lambda c: ({code}))(__import__('ctypes').CDLL(None, use_errno=True))")
    assert said == "(-1, 'Operation not permitted')"


def test_threads_are_allowed(said_by):
    code = "[thread.start() or thread.join() for thread in [threading.Thread(target=int)]]"
    assert said_by(code) == "[None]"


def test_a_fork_bomb_stays_one_process(said_by):
    assert said_by("all(os.system('sleep 60 &') for _ in range(50))") == "True", "every one of them failed"


def test_a_file_larger_than_allowed_is_not_written(said_by):
    assert "File too large" in said_by("Path(work, 'big').write_bytes(bytes(1 << 20))", file_bytes=1 << 16)


def test_a_huge_allocation_is_refused_without_a_limit_set_by_the_operator(said_by):
    assert said_by("bytearray(1 << 42)").startswith("MemoryError")


def test_an_ordinary_user_gets_the_same_sandbox(said_by, secret):
    if os.geteuid() != 0:
        pytest.skip("every other test here has shown it")
    # That user may not be able to read this interpreter, so it is looked at before.
    before = "import archrepair_core.sandbox.sandbox, sysconfig; sysconfig.get_paths()\n"
    before += "os.setgroups([]); os.setgid(65534); os.setuid(65534)"
    code = "[layer.holds for layer in layers], os.getuid()"
    assert said_by(code, before=before) == "([True, True, True], 65534)"
    assert is_denied(said_by("socket.socket()", before=before))
    assert is_denied(said_by("Path('/etc/passwd').read_text()", before=before))


def test_root_loses_what_root_may_do(said_by):
    if os.geteuid() != 0:
        pytest.skip("not root")
    status = said_by("[line for line in Path('/proc/self/status').read_text().splitlines() if line.startswith('Cap')]")
    assert "CapEff:\\t0000000000000006" in status
    assert "CapInh:\\t0000000000000000" in status


def test_an_engine_runs_open_where_that_is_asked_for(said_by):
    assert said_by("os.listdir('/')[:0], [layer.holds for layer in layers]", sandbox="off") == (
        "([], [False, False, False])"
    )


def test_what_cannot_be_closed_is_named_and_refused_when_required(said_by):
    before = "import archrepair_core.sandbox.landlock as landlock; landlock.landlock_version = lambda: 0"
    assert "no Landlock" in said_by("[layer.detail for layer in layers]", before=before, sandbox="best_effort")
    log = said_by("'ran'", before=before, sandbox="required")
    assert "files (the kernel offers no Landlock)" in log
    assert "\nran" not in log


def test_a_worker_does_not_start_without_the_sandbox_it_requires(monkeypatch, limits):
    monkeypatch.setattr("archrepair_core.sandbox.sandbox.landlock_version", lambda: 0)
    check_sandbox(limits.model_copy(update={"sandbox": "best_effort"}))
    with pytest.raises(EngineError) as caught:
        check_sandbox(limits.model_copy(update={"sandbox": "required"}))
    assert caught.value.code == "platform.sandbox_unavailable"
    assert "ARCHREPAIR_ENGINE_SANDBOX" in caught.value.hint


def test_an_endless_loop_ends_with_the_job(start, limits):
    limits = limits.model_copy(update={"max_runtime_seconds": 0.5})
    watcher = Watcher(
        on_progress=lambda _: None,
        on_model=lambda _: None,
        on_localized=lambda _: None,
        on_dataset=lambda _: None,
        on_resolved_spec=lambda _: None,
        on_tick=lambda: None,
        interruption=lambda: None,
    )
    ending = run_engine(start("[None for _ in iter(int, 1)]"), {}, watcher=watcher, limits=limits)
    assert isinstance(ending, Failure)
    assert ending.problem["code"] == "job.max_runtime_exceeded"


def test_an_endless_loop_nobody_watches_ends_by_itself(start, eventually):
    engine = start("[None for _ in iter(int, 1)]", max_runtime_seconds=0.1, start_seconds=0.1)
    eventually(engine.exited, 30)
    assert engine.kill() == -signal.SIGXCPU
