"""The disk the engines work on: whether there is room, and whether a failure was that there was none."""

import errno
import os
from pathlib import Path

# Below it a job would fail at its first steps. What a job needs is known to nobody before.
ROOM_BYTES = 16 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)
DISK_FULL = {
    "code": "worker.disk_full",
    "detail": "the disk of the worker had no room left",
    "hint": "the operator has to free space under ARCHREPAIR_STATE_DIR of the worker; then submit the job again",
    "category": "platform",
}


def has_room(directory: Path) -> bool:
    """Whether a job may begin on this disk, or go on there."""
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize >= ROOM_BYTES


def says_full(error: BaseException) -> bool:
    """Whether the system refused to write for want of room."""
    return isinstance(error, OSError) and error.errno in _FULL
