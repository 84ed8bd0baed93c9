"""How much memory a process has now, and has had at most."""

from pathlib import Path


def resident_bytes(name: str = "VmRSS", *, pid: int | str = "self") -> int:
    """The line `name` of the status of a process: `VmRSS` for now, `VmHWM` for its peak.

    `ru_maxrss` would not do for a peak: a new process begins with that of the one that started it.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
