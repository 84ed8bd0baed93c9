"""Ids: a prefix that names the kind and a ULID, so that ids sort by creation and logs can be read."""

from ulid import ULID


def new_id(prefix: str) -> str:
    """A new id such as `job_01JD7R2M4N5P6Q7R8S9T0V1W2X`."""
    return f"{prefix}_{ULID()}"
