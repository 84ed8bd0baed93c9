"""`python -m tests.operation.settings_table` writes the table of all settings into docs/operation.md."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic_settings import BaseSettings

from app.shared.settings import Settings
from worker.hardware import WorkerSettings
from worker.limits import EngineLimits

PAGE = Path(__file__).parents[2] / "docs/operation.md"
BEGIN, END = "<!-- settings: begin -->\n", "<!-- settings: end -->"
TABLES: tuple[tuple[str, type[BaseSettings]], ...] = (
    ("Of gateways and workers", Settings),
    ("Of workers", WorkerSettings),
    ("Of one engine, set by its worker", EngineLimits),
)
SERVERS = {"database_url": "postgresql+psycopg://h/d", "broker_url": "redis://h/0", "store_url": "s3://b"}
# What a machine or a choice of deployment decides.
IN_WORDS = {
    "state_dir": "`~/.archrepair`",
    "database_url": "embedded: a file in the state directory",
    "store_url": "embedded: a directory there",
    "data_bytes": "the machine's memory",
}
UNITS = (("_bytes", "bytes"), ("_seconds", "s"), ("_days", "days"))
SIZES = ((1024**4, "TiB"), (1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"))


def table_text() -> str:
    """Everything between the two marks."""
    return "\n".join(line for title, model in TABLES for line in _table(title, model))


def _table(title: str, model: type[BaseSettings]) -> Iterator[str]:
    yield from ("", f"**{title}**", "", "| variable | default | unit | meaning |", "|---|---|---|---|")
    embedded, production = _defaults(model)
    prefix = model.model_config["env_prefix"]
    for name, field in model.model_fields.items():
        default = IN_WORDS.get(name) or _shown(name, embedded[name])
        if name not in IN_WORDS and production[name] != embedded[name] and name not in SERVERS:
            default += f"; production {_shown(name, production[name])}"
        yield f"| `{prefix}{name.upper()}` | {default} | {_unit(name)} | {field.description} |"
    yield ""


def _defaults(model: type[BaseSettings]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Without any variable, and with three servers."""
    found = model(_env_file=None)
    if model is not Settings:
        return found.model_dump(), found.model_dump()
    return found.model_dump(), Settings(**SERVERS).model_dump()


def _unit(name: str) -> str:
    if name.startswith("rate_limit_"):
        return "a minute"
    return next((unit for ending, unit in UNITS if name.endswith(ending)), "")


def _shown(name: str, value: Any) -> str:
    if value is None or value in ("", ()):
        return "none"
    if isinstance(value, tuple):
        return f"`[{', '.join(f'{item:g}' for item in value)}]`"
    if name.endswith("_bytes"):
        return next(f"{value // size} {unit}" for size, unit in SIZES if value % size == 0)
    return f"{value:,g}" if isinstance(value, float) else f"{value:,}" if _is_count(name, value) else f"`{value}`"


def _is_count(name: str, value: Any) -> bool:
    return isinstance(value, int) and not name.endswith("port")


def main() -> None:
    """Write it."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + BEGIN + table_text() + "\n" + END + rest.partition(END)[2])


if __name__ == "__main__":
    for variable in [name for name in os.environ if name.startswith("ARCHREPAIR_")]:
        del os.environ[variable]
    main()
