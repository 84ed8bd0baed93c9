"""What kind of file an artifact is, by its name. Not by the machine's own table: some take `.pt` for a game's file."""

from pathlib import PurePath

UNKNOWN = "application/octet-stream"
MEDIA_TYPES = {
    ".csv": "text/csv",
    ".html": "text/html",
    ".json": "application/json",
    ".log": "text/plain",
    ".md": "text/markdown",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
    ".xml": "application/xml",
}


def media_type_of(name: str) -> str:
    """The media type of a file of that name; models are `application/octet-stream`."""
    return MEDIA_TYPES.get(PurePath(name).suffix.lower(), UNKNOWN)
