"""The database schema's history, applied by `app.shared.db.upgrade_schema` or by the alembic command."""
