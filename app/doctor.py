"""`python -m app.doctor [--json]`: is this gateway's deployment well? Ends with 1 when something is not."""

import json
import socket
import sys
import urllib.error
import urllib.request
from importlib.metadata import version
from typing import Any

from sqlalchemy import or_, select

from app.shared.checks import SHARED, asking, check_disk
from app.shared.checkup import Check, Finding, fail, main, ok, warn
from app.shared.db import db_now
from app.shared.disk import local_store
from app.shared.settings import GIB, Settings
from app.shared.tables import ApiKey

ANSWER_SECONDS = 5.0
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def check_keys(settings: Settings) -> Finding:
    """Somebody is let in: the gateway does not start otherwise."""
    valid = (ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > db_now()))
    with asking(settings) as session:
        found = session.scalar(select(ApiKey.id).where(*valid).limit(1))
    if found is None:
        return fail("no API key is valid", "Run `python -m app.projects key default --another`.")
    return ok("there are valid API keys")


def check_port(settings: Settings) -> Finding:
    """Where the gateway listens, it or nobody listens."""
    host, port = settings.host, settings.port
    place = f"{host}:{port}"
    if not _accepts(EVERYWHERE.get(host, host), port):
        return ok(f"{place} is free: no gateway runs here")
    document = _document(f"http://{EVERYWHERE.get(host, host)}:{port}/openapi.json")
    if document is None or document.get("title") != "ArchRepair":
        hint = "End that program, or choose another port: ARCHREPAIR_PORT (up), --port (uvicorn)."
        return fail(f"another program listens at {place}", hint)
    if document.get("version") != version("archrepair"):
        detail = f"the gateway at {place} is version {document.get('version')}, this one {version('archrepair')}"
        return warn(detail, "Start the gateway again.")
    return ok(f"the gateway answers at {place}")


def _accepts(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), ANSWER_SECONDS):
            return True
    except OSError:
        return False


def _document(url: str) -> dict[str, Any] | None:
    """The head of the gateway's OpenAPI document; None from whoever has none."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=ANSWER_SECONDS) as answer:
            return dict(json.load(answer)["info"])
    except (OSError, urllib.error.URLError, ValueError, KeyError, TypeError):
        return None


def check_store_disk(settings: Settings) -> Finding:
    """A local store has room for the largest upload; another one looks after itself."""
    path = local_store(settings).get("store")
    if path is None:
        return ok("the store is a server")
    return check_disk(path, little_bytes=2 * settings.upload_bytes, least_bytes=GIB)


CHECKS = (
    *SHARED,
    Check("api keys", check_keys, needs="schema"),
    Check("port", check_port),
    Check("store disk", check_store_disk),
)

if __name__ == "__main__":
    main(CHECKS, sys.argv[1:])
