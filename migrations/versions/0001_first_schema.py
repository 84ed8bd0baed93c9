"""First schema: projects and keys, models, jobs with their inputs, attempts, events and artifacts, the outbox."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Children first: the order in which they can be dropped.
TABLES = (
    "outbox",
    "artifacts",
    "job_events",
    "attempts",
    "job_inputs",
    "jobs",
    "models",
    "api_keys",
    "projects",
)
JSON = sa.JSON(none_as_null=True)
BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    create_projects_and_keys()
    create_models()
    create_jobs()
    create_inputs_and_artifacts()
    create_history()
    create_outbox()


def downgrade() -> None:
    for table in TABLES:
        op.drop_table(table)


def text(name: str, length: int, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), nullable=nullable)


def time(name: str, *, nullable: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Double(), nullable=nullable)


def reference(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{target}.id"], name=f"fk_{table}_{column}")


def create_index(table: str, *columns: str) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns))


def create_projects_and_keys() -> None:
    op.create_table(
        "projects",
        text("id", 40),
        text("name", 200),
        time("created_at"),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
        sa.UniqueConstraint("name", name="uq_projects_name"),
    )
    op.create_table(
        "api_keys",
        text("id", 40),
        text("project_id", 40),
        text("name", 200),
        text("prefix", 16),
        text("secret_sha256", 64),
        sa.Column("scopes", JSON, nullable=False),
        time("created_at"),
        reference("api_keys", "project_id", "projects"),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("prefix", name="uq_api_keys_prefix"),
    )
    create_index("api_keys", "project_id")


def create_models() -> None:
    op.create_table(
        "models",
        text("id", 40),
        text("project_id", 40),
        text("filename", 255),
        text("sha256", 64),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        text("storage_key", 1024),
        time("created_at"),
        reference("models", "project_id", "projects"),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
    )
    create_index("models", "project_id", "created_at")


def create_jobs() -> None:
    op.create_table(
        "jobs",
        text("id", 40),
        text("project_id", 40),
        text("kind", 40),
        text("status", 40),
        text("phase", 40, nullable=True),
        sa.Column("phases", JSON, nullable=False),
        sa.Column("progress", JSON, nullable=True),
        sa.Column("spec", JSON, nullable=False),
        sa.Column("resolved_spec", JSON, nullable=True),
        sa.Column("result", JSON, nullable=True),
        text("verdict", 40),
        sa.Column("error", JSON, nullable=True),
        sa.Column("metadata", JSON, nullable=False),
        text("model_id", 40),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        text("owner", 200, nullable=True),
        time("lease_until", nullable=True),
        sa.Column("cancel_requested", sa.Boolean(), nullable=False),
        sa.Column("keep_best", sa.Boolean(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        time("created_at"),
        time("started_at", nullable=True),
        time("finished_at", nullable=True),
        time("updated_at"),
        sa.Column("version", sa.Integer(), nullable=False),
        reference("jobs", "project_id", "projects"),
        reference("jobs", "model_id", "models"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
    )
    create_index("jobs", "model_id")
    create_index("jobs", "project_id", "created_at")
    create_index("jobs", "status", "lease_until")
    create_index("jobs", "status", "priority", "created_at")


def create_inputs_and_artifacts() -> None:
    op.create_table(
        "job_inputs",
        text("job_id", 40),
        text("name", 200),
        text("filename", 255),
        text("sha256", 64),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        text("storage_key", 1024),
        reference("job_inputs", "job_id", "jobs"),
        sa.PrimaryKeyConstraint("job_id", "name", name="pk_job_inputs"),
    )
    op.create_table(
        "artifacts",
        text("id", 40),
        text("job_id", 40),
        sa.Column("attempt", sa.Integer(), nullable=False),
        text("name", 255),
        text("kind", 40),
        text("media_type", 255),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        text("sha256", 64),
        text("storage_key", 1024),
        time("created_at"),
        reference("artifacts", "job_id", "jobs"),
        sa.PrimaryKeyConstraint("id", name="pk_artifacts"),
    )
    create_index("artifacts", "job_id")


def create_history() -> None:
    op.create_table(
        "attempts",
        sa.Column("id", BIG_KEY, nullable=False),
        text("job_id", 40),
        sa.Column("number", sa.Integer(), nullable=False),
        text("owner", 200),
        time("started_at"),
        time("ended_at", nullable=True),
        text("cause", 40, nullable=True),
        reference("attempts", "job_id", "jobs"),
        sa.PrimaryKeyConstraint("id", name="pk_attempts"),
    )
    create_index("attempts", "job_id", "number")
    op.create_table(
        "job_events",
        sa.Column("seq", BIG_KEY, nullable=False),
        text("job_id", 40),
        text("type", 40),
        sa.Column("data", JSON, nullable=False),
        time("created_at"),
        reference("job_events", "job_id", "jobs"),
        sa.PrimaryKeyConstraint("seq", name="pk_job_events"),
        sqlite_autoincrement=True,
    )
    create_index("job_events", "job_id", "seq")


def create_outbox() -> None:
    op.create_table(
        "outbox",
        sa.Column("id", BIG_KEY, nullable=False),
        text("topic", 40),
        sa.Column("body", JSON, nullable=False),
        time("created_at"),
        time("sent_at", nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
    )
    create_index("outbox", "sent_at")
