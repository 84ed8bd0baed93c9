import resource
import signal
import sys
import time

import pytest

from worker.engine_log import FRESH_BYTES, LINE_BYTES, TAIL_BYTES, EngineLog
from worker.engine_process import MAX_LINE_BYTES, ProtocolError, engine_environment, problem_of_exit
from worker.oom import may_be_oom, oom_kills

PYTHON = (sys.executable, "-S", "-E", "-c")


@pytest.fixture
def run(start_double, limits):
    """Starts an engine that runs the given Python code."""

    def run(code, **changes):
        return start_double(limits.model_copy(update=changes), command=(*PYTHON, code))

    return run


def pump_for_ever(engine):
    while True:
        engine.pump(1)


def output_of(engine, eventually):
    """Everything a finished engine wrote to stderr."""
    eventually(engine.exited)
    engine.drain()
    return engine.log.content().decode().strip()


def test_secrets_of_the_worker_do_not_reach_an_engine():
    worker = {
        "PATH": "/bin",
        "OMP_NUM_THREADS": "2",
        "CUDA_VISIBLE_DEVICES": "0",
        "ARCHREPAIR_DATABASE_URL": "postgresql://user:password@db",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "LD_PRELOAD": "/tmp/library.so",
    }
    assert set(engine_environment(worker)) == {"PATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"}


def test_an_engine_writes_no_core_file_and_only_so_much(run, eventually):
    code = (
        "import resource, sys\n"
        "print([resource.getrlimit(which) for which in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE)], file=sys.stderr)"
    )
    assert output_of(run(code, file_bytes=12345), eventually) == "[(0, 0), (12345, 12345)]"


def test_an_engine_that_wants_too_much_memory_gets_a_clean_error(run, eventually):
    engine = run("bytearray(1 << 30)", data_bytes=256 << 20)
    assert "MemoryError" in output_of(engine, eventually)
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY


def test_an_engine_leads_its_own_group_and_stands_in_no_directory_of_a_job(run, eventually):
    code = "import os, sys; print(os.getpgrp() == os.getpid(), os.getcwd(), file=sys.stderr)"
    assert output_of(run(code), eventually) == "True /"


def test_what_grandchildren_hold_open_does_not_keep_us_waiting(run, processes, eventually):
    engine = run("import subprocess; subprocess.Popen(['sleep', '600'])")
    eventually(engine.exited)
    started_at = time.monotonic()
    engine.drain()
    assert engine.kill() == 0
    assert time.monotonic() - started_at < 1


def test_a_killed_engine_takes_its_children_with_it(run, processes, eventually):
    engine = run("import subprocess, sys; subprocess.Popen(['sleep', '600']); print('{\"type\": \"ready\"}'); input()")
    eventually(lambda: len(processes.tree(engine.pid)) == 2)
    tree = processes.tree(engine.pid)
    engine.kill()
    processes.wait_until_gone(tree, 2)


def test_a_line_without_end_is_refused_before_it_fills_the_memory(run):
    engine = run("import sys\nwhile True: sys.stdout.write('x' * 65536)")
    with pytest.raises(ProtocolError, match=str(MAX_LINE_BYTES)):
        pump_for_ever(engine)


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '{"type": "unknown"}',
        '{"type": "progress", "phase": "dreaming", "percent": 1, "message": ""}',
        '{"type": "progress", "phase": "baseline", "percent": 101, "message": ""}',
        '{"type": "result", "result": {}, "verdict": "great", "artifacts": []}',
        '{"type": "result", "result": {}, "verdict": "pass", "artifacts": [{"name": "a/b", "kind": "model"}]}',
        '{"type": "result", "result": {}, "verdict": "pass", "artifacts": [{"name": ".hidden", "kind": "model"}]}',
    ],
)
def test_a_line_that_is_no_event_is_refused(run, line):
    engine = run(f"print({line!r}, flush=True); input()")
    with pytest.raises(ProtocolError, match="not an event"):
        pump_for_ever(engine)


def test_the_death_of_an_engine_before_its_request_is_seen_by_its_exit_code(run, eventually):
    engine = run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    eventually(engine.exited)
    engine.send({"spec": "x" * 100_000})
    assert engine.kill() == -signal.SIGKILL


