"""The engine's checkpoints on their way to the store and back: bytes of a hostile process, never looked into.

Only plain files of plain names and of a bounded size are taken, from descriptors, so that a link or a file that is
changed meanwhile cannot make the worker publish something of its own.
"""

import os
import re
import stat
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import structlog
from obstore.exceptions import BaseError as StoreError
from sqlalchemy.exc import SQLAlchemyError

CHECKPOINTS = "checkpoints"
EVERY_SECONDS = 30.0
# Uploading may take this share of the time, or large checkpoints would do nothing else.
UPLOAD_SHARE = 0.1
MAX_FILES = 1000
# What the engine is still writing ends in `.partial` and is not taken.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_PARTIAL = ".partial"


class UnfitCheckpoint(Exception):
    """The engine's checkpoints cannot be taken as they are."""


@dataclass(frozen=True)
class _File:
    name: str
    size_bytes: int
    changed_ns: int
    stream: BinaryIO


def pack_checkpoints(work: Path, target: Path, *, max_bytes: int) -> bool:
    """Write the files of `work/checkpoints` to the archive `target`. False: there are none. Raises UnfitCheckpoint."""
    with _opened(work) as files:
        if not files:
            return False
        if len(files) > MAX_FILES or sum(file.size_bytes for file in files) > max_bytes:
            raise UnfitCheckpoint(f"{len(files)} files are more than {MAX_FILES}, or more than {max_bytes:,} bytes")
        with tarfile.open(target, "w") as archive:
            for file in files:
                member = tarfile.TarInfo(file.name)
                member.size = file.size_bytes
                try:
                    archive.addfile(member, file.stream)
                except OSError as error:  # it has become shorter
                    raise UnfitCheckpoint(f"a file changed while it was read: {error}") from error
    return True


def unpack_checkpoints(source: Path, work: Path, *, max_bytes: int) -> None:
    """Put the files of the archive where the engine looks for them. Raises UnfitCheckpoint, and then puts none."""
    target, total = work / CHECKPOINTS, 0
    target.mkdir()
    try:
        with tarfile.open(source, "r:") as archive:
            for member in archive:
                total += member.size
                if not member.isreg() or not _NAME.fullmatch(member.name) or total > max_bytes:
                    raise UnfitCheckpoint(f"{member.name[:200]!r} is no plain file within {max_bytes:,} bytes")
                content = archive.extractfile(member)
                assert content is not None
                with (target / member.name).open("xb") as file:
                    while chunk := content.read(1 << 20):
                        file.write(chunk)
    except (tarfile.TarError, UnfitCheckpoint, FileExistsError) as error:
        for path in target.iterdir():
            path.unlink()
        target.rmdir()
        raise UnfitCheckpoint(str(error)) from error


def fingerprint(work: Path) -> tuple[tuple[str, int, int], ...]:
    """Tells whether the checkpoints have changed; empty when there are none."""
    with _opened(work) as files:
        return tuple((file.name, file.size_bytes, file.changed_ns) for file in files)


@contextmanager
def _opened(work: Path) -> Iterator[Sequence[_File]]:
    with ExitStack() as stack:
        try:
            directory = os.open(work / CHECKPOINTS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # none yet, or the engine has put something else there
            yield ()
            return
        stack.callback(os.close, directory)
        files = []
        for name in sorted(os.listdir(directory))[: MAX_FILES + 1]:
            if _NAME.fullmatch(name) and not name.endswith(_PARTIAL):
                file = _open_plain(name, directory)
                if file is not None:
                    stack.callback(file.stream.close)
                    files.append(file)
        yield files


def _open_plain(name: str, directory: int) -> _File | None:
    try:
        # Without O_NONBLOCK a named pipe would hold us for ever.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except OSError:  # a link, or replaced by now
        return None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        return None
    return _File(name, status.st_size, status.st_mtime_ns, os.fdopen(descriptor, "rb"))


class CheckpointKeeper:
    """Carries changed checkpoints to the store while an engine runs. `store` gets the archive; False: lease lost."""

    def __init__(self, work: Path, archive: Path, store: Callable[[Path], bool], *, max_bytes: int) -> None:
        self._work, self._archive, self._store, self._max_bytes = work, archive, store, max_bytes
        self._stored: tuple[tuple[str, int, int], ...] = fingerprint(work)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """No more while the engine runs; an upload that is on its way is waited for."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        pause_seconds = EVERY_SECONDS
        while not self._closed.wait(pause_seconds):
            started_at = time.monotonic()
            self.keep()
            pause_seconds = max(EVERY_SECONDS, (time.monotonic() - started_at) / UPLOAD_SHARE)

    def keep(self) -> None:
        """Store the checkpoints if they have changed; where that fails, the earlier ones stay good."""
        now = fingerprint(self._work)
        if not now or now == self._stored:
            return
        try:
            if pack_checkpoints(self._work, self._archive, max_bytes=self._max_bytes) and self._store(self._archive):
                self._stored = now
        except (UnfitCheckpoint, StoreError, SQLAlchemyError, OSError) as error:
            structlog.get_logger().warning("checkpoints not stored", error=f"{type(error).__name__}: {error}")
        finally:
            self._archive.unlink(missing_ok=True)
