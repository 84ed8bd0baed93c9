"""The directory an engine runs its job in: private, always removed, and swept when a killed worker left one behind."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.shared.settings import Settings


def scratch_root(settings: Settings) -> Path:
    """Where jobs run, next to the rest of the state."""
    return settings.state_dir.expanduser().absolute() / "scratch"


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


def sweep_scratch(root: Path) -> int:
    """Remove what killed workers left under `root`; returns how many. The kernel released their locks."""
    if not root.is_dir():
        return 0
    with _locked(root):
        return sum(_remove_if_orphaned(path) for path in root.glob("job-*"))


def _remove_if_orphaned(path: Path) -> bool:
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