def test_an_engine_that_ends_without_a_word_has_a_reason():
    assert problem_of_exit(-signal.SIGKILL, may_be_oom=True)["code"] == "worker.out_of_memory"
    assert problem_of_exit(-signal.SIGKILL, may_be_oom=False)["code"] == "worker.engine_killed"
    assert "SIGSEGV" in problem_of_exit(-signal.SIGSEGV, may_be_oom=True)["detail"]
    assert "code 3" in problem_of_exit(3, may_be_oom=False)["detail"]


@pytest.mark.parametrize(
    ("vmstat", "count"),
    [
        ("nr_free_pages 7\noom_kill 3\nswap_ra 0\n", 3),
        ("nr_free_pages 7\n", None),
        ("oom_kill many\n", None),
        (None, None),
    ],
)
def test_the_kernel_is_asked_for_its_victims(tmp_path, vmstat, count):
    if vmstat is not None:
        (tmp_path / "vmstat").write_text(vmstat)
    assert oom_kills(tmp_path / "vmstat") == count


def test_only_a_kernel_that_killed_nobody_was_not_short_of_memory():
    assert [may_be_oom(3, 3), may_be_oom(3, 4), may_be_oom(None, 4), may_be_oom(3, None)] == [False, True, True, True]


def test_a_log_keeps_its_beginning_and_its_end_and_says_what_is_missing():
    log = EngineLog(64 * 1024)
    log.append(b"the beginning\n")
    for number in range(50_000):
        log.append(b"line %d\n" % number)
    content = log.content()
    assert content.startswith(b"the beginning\nline 0\n")
    assert content.endswith(b"line 49999\n")
    assert b"bytes left out" in content
    assert len(content) < 64 * 1024 + 100
    assert log.last_lines(2) == ["line 49998", "line 49999"]
    assert TAIL_BYTES < 64 * 1024


TRACEBACKS = """sandbox: closed
Traceback (most recent call last):
  File "/opt/archrepair_core/standby.py", line 60, in run_job
    KINDS.get(kind, _repair)(request)
    ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
ValueError: no such layer

During handling of the above exception, another exception occurred:

  + Exception Group Traceback (most recent call last):
  |   File "/opt/archrepair_core/repair.py", line 1, in repair
  | ExceptionGroup: two
RuntimeError: Traceback of TorchScript, serialized code (most recent call last):
  File "code/__torch__/theirs.py", line 3, in forward
    return torch.add(x, y)
frame #0: c10::Error::Error(std::string) + 0x57 (0x7f in libc10.so)
the last word"""


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_log_for_customers_is_without_our_stack_traces_however_it_comes(size):
    log = EngineLog(64 * 1024)
    for start in range(0, len(TRACEBACKS), size):
        log.append(TRACEBACKS[start : start + size].encode())
    log.finish()
    shown = log.content().decode()
    assert shown.splitlines() == [
        "sandbox: closed",
        "ValueError: no such layer",
        "",
        "During handling of the above exception, another exception occurred:",
        "",
        "RuntimeError: Traceback of TorchScript, serialized code (most recent call last):",
        '  File "code/__torch__/theirs.py", line 3, in forward',
        "    return torch.add(x, y)",
        "the last word",
    ]
    assert "\n".join(log.raw_lines(100)) == TRACEBACKS
    assert log.take() == (0, shown.encode())
    log.append(b"and one more\n")
    assert log.take() == (len(shown.encode()), b"and one more\n")


def test_what_nobody_took_of_a_log_is_bounded_and_its_place_known():
    log = EngineLog(64 * 1024)
    for _ in range(10):
        log.append(b"x" * LINE_BYTES + b"\n")
    start, lines = log.take()
    assert (start, len(lines)) == (10 * (LINE_BYTES + 1) - FRESH_BYTES, FRESH_BYTES)
    log.append(b"y" * 2 * LINE_BYTES)
    assert log.take() == (10 * (LINE_BYTES + 1), b"y" * 2 * LINE_BYTES + b"\n"), "a line without an end is one too"
