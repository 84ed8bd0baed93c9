"""The directory an engine runs its job in: private, always removed, and swept when a killed worker left one behind.

What an attempt of a job left for the next one (`work/checkpoints`) outlives it: under `kept/JOB`, for a day.
"""

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Somebody repeats a job within seconds of the end of its lease, or a person within a working day.
KEPT_SECONDS = 24 * 3600.0
CHECKPOINTS, KEPT, JOB_FILE = "checkpoints", "kept", "job"


@dataclass(frozen=True)
class Scratch:
    """Where the inputs lie, where the engine may work, where it leaves its artifacts."""

    inputs: Path
    work: Path
    out: Path

    @property
    def root(self) -> Path:
        """The directory of all of them."""
        return self.work.parent.parent


@contextmanager
def scratch_directory(root: Path) -> Iterator[Scratch]:
    """Three empty directories under `root`. The lock on their parent says that its owner lives."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(root):  # else a sweep could come between making the directory and locking it
        path = Path(tempfile.mkdtemp(prefix="job-", dir=root))
        lock = os.open(path, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        scratch = Scratch(path / "in", path / "work", path / "out")
        for directory in (scratch.inputs, scratch.work, scratch.out):
            directory.mkdir()
        yield scratch
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def begin_job(scratch: Scratch, job_id: str) -> None:
    """Say whose directory it is, and put there what an earlier attempt on this machine left for it."""
    (scratch.work.parent / JOB_FILE).write_text(job_id)
    sweep_scratch(scratch.root)
    kept = scratch.root / KEPT / job_id
    with _locked(scratch.root):
        if kept.is_dir():
            kept.replace(scratch.work / CHECKPOINTS)


def keep_checkpoints(scratch: Scratch) -> None:
    """Put what this attempt leaves for the next where the next one looks. The engine must have ended."""
    with _locked(scratch.root):
        _keep(scratch.work.parent)


def sweep_scratch(root: Path) -> int:
    """Remove what killed workers left under `root`; returns how many. The kernel released their locks."""
    if not root.is_dir():
        return 0
    with _locked(root):
        for kept in root.glob(f"{KEPT}/*"):
            if time.time() - kept.stat().st_mtime > KEPT_SECONDS:
                shutil.rmtree(kept, ignore_errors=True)
        return sum(_remove_if_orphaned(path) for path in root.glob("job-*"))


def _keep(directory: Path) -> None:
    """Move the plain files only: an engine may have left links to files of ours."""
    found, job = directory / "work" / CHECKPOINTS, directory / JOB_FILE
    if found.is_symlink() or not found.is_dir() or not job.is_file():
        return
    kept = directory.parent / KEPT / job.read_text()
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(mode=0o700, parents=True)
    for path in found.iterdir():
        if path.is_file() and not path.is_symlink():
            path.replace(kept / path.name)


def _remove_if_orphaned(path: Path) -> bool:
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _keep(path)
        shutil.rmtree(path, ignore_errors=True)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
