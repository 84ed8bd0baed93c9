"""Alembic's entry: online migrations with the engine the service itself uses."""

from alembic import context
from sqlalchemy import Connection, text

from app.shared.db import make_engine
from app.shared.settings import Settings
from app.shared.tables import Base

# Any number, the same in every process: only one may migrate a Postgres at a time.
MIGRATION_LOCK = 7_220_461


def run(connection: Connection) -> None:
    """Run the asked migrations in one transaction; on SQLite too, since its DDL is transactional under our BEGIN."""
    context.configure(
        connection=connection, target_metadata=Base.metadata, render_as_batch=True, transactional_ddl=True
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        context.run_migrations()


def main() -> None:
    engine = make_engine(context.config.attributes.get("url") or Settings().database_url)
    try:
        with engine.connect() as connection:
            run(connection)
    finally:
        engine.dispose()


main()
