"""What gateway and worker both need of a deployment, looked at with the settings in force. Nothing is changed by it.

Each function is the `look` of a check: `app.doctor` and `worker.doctor` have the tables.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote, urlsplit

import obstore
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from obstore.exceptions import BaseError as StoreError
from obstore.store import ObjectStore
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.retry import Retry
from sqlalchemy import Connection, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from ulid import ULID

from app.shared.checkup import Check, Finding, fail, failed_with, ok, warn
from app.shared.db import db_now, make_engine, make_sessions, migration_config, read_only
from app.shared.disk import existing, free_bytes
from app.shared.queue import RING_EXPIRES_SECONDS
from app.shared.secret import FILE_NAME
from app.shared.settings import GIB, Settings
from app.shared.storage import UPLOADS, delete, open_store
from app.shared.tables import Job, WorkerRow
from app.shared.workers import is_live

# A ring is void when its sender's clock and its reader's are so far apart; half of it is too near.
MOST_SKEW_SECONDS = RING_EXPIRES_SECONDS / 2
SUSPECT_SKEW_SECONDS = 5.0
BROKER_SECONDS = 3.0
PROBE = b"archrepair doctor"
_CODE_OF_S3 = re.compile(r"<Code>(\w+)</Code>")
NOT_YET = "Nothing to do: `archrepair up` makes it when it first starts."
DATABASE_HINT = "Check ARCHREPAIR_DATABASE_URL: host, port, database, user and password; and that the server is up."
STORE_HINT = (
    "Check ARCHREPAIR_STORE_URL, AWS_ENDPOINT_URL and the keys: they must read, write and delete in this bucket."
)


def check_database(settings: Settings) -> Finding:
    """It answers, and lets this user write."""
    if (file := database_file(settings)) is not None and not file.exists():
        return warn(f"there is no {file} yet", NOT_YET)
    started = time.monotonic()
    try:
        with connected(settings, writing=True) as connection:
            milliseconds = (time.monotonic() - started) * 1000
            # Touches no row, and is refused all the same where nothing may be written.
            if _has_schema(connection):
                connection.execute(text("UPDATE alembic_version SET version_num = version_num WHERE 1 = 0"))
            connection.rollback()
    except ModuleNotFoundError as error:
        return failed_with(error, "Install the driver: pip install 'archrepair[postgres]'.")
    except SQLAlchemyError as error:
        return failed_with(getattr(error, "orig", None) or error, DATABASE_HINT)
    return ok(f"{shown_database(settings)} answers in {milliseconds:.0f} ms and may be written")


def check_schema(settings: Settings) -> Finding:
    """It is of the revision this code was written for."""
    scripts = ScriptDirectory.from_config(migration_config(settings.database_url))
    head = scripts.get_current_head()
    with connected(settings) as connection:
        found = MigrationContext.configure(connection).get_current_revision()
    if found == head:
        return ok(f"revision {found}, the newest")
    if found is None:
        return fail("the database has no schema", "Run `python -m app.prepare` once (compose and Kubernetes: migrate).")
    try:
        scripts.get_revision(found)
    except CommandError:
        detail = f"revision {found} is newer than this version, which knows up to {head}"
        return fail(detail, "Upgrade this installation to the version that migrated the database.")
    return fail(f"revision {found}, but this version needs {head}", "Run `python -m app.prepare`: it only adds.")


def check_clock(settings: Settings, now: Callable[[], float] = time.time) -> Finding:
    """The database's clock and this host's say the same."""
    with connected(settings) as connection:
        asked_at = now()
        theirs = connection.execute(select(db_now())).scalar_one()
        answered_at = now()
    # Within the time of the question nobody can tell.
    skew = max(asked_at - theirs, theirs - answered_at, 0.0)
    detail = f"{skew:.1f} s between this host and the database"
    hint = "Have both kept right by NTP: rings, signed URLs and signatures of webhooks are void with a wrong clock."
    if skew > MOST_SKEW_SECONDS:
        return fail(detail, hint)
    return warn(detail, hint) if skew > SUSPECT_SKEW_SECONDS else ok(detail)


def check_broker(settings: Settings) -> Finding:
    """It answers to the password it was given, and only to that."""
    if settings.broker_url is None:
        return warn(
            "none is configured",
            "Nothing to do for `archrepair up`, which brings its own; else set ARCHREPAIR_BROKER_URL.",
        )
    place = shown_server(settings.broker_url)
    try:
        with _broker(settings.broker_url) as broker:
            broker.ping()
        if not _asks_for_a_password(settings.broker_url):
            return warn(
                f"{place} answers, and lets in whoever asks",
                "Set a password (requirepass) and put it into ARCHREPAIR_BROKER_URL.",
            )
    except (AuthenticationError, NoPermissionError) as error:
        return failed_with(error, f"{place} refuses the user or password of ARCHREPAIR_BROKER_URL.")
    except (RedisError, OSError, ValueError) as error:
        return failed_with(error, f"Check that a Redis or Valkey answers at {place}, and ARCHREPAIR_BROKER_URL.")
    return ok(f"{place} answers, and asks for its password")


def _broker(url: str) -> Redis:
    return Redis.from_url(url, socket_connect_timeout=BROKER_SECONDS, socket_timeout=BROKER_SECONDS,
                          retry=Retry(NoBackoff(), 0))  # fmt: skip


def _asks_for_a_password(url: str) -> bool:
    parts = urlsplit(url)
    query = "&".join(pair for pair in parts.query.split("&") if not pair.startswith(("password=", "username=")))
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query).geturl()
    try:
        with _broker(bare) as broker:
            broker.ping()
    except RedisError:
        return True
    return False


def check_store(settings: Settings) -> Finding:
    """An object can be written, read and deleted; nothing of it is left."""
    parts = urlsplit(settings.store_url)
    if parts.scheme == "file" and not Path(unquote(parts.path)).is_dir():
        return warn(f"there is no directory {unquote(parts.path)} yet", NOT_YET)
    # Among unfinished uploads: what a doctor who was killed leaves behind is swept with them.
    key = f"{UPLOADS}/doctor-{ULID()}"
    try:
        store = open_store(settings.store_url, patient=False)
        return _probed(store, key, settings.store_url)
    except (StoreError, OSError, ValueError) as error:
        # What S3 says stands as XML at the end of a long text.
        code = _CODE_OF_S3.search(str(error))
        return fail(f"{type(error).__name__}: {code[1]}", STORE_HINT) if code else failed_with(error, STORE_HINT)


def _probed(store: ObjectStore, key: str, url: str) -> Finding:
    obstore.put(store, key, PROBE, use_multipart=False)
    try:
        came_back = bytes(obstore.get(store, key).bytes())
    finally:
        delete(store, key)
    if came_back != PROBE:
        return fail(f"{url} gave back {len(came_back)} other bytes than were written", STORE_HINT)
    try:
        obstore.head(store, key)
    except FileNotFoundError:
        return ok(f"{url} takes, gives and deletes an object")
    return warn(
        f"{url} still has {key} after it was deleted",
        "A bucket with versions or locks keeps what is deleted: bytes are never freed.",
    )


def check_secret(settings: Settings) -> Finding:
    """What webhooks are signed with is there."""
    if settings.secret_key:
        return ok("ARCHREPAIR_SECRET_KEY is set")
    if not settings.database_url.startswith("sqlite"):
        return fail(
            "no ARCHREPAIR_SECRET_KEY",
            "Set it, to the same value for all gateways and workers, e.g. from `openssl rand -base64 32`.",
        )
    path = settings.state_dir.expanduser() / FILE_NAME
    return ok(f"in {path}") if path.is_file() else warn(f"there is no {path} yet", NOT_YET)


def check_files(settings: Settings) -> Finding:
    """Nobody else may read what the state directory keeps secret."""
    state_dir = settings.state_dir.expanduser()
    if not state_dir.is_dir():
        return warn(f"there is no {state_dir} yet", NOT_YET)
    names = ("api-key", FILE_NAME)
    modes = {path: path.stat().st_mode & 0o777 for name in names if (path := state_dir / name).is_file()}
    is_embedded = settings.database_url.startswith("sqlite")
    if not modes and not is_embedded:
        return ok(f"no secret files in {state_dir}")  # a pod's scratch, which it may share with whom it likes
    if open_files := [path for path, mode in modes.items() if mode & 0o007]:
        words = " ".join(map(str, open_files))
        hint = f"chmod 600 {words}, and make new keys if others use this host."
        return fail(f"everybody on this host may read {words}", hint)
    if state_dir.stat().st_mode & 0o022 and not state_dir.stat().st_mode & 0o1000:
        return fail(f"others may change what is in {state_dir}", f"chmod 700 {state_dir}")
    if shared := [path for path, mode in modes.items() if mode & 0o070]:
        words = " ".join(map(str, shared))
        return warn(f"a group may read {words}", f"chmod 600 {words}, unless that is how your secrets are mounted.")
    return ok(f"{len(modes)} secret files in {state_dir}, for their owner alone")


def check_disk(path: Path, *, little_bytes: int, least_bytes: int) -> Finding:
    """There is room where `path` is, or will be."""
    free = free_bytes(path)
    detail = f"{free / GIB:.1f} GiB free in {existing(path)}"
    if free < least_bytes:
        return fail(detail, f"Free or add space; below {least_bytes / GIB:g} GiB jobs fail.")
    if free < little_bytes:
        return warn(detail, f"Add space: {little_bytes / GIB:g} GiB are what one job may bring.")
    return ok(detail)


def check_workers(settings: Settings) -> Finding:
    """Each queue in which jobs wait is served by a worker that lives, and none went silent."""
    counted = select(Job.queue, func.count()).where(Job.status == "queued").group_by(Job.queue)
    with asking(settings) as session:
        rows = session.execute(select(WorkerRow, is_live().label("live"))).all()
        waiting = session.execute(counted.order_by(Job.queue)).all()
    live = [row for row, is_alive in rows if is_alive]
    served = {queue for row in live for queue in row.queues}
    if unserved := [f"{count} in {queue}" for queue, count in waiting if queue not in served]:
        hint = "Start a worker of that queue; its log says why it did not start."
        return fail(f"jobs wait that no worker serves: {', '.join(unserved)}", hint)
    if not live:
        return warn("no worker lives", "Start one (python -m worker.celery_app), or jobs will wait.")
    counts = Counter("+".join(row.queues) for row in live)
    words = ", ".join(f"{count} of {queues}" for queues, count in sorted(counts.items()))
    if silent := sorted(row.name for row, is_alive in rows if not is_alive and not row.draining):
        hint = "Look whether it was killed, e.g. for memory; its jobs were taken back."
        return warn(f"{words} live; silent since less than a day: {', '.join(silent)}", hint)
    return ok(f"{words} live")


def check_versions(settings: Settings) -> Finding:
    """Workers run the version that is installed here."""
    mine = version("archrepair")
    with asking(settings) as session:
        found = Counter(session.scalars(select(WorkerRow.version).where(is_live())))
    others = {name: count for name, count in found.items() if name != mine}
    if others:
        words = ", ".join(f"{count} of {name}" for name, count in sorted(others.items()))
        return warn(
            f"{mine} here, but workers: {words}",
            "Between an upgrade's steps this is well; else bring all to one version.",
        )
    return ok(f"{mine} here and on {found.total()} live workers")


def database_file(settings: Settings) -> Path | None:
    """The file of an embedded service."""
    url = make_url(settings.database_url)
    if url.get_backend_name() != "sqlite" or not url.database or "mode" in url.query:
        return None
    return Path(url.database)


def shown_database(settings: Settings) -> str:
    """The database; not its password, nor the query, which may have one too."""
    return make_url(settings.database_url).set(query={}).render_as_string(hide_password=True)


def shown_server(url: str) -> str:
    """Host and port of a URL."""
    return urlsplit(url).netloc.rpartition("@")[2]


@contextmanager
def connected(settings: Settings, *, writing: bool = False) -> Iterator[Connection]:
    """A connection for one question."""
    engine = make_engine(settings.database_url)
    try:
        with (engine if writing else read_only(engine)).connect() as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def asking(settings: Settings) -> Iterator[Session]:
    """A session that only reads."""
    engine = make_engine(settings.database_url)
    try:
        with make_sessions(read_only(engine))() as session:
            yield session
    finally:
        engine.dispose()


def _has_schema(connection: Connection) -> bool:
    return MigrationContext.configure(connection).get_current_revision() is not None


SHARED = (
    Check("database", check_database),
    Check("schema", check_schema, needs="database"),
    Check("clock", check_clock, needs="database"),
    Check("broker", check_broker),
    Check("store", check_store),
    Check("secret", check_secret),
    Check("files", check_files),
    Check("workers", check_workers, needs="schema"),
    Check("versions", check_versions, needs="schema"),
)
