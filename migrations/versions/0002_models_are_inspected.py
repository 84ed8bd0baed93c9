"""What the inspection of a model found, and when it was deleted; keys that may submit jobs may register models."""

import json
from collections.abc import Callable

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True)
SCOPE = "models:write"
KEYS = sa.table("api_keys", sa.column("id", sa.String), sa.column("scopes", sa.JSON))


def upgrade() -> None:
    # Models that are already there become `inspecting`, so the workers' sweep has them inspected.
    op.add_column("models", sa.Column("state", sa.String(40), nullable=False, server_default="inspecting"))
    for name in ("facts", "blocks", "error"):
        op.add_column("models", sa.Column(name, JSON, nullable=True))
    for name in ("inspected_at", "deleted_at"):
        op.add_column("models", sa.Column(name, sa.Double(), nullable=True))
    op.create_index("ix_models_state", "models", ["state"])
    op.create_index("ix_models_storage_key", "models", ["storage_key"])
    op.create_index("ix_job_inputs_storage_key", "job_inputs", ["storage_key"])
    # They could upload models all along, together with a job.
    change_scopes(lambda scopes: [*scopes, SCOPE] if "jobs:write" in scopes and SCOPE not in scopes else scopes)


def downgrade() -> None:
    change_scopes(lambda scopes: [scope for scope in scopes if scope != SCOPE])
    op.drop_index("ix_job_inputs_storage_key", "job_inputs")
    op.drop_index("ix_models_storage_key", "models")
    op.drop_index("ix_models_state", "models")
    for name in ("deleted_at", "inspected_at", "error", "blocks", "facts", "state"):
        op.drop_column("models", name)


def change_scopes(change: Callable[[list[str]], list[str]]) -> None:
    connection = op.get_bind()
    for row in connection.execute(sa.select(KEYS)).all():
        scopes = json.loads(row.scopes) if isinstance(row.scopes, str) else row.scopes
        connection.execute(KEYS.update().where(KEYS.c.id == row.id).values(scopes=change(scopes)))
