"""What production needs: queues and deadlines of jobs, workers, idempotency, uploads, datasets, webhooks, quotas.

Only adds, with defaults by the server: the code before it goes on writing while this one comes up.
"""

import hashlib
import json
from collections.abc import Callable

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True)
ROWS_AT_ONCE = 1000
# Children first: the order in which they can be dropped.
TABLES = (
    "job_labels",
    "webhook_deliveries",
    "webhook_endpoints",
    "datasets",
    "upload_parts",
    "uploads",
    "idempotency_keys",
    "workers",
)
# What keys could do before by scopes that were wider then: data came and was seen with jobs.
IMPLIED_SCOPES = {
    "jobs:read": ("datasets:read", "uploads:read"),
    "jobs:write": ("datasets:write", "uploads:write"),
}
KEYS = sa.table("api_keys", sa.column("id", sa.String), sa.column("scopes", sa.JSON))
# What they may hold from now on: (table, column, length before, length, may be NULL).
LOOSENED = (("jobs", "model_id", 40, 40, True), ("job_inputs", "name", 200, 2048, False))
ADDED_INDEXES = (
    ("jobs", "project_id", "cache_key"),
    ("jobs", "project_id", "status", "created_at"),
    ("jobs", "project_id", "kind", "created_at"),
    ("jobs", "project_id", "verdict", "created_at"),
    ("jobs", "project_id", "model_id", "created_at"),
    ("jobs", "expires_at"),
    ("jobs", "deleted_at"),
    ("jobs", "kind", "queue", "status", "finished_at"),
    ("jobs", "checkpoint_key"),
)


def added() -> dict[str, tuple[sa.Column, ...]]:
    """Columns by table, new ones with every call: a column belongs to one table."""
    return {
        "projects": (sa.Column("quotas", JSON, nullable=False, server_default="{}"),),
        "api_keys": tuple(sa.Column(name, sa.Double()) for name in ("expires_at", "revoked_at", "last_used_at")),
        "models": (sa.Column("job_id", sa.String(40)),),
        "jobs": (
            sa.Column("hardware", sa.String(40), nullable=False, server_default="auto"),
            sa.Column("queue", sa.String(40), nullable=False, server_default="cpu"),
            sa.Column("deadline_at", sa.Double()),
            sa.Column("keep_seconds", sa.Double()),
            sa.Column("expires_at", sa.Double()),
            sa.Column("deleted_at", sa.Double()),
            sa.Column("retry_of", sa.String(40)),
            sa.Column("cache_key", sa.String(64)),
            sa.Column("checkpoint_key", sa.String(1024)),
            sa.Column("webhook", JSON),
            sa.Column("traceparent", sa.String(64)),
        ),
    }


def upgrade() -> None:
    for table, columns in added().items():
        for column in columns:
            op.add_column(table, column)
    for table, column, before, length, nullable in LOOSENED:
        change_column(table, column, (before, False), (length, nullable))
    for index in ADDED_INDEXES:
        create_index(*index)
    claimed_by = ["status", "project_id", "queue", "priority", "created_at", "id", "kind", "deadline_at"]
    op.create_index("ix_jobs_claim", "jobs", claimed_by)
    op.drop_index("ix_jobs_status_priority_created_at", "jobs")
    create_job_labels()
    create_workers()
    create_idempotency_keys()
    create_uploads()
    create_datasets()
    create_webhooks()
    change_scopes(lambda scopes: [*scopes, *(new for old in scopes for new in IMPLIED_SCOPES.get(old, ()))])


def downgrade() -> None:
    added_scopes = ("datasets:", "uploads:", "webhooks:", "keys:")
    change_scopes(lambda scopes: [scope for scope in scopes if not scope.startswith(added_scopes)])
    delete_what_does_not_fit()
    for table, column, before, length, nullable in LOOSENED:
        change_column(table, column, (length, nullable), (before, False))
    for table in TABLES:
        op.drop_table(table)
    op.drop_index("ix_jobs_claim", "jobs")
    create_index("jobs", "status", "priority", "created_at")
    for table, *columns in ADDED_INDEXES:
        op.drop_index(f"ix_{table}_{'_'.join(columns)}", table)
    for table, columns in added().items():
        for column in columns:
            op.drop_column(table, column.name)


