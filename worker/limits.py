"""How much one engine process may use. Read from ARCHREPAIR_ENGINE_* when the worker starts."""

import resource

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1 << 20
GIB = 1 << 30


class EngineLimits(BaseSettings):
    """Limits of one job; memory is off by default, because only the operator knows what else the machine does."""

    model_config = SettingsConfigDict(env_prefix="ARCHREPAIR_ENGINE_", frozen=True)

    max_runtime_seconds: float = Field(6 * 3600, gt=0, description="Wall clock of one job, whatever its budget says.")
    start_seconds: float = Field(120, gt=0, description="Importing torch may take this long, on a cold disk too.")
    grace_seconds: float = Field(2, ge=0, description="Between SIGTERM and SIGKILL.")
    data_bytes: int | None = Field(None, gt=0, description="RLIMIT_DATA; RLIMIT_AS would break CUDA's reservations.")
    file_bytes: int = Field(64 * GIB, gt=0, description="RLIMIT_FSIZE: the largest file the engine may write.")
    open_files: int = Field(4096, gt=0, description="RLIMIT_NOFILE.")
    log_bytes: int = Field(8 * MIB, ge=64 * 1024, description="What is kept of the engine's stderr.")


def rlimits(limits: EngineLimits) -> tuple[tuple[int, int], ...]:
    """(resource, value) pairs. No core files: they would hold the customer's model and data."""
    pairs = [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits.file_bytes),
        (resource.RLIMIT_NOFILE, limits.open_files),
    ]
    if limits.data_bytes is not None:
        pairs.append((resource.RLIMIT_DATA, limits.data_bytes))
    return tuple((which, _capped(which, value)) for which, value in pairs)


def _capped(which: int, value: int) -> int:
    """Not above the hard limit we were started with: raising it is not ours to do."""
    _, hard = resource.getrlimit(which)
    return value if hard == resource.RLIM_INFINITY else min(value, hard)
