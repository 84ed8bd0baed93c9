"""The rows. Times are epoch seconds by the database's clock; ids are prefixed ULIDs; JSON columns hold plain data."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Double, ForeignKey, Index, Integer, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from app.shared.db import db_now

Json = JSON(none_as_null=True)
# SQLite only numbers rows by itself when the key is exactly INTEGER.
BigKey = BigInteger().with_variant(Integer(), "sqlite")


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Project(Base):
    __tablename__ = "projects"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class ApiKey(Base):
    """A key is `ar_<prefix>_<secret>`; only the sha256 of the whole key is kept."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    name: Mapped[str] = mapped_column(String(200))
    prefix: Mapped[str] = mapped_column(String(16), unique=True)
    secret_sha256: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]] = mapped_column(Json)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class Model(Base):
    """An uploaded model file and what the inspection found in it; `deleted_at` hides it, jobs still name it."""

    __tablename__ = "models"
    __table_args__ = (Index(None, "project_id", "created_at"), Index(None, "state"), Index(None, "storage_key"))
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str] = mapped_column(String(255))
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    storage_key: Mapped[str] = mapped_column(String(1024))
    state: Mapped[str] = mapped_column(String(40), default="inspecting", server_default="inspecting")
    facts: Mapped[dict[str, Any] | None] = mapped_column(Json)
    # Hundreds of rows for a large model: only read where they are shown.
    blocks: Mapped[list[dict[str, Any]] | None] = mapped_column(Json, deferred=True)
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())
    inspected_at: Mapped[float | None] = mapped_column(Double)
    deleted_at: Mapped[float | None] = mapped_column(Double)


class Job(Base):
    """`version` grows with every change a reader can see: it is the weak ETag."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "status", "priority", "created_at"),
        Index(None, "project_id", "created_at"),
        Index(None, "status", "lease_until"),
    )
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    kind: Mapped[str] = mapped_column(String(40))
    status: Mapped[str] = mapped_column(String(40))
    phase: Mapped[str | None] = mapped_column(String(40))
    phases: Mapped[list[dict[str, Any]]] = mapped_column(Json, default=list)
    progress: Mapped[dict[str, Any] | None] = mapped_column(Json)
    spec: Mapped[dict[str, Any]] = mapped_column(Json)
    resolved_spec: Mapped[dict[str, Any] | None] = mapped_column(Json)
    result: Mapped[dict[str, Any] | None] = mapped_column(Json)
    verdict: Mapped[str] = mapped_column(String(40), default="not_evaluated")
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    # `metadata` is a reserved attribute of declarative classes.
    labels: Mapped[dict[str, str]] = mapped_column("metadata", Json, default=dict)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), index=True)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    max_attempts: Mapped[int] = mapped_column(Integer, default=3)
    owner: Mapped[str | None] = mapped_column(String(200))
    lease_until: Mapped[float | None] = mapped_column(Double)
    cancel_requested: Mapped[bool] = mapped_column(Boolean, default=False)
    keep_best: Mapped[bool] = mapped_column(Boolean, default=False)
    priority: Mapped[int] = mapped_column(Integer, default=0)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())
    started_at: Mapped[float | None] = mapped_column(Double)
    finished_at: Mapped[float | None] = mapped_column(Double)
    updated_at: Mapped[float] = mapped_column(Double, default=db_now())
    version: Mapped[int] = mapped_column(Integer, default=1)


class JobInput(Base):
    """A dataset file of a job; `name` is the reference the spec uses, e.g. `upload:repair`."""

    __tablename__ = "job_inputs"
    __table_args__ = (Index(None, "storage_key"),)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    filename: Mapped[str] = mapped_column(String(255))
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    storage_key: Mapped[str] = mapped_column(String(1024))


class Attempt(Base):
    """One claim of a job by a worker. A preempted attempt is not counted, so its number comes twice."""

    __tablename__ = "attempts"
    __table_args__ = (Index(None, "job_id", "number"),)
    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    number: Mapped[int] = mapped_column(Integer)
    owner: Mapped[str] = mapped_column(String(200))
    started_at: Mapped[float] = mapped_column(Double, default=db_now())
    ended_at: Mapped[float | None] = mapped_column(Double)
    cause: Mapped[str | None] = mapped_column(String(40))


class JobEvent(Base):
    """Append-only history of a job; `seq` only grows, so a reader can resume after the last one it saw."""

    __tablename__ = "job_events"
    __table_args__ = (Index(None, "job_id", "seq"), {"sqlite_autoincrement": True})
    seq: Mapped[int] = mapped_column(BigKey, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    type: Mapped[str] = mapped_column(String(40))
    data: Mapped[dict[str, Any]] = mapped_column(Json)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class Artifact(Base):
    __tablename__ = "artifacts"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    attempt: Mapped[int] = mapped_column(Integer)
    name: Mapped[str] = mapped_column(String(255))
    kind: Mapped[str] = mapped_column(String(40))
    media_type: Mapped[str] = mapped_column(String(255))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(1024))
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class OutboxMessage(Base):
    """A message to send after the transaction that decided it; `sent_at` is NULL until the broker took it."""

    __tablename__ = "outbox"
    id: Mapped[int] = mapped_column(BigKey, primary_key=True)
    topic: Mapped[str] = mapped_column(String(40))
    body: Mapped[dict[str, Any]] = mapped_column(Json, default=dict)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())
    sent_at: Mapped[float | None] = mapped_column(Double, index=True)
