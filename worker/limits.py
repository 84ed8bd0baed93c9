"""How much one engine process may use. Read from ARCHREPAIR_ENGINE_* when the worker starts."""

import math
import os
import resource
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from archrepair_core.sandbox.sandbox import Mode

MIB = 1 << 20
GIB = 1 << 30


class EngineLimits(BaseSettings):
    """Limits of one job."""

    model_config = SettingsConfigDict(env_prefix="ARCHREPAIR_ENGINE_", frozen=True)

    max_runtime_seconds: float = Field(6 * 3600, gt=0, description="Wall clock of one job, whatever its budget says.")
    max_inspection_seconds: float = Field(600, gt=0, description="Wall clock of looking at a model without data.")
    start_seconds: float = Field(120, gt=0, description="Importing torch may take this long, on a cold disk too.")
    grace_seconds: float = Field(2, ge=0, description="Between SIGTERM and SIGKILL.")
    keep_best_seconds: float = Field(
        300, ge=0, description="After a cancel with keep_best, to measure and pack the best so far; then it is ended."
    )
    data_bytes: int | None = Field(
        None,
        gt=0,
        description="RLIMIT_DATA; by default the machine's memory. RLIMIT_AS would break CUDA's reservations.",
    )
    file_bytes: int = Field(64 * GIB, gt=0, description="RLIMIT_FSIZE: the largest file the engine may write.")
    open_files: int = Field(4096, gt=0, description="RLIMIT_NOFILE.")
    threads: int = Field(8192, gt=0, description="RLIMIT_NPROC: all threads of this user; the kernel exempts root.")
    sandbox: Mode = Field(
        "best_effort",
        description="Engines that cannot close themselves off: `required`: none, `best_effort`: they may, `off`.",
    )
    checkpoint_bytes: int = Field(16 * GIB, ge=0, description="Of what one attempt may leave for the next.")
    log_bytes: int = Field(8 * MIB, ge=64 * 1024, description="What is kept of the engine's stderr.")


def rlimits(limits: EngineLimits) -> tuple[tuple[int, tuple[int, int]], ...]:
    """(resource, (soft, hard)) pairs. No core files: they would hold the customer's model and data."""
    # The clock of the supervisor ends a job; this ends an engine whose supervisor hangs.
    cpu_seconds = math.ceil((limits.max_runtime_seconds + limits.start_seconds) * (os.cpu_count() or 1))
    values = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_NPROC, limits.threads),
        (resource.RLIMIT_DATA, limits.data_bytes or machine_memory_bytes()),
    ]
    pairs = [(which, (_capped(which, value), _capped(which, value))) for which, value in values]
    # Between the two the engine dies of SIGXCPU, which says why; at the hard limit the kernel sends SIGKILL.
    soft, hard = cpu_seconds, cpu_seconds + 5
    return (*pairs, (resource.RLIMIT_CPU, (_capped(resource.RLIMIT_CPU, soft), _capped(resource.RLIMIT_CPU, hard))))


def machine_memory_bytes() -> int:
    """The memory of this machine, or of the container we are in: an engine that wants more would be killed anyway."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        return min(physical, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # another kind of machine, or "max"
        return physical


def _capped(which: int, value: int) -> int:
    """Not above the hard limit we were started with: raising it is not ours to do."""
    _, hard = resource.getrlimit(which)
    return value if hard == resource.RLIM_INFINITY else min(value, hard)
