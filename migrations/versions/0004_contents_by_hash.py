"""Equal contents are found by their hash: on S3 a file stays under the key it came in with, which does not tell it."""

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TABLES = ("models", "uploads", "datasets", "job_inputs")


def upgrade() -> None:
    for table in TABLES:
        op.create_index(f"ix_{table}_sha256", table, ["sha256"])


def downgrade() -> None:
    for table in TABLES:
        op.drop_index(f"ix_{table}_sha256", table)
