"""A new version migrates while the one before still runs: its code goes on on the new schema, and loses nothing."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import Engine, MetaData, Table, func, insert, select, update
from sqlalchemy.exc import OperationalError, ProgrammingError

from app.shared.db import make_engine, make_sessions, migration_config, upgrade_schema
from app.shared.labels import has_label
from app.shared.tables import Job
from tests.servers import Stack

BEFORE = "0002"
NOW = 1_790_000_000.0


@pytest.fixture
def url(stack: Stack, tmp_path: Path) -> str:
    """A database with the schema of the version before."""
    url = stack.fresh(tmp_path / "state").database_url
    command.downgrade(migration_config(url), "base")
    command.upgrade(migration_config(url), BEFORE)
    return url


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = make_engine(url)
    yield engine
    engine.dispose()


def tables_of_the_old_code(engine: Engine) -> dict[str, Table]:
    """Its tables, with exactly the columns that it knows."""
    metadata = MetaData()
    metadata.reflect(engine)
    return {table.name: table for table in metadata.sorted_tables if table.name != "alembic_version"}


def row_of(table: Table, number: int) -> dict[str, Any]:
    """A value for every column, as code writes that knows no other: references lead to the row of the same number."""
    values: dict[str, Any] = {}
    for column in table.columns:
        reference = next(iter(column.foreign_keys), None)
        kind = column.type.python_type
        if reference is not None:
            values[column.name] = f"{reference.column.table.name}-{number}"[:16]
        elif column.name in ("id", "name", "prefix") and kind is str:
            values[column.name] = f"{table.name}-{number}"[:16]
        elif column.autoincrement is True or (column.primary_key and kind is int):
            continue
        elif kind is str:
            values[column.name] = "queued" if column.name == "status" else "x"
        else:
            values[column.name] = {float: NOW, int: 1, bool: False, dict: {}, list: []}.get(kind, {})
    return values


def write_everywhere(engine: Engine, tables: dict[str, Table], number: int) -> None:
    with engine.begin() as connection:
        for table in tables.values():
            connection.execute(insert(table).values(row_of(table, number)))


def test_code_of_the_version_before_writes_and_reads_the_new_schema(url, engine):
    tables = tables_of_the_old_code(engine)
    assert {"jobs", "models", "artifacts", "outbox"} <= set(tables)
    write_everywhere(engine, tables, 1)
    upgrade_schema(url)
    write_everywhere(engine, tables, 2)
    with engine.begin() as connection:
        for table in tables.values():
            assert connection.scalar(select(func.count()).select_from(table)) == 2, table.name
            assert len(connection.execute(select(table)).first() or ()) == len(table.columns)
        jobs = tables["jobs"]
        connection.execute(update(jobs).values(status="succeeded", version=jobs.c.version + 1))


def test_jobs_that_are_there_are_found_by_their_metadata(url, engine):
    tables = tables_of_the_old_code(engine)
    pairs = {"git_sha": "8c1f2e0", "nul \x00 and ü": "1"}
    with engine.begin() as connection:
        for number in (1, 2):
            for name in ("projects", "models", "jobs"):
                connection.execute(insert(tables[name]).values(row_of(tables[name], number)))
        jobs = tables["jobs"]
        connection.execute(update(jobs).where(jobs.c.id == "jobs-1").values(metadata=pairs))
    upgrade_schema(url)
    with make_sessions(engine)() as session:
        for key, value in pairs.items():
            assert session.scalars(select(Job.id).where(has_label("projects-1", key, value))).all() == ["jobs-1"]
            assert session.scalars(select(Job.id).where(has_label("projects-2", key, value))).all() == []


def test_what_is_written_during_the_migration_is_there_after_it(url, engine):
    tables = tables_of_the_old_code(engine)
    stopped, written, refused = threading.Event(), [], []

    def write() -> None:
        number = 0
        while not stopped.is_set():
            number += 1
            try:
                write_everywhere(engine, tables, number)
            except (OperationalError, ProgrammingError) as error:
                refused.append(str(error))
            else:
                written.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    while len(written) < 5:
        time.sleep(0.01)
    before = len(written)
    upgrade_schema(url)
    deadline = time.monotonic() + 10
    while len(written) < before + 10 and time.monotonic() < deadline:
        time.sleep(0.01)
    stopped.set()
    writer.join()
    assert refused == []
    assert len(written) >= before + 10
    with engine.connect() as connection:
        for table in tables.values():
            assert connection.scalar(select(func.count()).select_from(table)) == len(written), table.name
