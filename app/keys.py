"""API keys: `ar_<prefix>_<secret>`. The secret has 256 random bits, so its plain sha256 is what we keep."""

import hashlib
import hmac
import os
import secrets
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import ColumnElement, Select, or_, select, update
from sqlalchemy.orm import Session

from app.shared.db import db_now
from app.shared.ids import new_id
from app.shared.tables import ApiKey, Project

# All there are. To read is not part of to write: a key for uploads alone can be given away.
SCOPES = (
    *(f"{noun}:{action}" for noun in ("jobs", "models", "datasets", "uploads", "webhooks", "keys")
      for action in ("read", "write")),
    "system:read",
)  # fmt: skip
KEYS_WRITE = "keys:write"
DEFAULT_PROJECT = "default"
# How old the note of a key's last use may grow.
NOTED_EVERY_SECONDS = 600.0
# For so long a key that was found is not looked up again: a poller's key is asked for with every poll. This is also how
# long a key that is revoked at one gateway may still open another.
KNOWN_SECONDS = 1.0
MAX_KNOWN = 4096


@dataclass(frozen=True)
class FoundKey:
    """A key that is one of ours, and whether it still opens anything."""

    row: ApiKey
    expired: bool
    # The note of its last use is missing or old.
    to_note: bool


class KnownKeys:
    """Keys that were just found, by the digest of what was presented. Keys that are none of ours are not kept."""

    def __init__(self, *, seconds: float = KNOWN_SECONDS) -> None:
        self._seconds = seconds
        self._found: dict[str, tuple[float, FoundKey]] = {}

    def get(self, key: str) -> FoundKey | None:
        """The key, if it was found a moment ago."""
        until, found = self._found.get(_sha256(key), (0.0, None))
        return found if time.monotonic() < until else None

    def keep(self, key: str, found: FoundKey) -> None:
        """For a moment, the key need not be looked up."""
        if len(self._found) >= MAX_KNOWN:
            self.forget()
        self._found[_sha256(key)] = (time.monotonic() + self._seconds, found)

    def forget(self) -> None:
        """Look every key up again: one of them was revoked."""
        self._found.clear()


class KeyUses:
    """Which keys were used: noted here by requests, which must not wait for a writer, and written by the relay."""

    def __init__(self) -> None:
        self._used: set[str] = set()

    def note(self, key_id: str) -> None:
        """The key was used now."""
        self._used.add(key_id)

    def write(self, session: Session) -> None:
        """Write what was noted. What is lost here, when the transaction fails, is noted again by the next request."""
        used, self._used = self._used, set()
        if used:
            session.execute(update(ApiKey).where(ApiKey.id.in_(used)).values(last_used_at=db_now()))


def add_api_key(
    session: Session,
    *,
    project_id: str,
    name: str,
    scopes: Sequence[str] = SCOPES,
    expires_at: float | None = None,
) -> tuple[ApiKey, str]:
    """Create a key; returns its row and, for the only time, the whole key."""
    key = f"ar_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}"
    row = _row(key, project_id=project_id, name=name, scopes=scopes, expires_at=expires_at)
    session.add(row)
    session.flush()
    return row, key


def create_api_key(session: Session, *, project_id: str, name: str, scopes: Sequence[str] = SCOPES) -> str:
    """Create a key and return it whole: the only moment it can be read."""
    return add_api_key(session, project_id=project_id, name=name, scopes=scopes)[1]


def find_api_key(session: Session, key: str) -> FoundKey | None:
    """The key that was presented, or None when it is not one of ours or was revoked."""
    found = _find(session, ApiKey.prefix == _prefix(key))
    if found is None or not hmac.compare_digest(found.row.secret_sha256, _sha256(key)):
        return None
    return found


def find_key_of_id(session: Session, key_id: str) -> FoundKey | None:
    """The key somebody has presented before; None when it was revoked meanwhile."""
    return _find(session, ApiKey.id == key_id)


def _find(session: Session, condition: ColumnElement[bool]) -> FoundKey | None:
    now = db_now()
    expired, noted = ApiKey.expires_at <= now, ApiKey.last_used_at > now - NOTED_EVERY_SECONDS
    asked = select(ApiKey, expired, noted).where(condition, ApiKey.revoked_at.is_(None))
    found = session.execute(asked).one_or_none()
    return FoundKey(found[0], expired=bool(found[1]), to_note=not found[2]) if found is not None else None


def live_keys(project_id: str) -> Select[ApiKey]:
    """The project's keys that open something."""
    unexpired = or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > db_now())
    return select(ApiKey).where(ApiKey.project_id == project_id, ApiKey.revoked_at.is_(None), unexpired)


def ensure_project(session: Session, name: str = DEFAULT_PROJECT) -> Project:
    """The project of that name, created if it is not there."""
    project = session.scalar(select(Project).where(Project.name == name))
    if project is None:
        project = Project(id=new_id("prj"), name=name)
        session.add(project)
        session.flush()
    return project


def ensure_key_file(session: Session, path: Path) -> str:
    """The key in `path`, made if there is none. A key already in the file stays valid, even for a new database."""
    project = ensure_project(session)
    try:
        key = path.read_text().strip()
    except FileNotFoundError:
        key = ""
    if not key.startswith("ar_"):
        key = create_api_key(session, project_id=project.id, name=path.name)
        _write_private(path, key + "\n")
    elif (found := find_api_key(session, key)) is None:
        session.add(_row(key, project_id=project.id, name=path.name, scopes=SCOPES))
        session.flush()
    else:
        found.row.scopes = list(SCOPES)  # it is the operator's: after an upgrade it may what there is to do now
    return key


def _row(key: str, *, project_id: str, name: str, scopes: Sequence[str], expires_at: float | None = None) -> ApiKey:
    return ApiKey(
        id=new_id("key"),
        project_id=project_id,
        name=name,
        prefix=_prefix(key),
        secret_sha256=_sha256(key),
        scopes=list(scopes),
        expires_at=expires_at,
    )


def _write_private(path: Path, text: str) -> None:
    descriptor, unfinished = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    os.replace(unfinished, path)


def _prefix(key: str) -> str:
    return key.removeprefix("ar_").split("_", 1)[0][:16]


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
