"""Epoch seconds, as the database keeps them, to the RFC 3339 text the API shows."""

from datetime import UTC, datetime


def rfc3339(epoch_seconds: float | None) -> str | None:
    """UTC with milliseconds, e.g. `2026-11-22T10:02:11.123Z`; None stays None."""
    if epoch_seconds is None:
        return None
    return datetime.fromtimestamp(epoch_seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
