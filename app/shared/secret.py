"""The service's own secret, from which the signing secrets of webhooks are derived: they stand in no table."""

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from app.shared.settings import Settings

FILE_NAME = "secret-key"
MIN_CHARACTERS = 32


def service_secret(settings: Settings) -> bytes:
    """`ARCHREPAIR_SECRET_KEY`, the same for all gateways and workers; an embedded service makes one for itself.

    Raises ValueError where production has none.
    """
    if settings.secret_key:
        return settings.secret_key.encode()
    if not settings.database_url.startswith("sqlite"):
        raise ValueError(
            "no ARCHREPAIR_SECRET_KEY: webhooks are signed with what is derived from it. Set it, to the same value for "
            "all gateways and workers, e.g. from `openssl rand -base64 32`"
        )
    return _own_secret(settings.state_dir.expanduser().absolute() / FILE_NAME).encode()


def _own_secret(path: Path) -> str:
    """The secret in the file, made by whoever comes first; gateway and worker may come at once."""
    with suppress(FileNotFoundError):
        return path.read_text().strip()
    # A name of its own, not one by the process's id: in containers that share the directory many have the same.
    descriptor, unfinished = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
        with suppress(FileExistsError):
            os.link(unfinished, path)  # fails when another was faster, unlike a rename
    finally:
        os.unlink(unfinished)
    return path.read_text().strip()
