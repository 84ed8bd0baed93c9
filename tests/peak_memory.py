"""The most memory that this process has had at once."""

import re
from pathlib import Path


def peak_kib() -> int:
    """KiB; `ru_maxrss` would not do, for a new process begins with the peak of the one that started it."""
    found = re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    assert found, "no line of that name"
    return int(found[1])
