"""`python -m app.prepare`: bring the schema up to date and make the first API key. Safe to repeat, and to race."""

from pathlib import Path

from app.keys import ensure_key_file
from app.shared.db import make_engine, make_sessions, upgrade_schema
from app.shared.settings import Settings


def prepare(settings: Settings) -> Path:
    """Make state directory, schema and key file; returns the key file's path."""
    state_dir = settings.state_dir.expanduser().absolute()
    state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    upgrade_schema(settings.database_url)
    engine = make_engine(settings.database_url)
    try:
        # Inside the transaction: SQLite's one writer is also the lock on the key file.
        with make_sessions(engine).begin() as session:
            ensure_key_file(session, state_dir / "api-key")
    finally:
        engine.dispose()
    return state_dir / "api-key"


def main() -> None:
    """Prepare, and print where the key is."""
    print(prepare(Settings()))  # noqa: T201  the answer of this command


if __name__ == "__main__":
    main()
