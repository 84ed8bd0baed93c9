import os
import signal
import subprocess
import sys
import time

import pytest

from archrepair_client.processes import FIRST_PAUSE_SECONDS, Child, Program

PYTHON = (sys.executable, "-S", "-E", "-c")


@pytest.fixture
def start(tmp_path):
    children = []

    def start(code, **options):
        children.append(Child(Program("test", (*PYTHON, code), dict(os.environ), **options), tmp_path / "test.log"))
        return children[-1]

    yield start
    for child in children:
        child.stop(lambda: True)


def test_a_child_reads_its_input_and_its_output_is_in_the_log(start, eventually):
    child = start("print(input())", stdin=b"a word\n")
    assert eventually(child.ended) == "ended with code 0"
    assert child.log_tail() == "a word"


def test_a_restarted_child_shows_only_its_own_last_words(start, eventually):
    child = start("import os; print('I am', os.getpid())")
    eventually(child.ended)
    child.start()
    eventually(child.ended)
    assert child.log_tail() == f"I am {child.pid}"


def test_restarts_come_later_and_later_when_a_child_keeps_failing(start, eventually):
    child = start("raise SystemExit(1)")
    pauses = [child.plan_restart() for _ in range(9)]
    assert pauses[:3] == [FIRST_PAUSE_SECONDS, 1, 2]
    assert pauses[-1] == 30
    assert child.restart_if_due() is False


def test_a_child_that_ignores_sigterm_is_killed_with_its_group(start, processes, eventually):
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "subprocess.Popen(['sleep', '600'])\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    child = start(code, stop_seconds=0.2)
    eventually(child.log_tail)
    tree = processes.tree(child.pid)
    assert len(tree) == 2

    child.stop()

    processes.wait_until_gone(tree, 2)
    assert child.ended() == "was killed by SIGKILL"


def test_hurry_does_not_wait_for_a_slow_child(start, eventually):
    child = start("import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)")
    eventually(child.log_tail)
    started_at = time.monotonic()
    child.stop(lambda: True)
    assert time.monotonic() - started_at < 1


def test_a_child_dies_with_a_parent_that_was_killed(tmp_path, processes, eventually):
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from archrepair_client.processes import Child, Program\n"
        "child = Child(Program('sleep', ('sleep', '600'), {}), Path(sys.argv[1]))\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        (sys.executable, "-P", "-c", code, str(tmp_path / "log")), stdout=subprocess.PIPE, text=True
    )
    with parent:
        parent.stdout.readline()
        tree = processes.tree(parent.pid)
        assert len(tree) == 2
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    processes.wait_until_gone(tree, 2)
