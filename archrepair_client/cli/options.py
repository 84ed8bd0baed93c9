"""Options that several commands have, and the client of the current command."""

from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from archrepair_client.client import ArchRepair
from archrepair_client.errors import BadInput

AsJson = Annotated[bool, typer.Option("--json", help="Data as JSON, for programs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Ids only on stdout, and nothing but errors on stderr.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="job_…")]
Metadata = Annotated[
    list[str] | None, typer.Option("--metadata", "-m", metavar="KEY=VALUE", help="Pairs to find it by; repeatable.")
]
Limit = Annotated[int, typer.Option("--limit", "-n", min=1, help="At most so many, the newest first.")]
Timeout = Annotated[str | None, typer.Option("--timeout", help="Stop waiting after so long: 90, 55m, 2h.")]
SECONDS_OF = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


@dataclass(frozen=True)
class Flags:
    """What was said before the command."""

    url: str | None = None
    key_file: Path | None = None


FLAGS = ContextVar("FLAGS", default=Flags())  # noqa: B039  frozen


def connected() -> ArchRepair:
    """A client of the service that flags, environment, configuration file or this machine name."""
    flags = FLAGS.get()
    return ArchRepair(base_url=flags.url, api_key=_key_in(flags.key_file) if flags.key_file else None)


def _key_in(path: Path) -> str:
    try:
        return path.expanduser().read_text().strip()
    except OSError as error:
        raise BadInput(f"--key-file {path} cannot be read: {error.strerror}") from error


def pairs_of(items: list[str] | None, *, option: str) -> dict[str, str]:
    """KEY=VALUE items as a mapping. Raises BadInput."""
    pairs = {}
    for item in items or []:
        key, separator, value = item.partition("=")
        if not (key and separator):
            raise BadInput(f"{option} {item!r} is not KEY=VALUE")
        pairs[key] = value
    return pairs


def seconds_of(text: str | None) -> float | None:
    """`90`, `90s`, `55m` or `2h` in seconds. Raises BadInput."""
    if text is None:
        return None
    number, unit = (text[:-1], text[-1]) if text[-1:] in SECONDS_OF else (text, "s")
    try:
        seconds = float(number) * SECONDS_OF[unit]
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise BadInput(f"{text!r} is no time; say 90, 55m or 2h")
    return seconds