def delete_what_does_not_fit() -> None:
    """Jobs that read datasets, and inputs under long names: the schema before has no place for them."""
    op.execute("DELETE FROM job_inputs WHERE length(name) > 200")
    for table in ("job_events", "job_inputs", "attempts", "artifacts"):
        op.execute(f"DELETE FROM {table} WHERE job_id IN (SELECT id FROM jobs WHERE model_id IS NULL)")
    op.execute("DELETE FROM jobs WHERE model_id IS NULL")


def change_column(table: str, column: str, before: tuple[int, bool], after: tuple[int, bool]) -> None:
    """Another length, and whether it may be NULL."""
    if op.get_bind().dialect.name == "sqlite":
        change_text_of_schema(table, column, before, after)
        return
    length, nullable = after
    op.alter_column(table, column, type_=sa.String(length), nullable=nullable, existing_type=sa.String(before[0]))


def change_text_of_schema(table: str, column: str, before: tuple[int, bool], after: tuple[int, bool]) -> None:
    """SQLite's own way for what does not touch the rows (lang_altertable.html).

    To make the table anew, as alembic would, fails while rows of others refer to it.
    """
    old, new = (f"{column} VARCHAR({length}){'' if nullable else ' NOT NULL'}" for length, nullable in (before, after))
    connection = op.get_bind()
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema=ON")
    changed = connection.exec_driver_sql(
        "UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE type = 'table' AND name = ? AND instr(sql, ?)",
        (old, new, table, old),
    )
    assert changed.rowcount == 1, f"the schema of {table} has no {old}"
    connection.exec_driver_sql(f"PRAGMA schema_version={version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema=OFF")


def change_scopes(change: Callable[[list[str]], list[str]]) -> None:
    connection = op.get_bind()
    for row in connection.execute(sa.select(KEYS)).all():
        scopes = json.loads(row.scopes) if isinstance(row.scopes, str) else row.scopes
        connection.execute(KEYS.update().where(KEYS.c.id == row.id).values(scopes=change(scopes)))


def text(name: str, length: int, *, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.String(length), nullable=nullable)


def time(name: str, *, nullable: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Double(), nullable=nullable)


def reference(table: str, column: str, target: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{target}.id"], name=f"fk_{table}_{column}")


def create_index(table: str, *columns: str) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns))


def create_job_labels() -> None:
    """With the labels of the jobs there are: digests of the pairs of their metadata."""
    op.create_table(
        "job_labels",
        text("job_id", 40),
        text("digest", 64),
        text("project_id", 40),
        reference("job_labels", "job_id", "jobs"),
        sa.PrimaryKeyConstraint("job_id", "digest", name="pk_job_labels"),
    )
    create_index("job_labels", "project_id", "digest", "job_id")
    connection = op.get_bind()
    labels = sa.table("job_labels", sa.column("job_id"), sa.column("digest"), sa.column("project_id"))
    jobs = sa.table("jobs", sa.column("id"), sa.column("project_id"), sa.column("metadata", sa.JSON))
    for rows in connection.execute(sa.select(jobs)).partitions(ROWS_AT_ONCE):
        found = [
            {"job_id": row.id, "digest": digest_of(pair), "project_id": row.project_id}
            for row in rows
            for pair in row.metadata.items()
        ]
        if found:
            connection.execute(labels.insert(), found)


def digest_of(pair: tuple[str, str]) -> str:
    return hashlib.sha256(json.dumps(list(pair)).encode()).hexdigest()


def create_workers() -> None:
    op.create_table(
        "workers",
        text("name", 200),
        sa.Column("queues", JSON, nullable=False),
        text("device", 200),
        text("version", 40),
        sa.Column("draining", sa.Boolean(), nullable=False),
        time("started_at"),
        time("seen_at"),
        sa.PrimaryKeyConstraint("name", name="pk_workers"),
    )


