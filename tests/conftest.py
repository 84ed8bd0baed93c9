"""What tests of processes need: who is alive, read from /proc, zombies not counted."""

import time
from pathlib import Path

import pytest


def _stat(pid):
    """(state, parent, start time) of a process, or None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return fields[0], int(fields[1]), int(fields[19])


class Processes:
    """Processes are known by pid and start time, because pids come again."""

    def tree(self, pid):
        """The process and all its descendants, as {(pid, start time): command line}."""
        stats = {int(path.name): _stat(path.name) for path in Path("/proc").glob("[0-9]*")}
        found = {pid}
        while more := {child for child, stat in stats.items() if stat and stat[1] in found} - found:
            found |= more
        return {(member, stats[member][2]): self._command(member) for member in found if stats.get(member)}

    def alive(self, tree):
        """Those of `tree` that still run, by command line."""
        return [command for (pid, start), command in tree.items() if self._runs(pid, start)]

    def wait_until_gone(self, tree, seconds):
        """Assert that all of `tree` end in time; returns the seconds it took."""
        started_at = time.monotonic()
        while left := self.alive(tree):
            assert time.monotonic() - started_at < seconds, f"still running: {left}"
            time.sleep(0.02)
        return time.monotonic() - started_at

    def _runs(self, pid, start):
        stat = _stat(pid)
        return stat is not None and stat[0] not in "ZX" and stat[2] == start

    def _command(self, pid):
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except (FileNotFoundError, ProcessLookupError):
            return ""


@pytest.fixture(scope="session")
def processes():
    return Processes()


@pytest.fixture(scope="session")
def eventually():
    """Wait for a condition and return its first true value."""

    def wait(condition, seconds=10.0):
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, f"did not happen within {seconds} s"
            time.sleep(0.02)
        return value

    return wait
