"""What a person or a log sees while files travel and a job runs: bars on a terminal, a line now and then elsewhere."""

import os
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from archrepair_client.transfers import Transfer
from archrepair_client.types import Job

# A line is due at a new phase, and so long after the last one.
LINE_SECONDS = 30.0


class Display:
    """Shows transfers and a job on stderr, until the block ends."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        # A log that a CI keeps is no terminal, whatever colours are forced on it.
        self._live = not quiet and sys.stderr.isatty() and not os.environ.get("CI")
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
        self._bars = Progress(*columns, TimeElapsedColumn(), console=console, disable=not self._live)
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._told: tuple[str, str] = ("", "")
        self._told_at = 0.0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def transfer(self, transfer: Transfer) -> None:
        """So much of a file is through."""
        total = transfer.total_bytes or 0
        is_whole = transfer.done_bytes == total
        if self._live:
            self._bar(transfer.name, transfer.done_bytes, total or None)
        elif is_whole or self._is_due((transfer.name, "")):
            self._say(f"{transfer.name}: {transfer.done_bytes / 1e6:,.1f} of {total / 1e6:,.1f} MB")

    def job(self, job: Job) -> None:
        """The job has changed."""
        percent = job.progress.percent if job.progress else 0.0
        message = job.progress.message if job.progress else ""
        if self._live:
            self._bar(job.id, percent, 100.0, f"{job.id} {job.phase or job.status}: {message}"[:100])
        elif self._is_due((job.status, job.phase or "")):
            self._say(f"{percent:5.1f} %  {job.status}, {job.phase or 'waiting'}: {message}".rstrip(": "))

    def _bar(self, name: str, done: float, total: float | None, description: str | None = None) -> None:
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(description or name, total=total)
        self._bars.update(self._tasks[name], completed=done, total=total, description=description or name)

    def _is_due(self, what: tuple[str, str]) -> bool:
        if what == self._told and time.monotonic() - self._told_at < LINE_SECONDS:
            return False
        self._told, self._told_at = what, time.monotonic()
        return True

    def _say(self, line: str) -> None:
        if not self._quiet:
            self._console.print(line, markup=False)
