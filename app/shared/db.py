"""The database: engines for both dialects, the database's clock, and the schema's migrations."""

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Double, Engine, ExceptionContext, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from app.shared.metrics import DATABASE_ERRORS

SQLITE_BUSY_SECONDS = 20
WAL_RETRY_SECONDS = 0.05
# Together as many as the gateway has threads; no more than it needs are opened. What is over the size is closed after
# each use, so that a burst does not keep a server's connections.
POOL = {"pool_size": 16, "max_overflow": 24}
# What SQLAlchemy raises for a database that does not answer, or that ended a transaction which slept too long.
DATABASE_GONE = (OperationalError, InternalError)


class db_now(FunctionElement[float]):
    """SQL expression: epoch seconds by the *database's* clock, so that leases never depend on a worker's clock."""

    type = Double()
    inherit_cache = True


@compiles(db_now, "sqlite")
def _sqlite_now(_element: db_now, _compiler: SQLCompiler, **_options: Any) -> str:
    # Not unixepoch('subsec'): it is NULL on the SQLite 3.40 of Debian 12, and leases would never expire.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _postgresql_now(_element: db_now, _compiler: SQLCompiler, **_options: Any) -> str:
    return "extract(epoch from clock_timestamp())::double precision"


def make_engine(url: str, *, idle_seconds: float | None = None) -> Engine:
    """An engine for SQLite or Postgres (psycopg 3). On SQLite every transaction starts as a writer, see `read_only`.

    Its errors are logged, and do not tell what a statement was given: specs, URLs with signatures, digests of keys.
    `idle_seconds`: Postgres ends a transaction in which nothing happens for longer. A process that freezes in one would
    hold its locks until it wakes, and a job whose row is locked is passed over by those who would take it back.
    """
    if make_url(url).get_backend_name() != "sqlite":
        engine = create_engine(url, pool_pre_ping=True, hide_parameters=True, **POOL)
        event.listen(engine, "handle_error", _count_error)
        if idle_seconds is not None:
            event.listen(engine, "connect", partial(_end_idle_transactions, idle_seconds))
        return engine
    waiting = {"timeout": SQLITE_BUSY_SECONDS, "check_same_thread": False}
    engine = create_engine(url, connect_args=waiting, hide_parameters=True, **POOL)
    event.listen(engine, "handle_error", _count_error)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _count_error(context: ExceptionContext) -> None:
    """Count what is the database's doing. A broken constraint is ours, and handled where two callers may race."""
    if isinstance(context.sqlalchemy_exception, OperationalError | InterfaceError):
        DATABASE_ERRORS.labels(type(context.sqlalchemy_exception).__name__).inc()


def _end_idle_transactions(idle_seconds: float, dbapi_connection: Any, _record: Any) -> None:
    with dbapi_connection.cursor() as cursor:
        cursor.execute(f"SET idle_in_transaction_session_timeout = {max(1, round(idle_seconds * 1000))}")
    dbapi_connection.commit()


def read_only(engine: Engine) -> Engine:
    """The same pool for transactions that only read: on SQLite they do not wait for the one writer."""
    return engine.execution_options(archrepair_read_only=True)


def single_selects(engine: Engine) -> Engine:
    """The same pool for one SELECT at a time: no transaction is begun and ended around it."""
    return engine.execution_options(isolation_level="AUTOCOMMIT", archrepair_single_select=True)


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    """A factory of sessions; `with sessions.begin() as session:` is one transaction."""
    return sessionmaker(engine, expire_on_commit=False)


def _prepare_sqlite(dbapi_connection: Any, _record: Any) -> None:
    dbapi_connection.isolation_level = None  # the driver's own BEGIN would be a deferred one
    cursor = dbapi_connection.cursor()
    for pragma in ("synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that writes later fails at once with SQLITE_BUSY when another writer came between.
    options = connection.get_execution_options()
    if options.get("archrepair_single_select", False):
        return
    reads = options.get("archrepair_read_only", False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def migration_config(url: str) -> Config:
    """Alembic's configuration for the packaged migrations, from any working directory."""
    spec = find_spec("migrations")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package `migrations` is not installed next to `app`: reinstall archrepair")
    config = Config()
    config.set_main_option("script_location", str(Path(spec.origin).parent).replace("%", "%%"))
    config.attributes["url"] = url
    return config


def upgrade_schema(url: str) -> None:
    """Bring the database to the newest schema; safe when several processes do it at once.

    On SQLite this is also where the file becomes a WAL one, for good.
    """
    target = make_url(url)
    with _alone_on_sqlite(target.database) if target.get_backend_name() == "sqlite" else nullcontext():
        command.upgrade(migration_config(url), "head")


def _turn_to_wal(connection: sqlite3.Connection) -> None:
    """Whoever just looks at the file is in the way, too, and for this SQLite has no timeout."""
    until = time.monotonic() + SQLITE_BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(WAL_RETRY_SECONDS)
        else:
            return


@contextmanager
def _alone_on_sqlite(path: str | None) -> Iterator[None]:
    """Hold the database's directory: SQLite does not wait for a lock when it turns a file into a WAL one, it fails."""
    if not path or path == ":memory:":
        yield
        return
    directory = os.open(Path(path).resolve().parent, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        with closing(sqlite3.connect(path)) as connection:
            _turn_to_wal(connection)
        yield
    finally:
        os.close(directory)
