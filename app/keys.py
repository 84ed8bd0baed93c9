"""API keys: `ar_<prefix>_<secret>`. The secret has 256 random bits, so its plain sha256 is what we keep."""

import hashlib
import hmac
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.shared.ids import new_id
from app.shared.tables import ApiKey, Project

SCOPES = ("jobs:read", "jobs:write", "models:read", "models:write", "system:read")
DEFAULT_PROJECT = "default"


def create_api_key(session: Session, *, project_id: str, name: str, scopes: Sequence[str] = SCOPES) -> str:
    """Create a key and return it whole: the only moment it can be read."""
    key = f"ar_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}"
    session.add(_row(key, project_id=project_id, name=name, scopes=scopes))
    session.flush()
    return key


def find_api_key(session: Session, key: str) -> ApiKey | None:
    """The row of a key that was presented, or None when it is not one of ours."""
    row = session.scalar(select(ApiKey).where(ApiKey.prefix == _prefix(key)))
    if row is None or not hmac.compare_digest(row.secret_sha256, _sha256(key)):
        return None
    return row


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
    elif find_api_key(session, key) is None:
        session.add(_row(key, project_id=project.id, name=path.name, scopes=SCOPES))
        session.flush()
    return key


def _row(key: str, *, project_id: str, name: str, scopes: Sequence[str]) -> ApiKey:
    return ApiKey(
        id=new_id("key"),
        project_id=project_id,
        name=name,
        prefix=_prefix(key),
        secret_sha256=_sha256(key),
        scopes=list(scopes),
    )


def _write_private(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    unfinished.replace(path)


def _prefix(key: str) -> str:
    return key.removeprefix("ar_").split("_", 1)[0][:16]


def _sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
