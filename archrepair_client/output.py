"""Data goes to stdout, messages to stderr. Tables are for people; who pipes gets tabs, or asks for JSON."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from archrepair_client.types import Answer, Job

Column = Callable[[Any], Any]


@dataclass(frozen=True)
class Output:
    """How a command was asked to speak."""

    as_json: bool = False
    quiet: bool = False

    def note(self, message: str) -> None:
        """Something to know, which is no data."""
        if not self.quiet:
            Console(stderr=True, highlight=False, soft_wrap=True).print(message, markup=False)

    def items(self, items: Iterable[Answer], columns: Mapping[str, Column]) -> None:
        """A list: a table, tab-separated lines without a heading where nobody looks, JSON, or ids."""
        found = list(items)
        if self.as_json:
            write_json([item.model_dump(mode="json") for item in found])
            return
        if self.quiet:
            write_lines(str(getattr(item, "id", "") or getattr(item, "name", "")) for item in found)
            return
        rows = [[_as_text(column(item)) for column in columns.values()] for item in found]
        if not sys.stdout.isatty():
            write_lines("\t".join(row) for row in rows)
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in columns:
            table.add_column(name.upper(), overflow="fold")
        for row in rows:
            table.add_row(*row)
        Console().print(table, markup=False)

    def item(self, item: Answer, fields: Mapping[str, Column]) -> None:
        """One thing: its fields a line each, JSON, or its id."""
        if self.as_json:
            write_json(item.model_dump(mode="json"))
        elif self.quiet:
            write_lines([str(getattr(item, "id", ""))])
        else:
            shown = {name: value for name, field in fields.items() if (value := _as_text(field(item)))}
            width = max(map(len, shown), default=0)
            write_lines(f"{name:<{width}}  {value}" for name, value in shown.items())


def write_lines(lines: Iterable[str]) -> None:
    """Lines of data, each as soon as it is there. A reader who has had enough, like `head`, ends nothing else."""
    try:
        for line in lines:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_json(data: Any) -> None:
    """Data for programs."""
    write_lines([json.dumps(data, ensure_ascii=False, indent=2)])


def _as_text(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else " ".join(str(value).split())


def reason_of(job: Job) -> str | None:
    """Why it came out so: the error of a job that failed, what the engine says of another."""
    if job.error is not None:
        return " ".join(filter(None, (f"{job.error.code}: {job.error.detail}", job.error.hint)))
    return (job.result or {}).get("reason")


JOB_COLUMNS: Mapping[str, Column] = {
    "id": lambda job: job.id,
    "kind": lambda job: job.kind,
    "status": lambda job: job.status,
    "verdict": lambda job: job.verdict,
    "phase": lambda job: job.phase if not job.done else "",
    "created": lambda job: job.created_at,
    "metadata": lambda job: job.metadata,
}
JOB_FIELDS: Mapping[str, Column] = {
    **JOB_COLUMNS,
    "progress": lambda job: f"{job.progress.percent:.0f} % {job.progress.message}" if job.progress else "",
    "queue": lambda job: f"place {job.queue.position} of {job.queue.name}" if job.queue else "",
    "started": lambda job: job.started_at,
    "finished": lambda job: job.finished_at,
    "estimated end": lambda job: job.estimated_finish_at if not job.done else None,
    "model": lambda job: job.model_id,
    "outcome": lambda job: job.outcome,
    "reason": reason_of,
    "files": lambda job: [artifact.name for artifact in job.artifacts],
    "expires": lambda job: job.expires_at,
}


def gate_lines(gates: Iterable[Any]) -> Iterable[str]:
    """A line per gate: what came of it, the gate, and why."""
    for gate in gates:
        found = gate if isinstance(gate, Mapping) else gate.model_dump()
        yield f"{found.get('state', ''):<13} {found.get('expression', '')}  ({found.get('reason', '')})"
