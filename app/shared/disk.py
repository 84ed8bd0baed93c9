"""Room on this machine's disks."""

import shutil
from pathlib import Path
from urllib.parse import unquote, urlsplit

from app.shared.settings import Settings


def free_bytes(path: Path) -> int:
    """What is free where `path` is, or will be."""
    return shutil.disk_usage(existing(path)).free


def existing(path: Path) -> Path:
    """The path, or the nearest directory above it that there is."""
    return next(place for place in (path, *path.parents) if place.exists())


def local_store(settings: Settings) -> dict[str, Path]:
    """The directory of the object store by its name in metrics; nothing when it is a server."""
    parts = urlsplit(settings.store_url)
    return {"store": Path(unquote(parts.path))} if parts.scheme == "file" else {}
