"""Whether the machine ran out of memory: of a process killed with SIGKILL, only the kernel knows why."""

from contextlib import suppress
from pathlib import Path


def oom_kills(vmstat: Path = Path("/proc/vmstat")) -> int | None:
    """How many processes this kernel has killed for want of memory, in any container; None where it does not say."""
    with suppress(OSError, ValueError):
        for line in vmstat.read_text("ascii", "replace").splitlines():
            name, _, count = line.partition(" ")
            if name == "oom_kill":
                return int(count)
    return None


def may_be_oom(before: int | None, now: int | None) -> bool:
    """Whether a process killed between two counts may be among the kernel's victims; where nothing is known, it may."""
    return before is None or now is None or now > before
