import json
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from app.shared.db import DATABASE_GONE, db_now, make_engine, make_sessions, migration_config, read_only, upgrade_schema
from app.shared.settings import Settings
from app.shared.tables import ApiKey, Base, Model, Project


def test_the_database_clock_is_epoch_seconds_with_a_fraction(sessions: sessionmaker[Session]):
    with sessions() as session:
        readings = []
        for _ in range(5):
            readings.append(session.scalar(select(db_now())))
            time.sleep(0.003)
    assert abs(readings[-1] - time.time()) < 2
    assert len(set(readings)) > 1, "the clock must move within a second, or short leases never expire"


def test_a_failed_statement_does_not_tell_its_values(sessions):
    with sessions() as session, pytest.raises(DBAPIError) as caught:
        session.execute(text("SELECT :given FROM no_such_table"), {"given": "SECRET-OF-A-STATEMENT"})
    assert "no_such_table" in str(caught.value)
    assert "SECRET-OF-A-STATEMENT" not in str(caught.value) + repr(caught.value)


def test_migrations_make_exactly_the_tables_of_the_code(settings: Settings):
    engine = make_engine(settings.database_url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()


def test_the_schema_can_be_taken_down_and_up_again(settings: Settings):
    command.downgrade(migration_config(settings.database_url), "base")
    engine = make_engine(settings.database_url)
    assert inspect(engine).get_table_names() == ["alembic_version"]
    upgrade_schema(settings.database_url)
    assert set(Base.metadata.tables) < set(inspect(engine).get_table_names())
    engine.dispose()


def test_models_of_an_older_service_wait_for_inspection_and_its_keys_may_register_models(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/older.db"
    command.upgrade(migration_config(url), "0001")
    engine = make_engine(url)
    with engine.begin() as connection:
        for statement in (
            "INSERT INTO projects VALUES ('prj', 'default', 1)",
            "INSERT INTO api_keys VALUES ('key_1', 'prj', 'ci', 'p1', 's', '[\"jobs:read\", \"jobs:write\"]', 1)",
            "INSERT INTO api_keys VALUES ('key_2', 'prj', 'dashboard', 'p2', 's', '[\"jobs:read\"]', 1)",
            "INSERT INTO models VALUES ('mdl', 'prj', 'm.pt', 's', 1, 'blobs/x', 1)",
            "INSERT INTO jobs (id, project_id, kind, status, phases, spec, verdict, metadata, model_id, attempt, "
            "max_attempts, cancel_requested, keep_best, priority, created_at, updated_at, version) "
            "VALUES ('job', 'prj', 'repair', 'failed', '[]', '{}', 'x', '{}', 'mdl', 1, 3, 0, 0, 0, 1, 1, 1)",
        ):
            connection.exec_driver_sql(statement)
    upgrade_schema(url)
    with make_sessions(engine)() as session:
        assert session.get_one(Model, "mdl").state == "inspecting"
        keys = {row.id: row.scopes for row in session.scalars(select(ApiKey))}
    # No key may make keys or webhooks that could not before.
    assert keys == {
        "key_1": ["jobs:read", "jobs:write", "models:write", "datasets:read", "uploads:read", "datasets:write",
                  "uploads:write"],
        "key_2": ["jobs:read", "datasets:read", "uploads:read"],
    }  # fmt: skip
    command.downgrade(migration_config(url), "0001")
    with engine.connect() as connection:
        scopes = connection.exec_driver_sql("SELECT scopes FROM api_keys ORDER BY id").scalars().all()
        assert [json.loads(row) for row in scopes] == [["jobs:read", "jobs:write"], ["jobs:read"]]
        assert connection.exec_driver_sql("SELECT model_id FROM jobs").scalars().all() == ["mdl"]
    engine.dispose()


@pytest.mark.slow
def test_several_processes_may_migrate_at_once(tmp_path: Path):
    url = f"sqlite:///{tmp_path}/new.db"
    code = f"from app.shared.db import upgrade_schema; upgrade_schema({url!r})"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]


def test_a_new_database_waits_for_whoever_looks_at_it(tmp_path: Path):
    with closing(sqlite3.connect(tmp_path / "new.db", check_same_thread=False)) as onlooker:
        onlooker.executescript("CREATE TABLE t (x); BEGIN; SELECT * FROM t")
        onlooker.execute("SELECT * FROM t").fetchall()
        gone = threading.Timer(0.5, onlooker.rollback)
        gone.start()
        upgrade_schema(f"sqlite:///{tmp_path}/new.db")
        assert not gone.is_alive(), "it was in the way"
    with closing(sqlite3.connect(tmp_path / "new.db")) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_migrating_does_not_depend_on_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    upgrade_schema(f"sqlite:///{tmp_path}/100%.db")
    assert (tmp_path / "100%.db").exists()


def test_a_reader_does_not_wait_for_the_writer(settings: Settings):
    engine = make_engine(settings.database_url)
    writers, readers = make_sessions(engine), make_sessions(read_only(engine))
    with writers.begin() as writer:
        writer.add(Project(id="prj_x", name="unfinished"))
        writer.flush()
        started = time.monotonic()
        with readers() as reader:
            assert reader.scalar(select(Project.name).where(Project.id == "prj_x")) is None
        assert time.monotonic() - started < 1
    engine.dispose()


@pytest.mark.parametrize("stack", ["production"], indirect=True)
def test_who_freezes_in_a_transaction_loses_its_locks(settings: Settings):
    frozen, other = make_engine(settings.database_url, idle_seconds=0.2), make_engine(settings.database_url)
    with make_sessions(other).begin() as session:
        session.add(Project(id="prj_1", name="p"))
    locked = select(Project).where(Project.id == "prj_1").with_for_update()
    with make_sessions(frozen)() as sleeper, make_sessions(other)() as waiter:
        sleeper.execute(locked)
        began = time.monotonic()
        waiter.execute(locked)
        assert 0.1 < time.monotonic() - began < 5
        with pytest.raises(DATABASE_GONE):
            sleeper.execute(locked)
    frozen.dispose()
    other.dispose()


def test_two_writers_of_sqlite_take_turns_instead_of_failing(embedded, tmp_path: Path):
    engine = make_engine(embedded.fresh(tmp_path / "state").database_url)
    sessions = make_sessions(engine)
    names = [f"p{number}" for number in range(8)]

    def write(name: str):
        with sessions.begin() as session:
            seen = session.scalars(select(Project.id)).all()
            session.add(Project(id=f"prj_{name}", name=f"{name} after {len(seen)}"))

    threads = [threading.Thread(target=write, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with sessions() as session:
        counts = {
            int(name.split()[-1]) for name in session.scalars(select(Project.name).where(Project.name.like("p%")))
        }
    engine.dispose()
    assert len(counts) == len(names), "each must have seen the rows of those before it"