def create_idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        text("project_id", 40),
        text("key", 255),
        text("fingerprint", 64),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("headers", JSON, nullable=False),
        sa.Column("body", JSON, nullable=False),
        time("created_at"),
        reference("idempotency_keys", "project_id", "projects"),
        sa.PrimaryKeyConstraint("project_id", "key", name="pk_idempotency_keys"),
    )
    create_index("idempotency_keys", "created_at")


def create_uploads() -> None:
    op.create_table(
        "uploads",
        text("id", 40),
        text("project_id", 40),
        text("filename", 255),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("part_bytes", sa.BigInteger(), nullable=False),
        text("sha256", 64, nullable=True),
        text("state", 40),
        time("lease_until", nullable=True),
        text("storage_key", 1024, nullable=True),
        sa.Column("error", JSON, nullable=True),
        time("created_at"),
        time("expires_at"),
        time("completed_at", nullable=True),
        time("deleted_at", nullable=True),
        reference("uploads", "project_id", "projects"),
        sa.PrimaryKeyConstraint("id", name="pk_uploads"),
    )
    create_index("uploads", "project_id", "created_at")
    create_index("uploads", "expires_at")
    create_index("uploads", "storage_key")
    op.create_table(
        "upload_parts",
        text("upload_id", 40),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        text("sha256", 64),
        text("storage_key", 1024),
        time("created_at"),
        reference("upload_parts", "upload_id", "uploads"),
        sa.PrimaryKeyConstraint("upload_id", "number", name="pk_upload_parts"),
    )


def create_datasets() -> None:
    op.create_table(
        "datasets",
        text("id", 40),
        text("project_id", 40),
        text("name", 200),
        text("reference", 2048),
        text("state", 40),
        text("job_id", 40, nullable=True),
        text("filename", 255, nullable=True),
        text("sha256", 64, nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        text("storage_key", 1024, nullable=True),
        sa.Column("facts", JSON, nullable=True),
        sa.Column("error", JSON, nullable=True),
        sa.Column("metadata", JSON, nullable=False),
        time("created_at"),
        time("resolved_at", nullable=True),
        time("deleted_at", nullable=True),
        reference("datasets", "project_id", "projects"),
        sa.PrimaryKeyConstraint("id", name="pk_datasets"),
    )
    create_index("datasets", "project_id", "created_at")
    create_index("datasets", "state")
    create_index("datasets", "job_id")
    create_index("datasets", "storage_key")


def create_webhooks() -> None:
    op.create_table(
        "webhook_endpoints",
        text("id", 40),
        text("project_id", 40),
        text("url", 2048),
        sa.Column("events", JSON, nullable=False),
        text("description", 200),
        sa.Column("secret_version", sa.Integer(), nullable=False),
        time("rotated_at", nullable=True),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        time("created_at"),
        time("deleted_at", nullable=True),
        reference("webhook_endpoints", "project_id", "projects"),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_endpoints"),
    )
    create_index("webhook_endpoints", "project_id", "created_at")
    op.create_table(
        "webhook_deliveries",
        text("id", 40),
        text("endpoint_id", 40, nullable=True),
        text("project_id", 40),
        text("job_id", 40, nullable=True),
        text("url", 2048),
        text("event", 40),
        sa.Column("payload", JSON, nullable=False),
        text("state", 40),
        sa.Column("attempts", JSON, nullable=False),
        time("next_attempt_at", nullable=True),
        time("created_at"),
        time("finished_at", nullable=True),
        reference("webhook_deliveries", "endpoint_id", "webhook_endpoints"),
        reference("webhook_deliveries", "project_id", "projects"),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
    )
    create_index("webhook_deliveries", "endpoint_id", "created_at")
    create_index("webhook_deliveries", "state", "next_attempt_at")
    create_index("webhook_deliveries", "job_id")
