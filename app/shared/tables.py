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
    # What the operator allows this project beyond or below the service's own quotas, by name.
    quotas: Mapped[dict[str, int]] = mapped_column(Json, default=dict, server_default="{}")
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
    expires_at: Mapped[float | None] = mapped_column(Double)
    revoked_at: Mapped[float | None] = mapped_column(Double)
    last_used_at: Mapped[float | None] = mapped_column(Double)


class Model(Base):
    """An uploaded model file and what the inspection found in it; `deleted_at` hides it, jobs still name it."""

    __tablename__ = "models"
    __table_args__ = (
        Index(None, "project_id", "created_at"),
        Index(None, "state"),
        Index(None, "storage_key"),
        Index(None, "sha256"),
    )
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str] = mapped_column(String(255))
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    storage_key: Mapped[str] = mapped_column(String(1024))
    # The job it was sent with, and goes with when no other uses it; None for one that was registered.
    job_id: Mapped[str | None] = mapped_column(String(40))
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
        # All that decides who is claimed next: thousands of waiting jobs are read from it alone.
        Index("ix_jobs_claim", "status", "project_id", "queue", "priority", "created_at", "id", "kind", "deadline_at"),
        # The newest runs of a kind tell how long the next one takes.
        Index(None, "kind", "queue", "status", "finished_at"),
        Index(None, "checkpoint_key"),
        Index(None, "project_id", "created_at"),
        # Pages of a filtered list, newest first.
        Index(None, "project_id", "status", "created_at"),
        Index(None, "project_id", "kind", "created_at"),
        Index(None, "project_id", "verdict", "created_at"),
        Index(None, "project_id", "model_id", "created_at"),
        Index(None, "project_id", "cache_key"),
        Index(None, "expires_at"),
        Index(None, "deleted_at"),
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
    # None for a job that reads a dataset.
    model_id: Mapped[str | None] = mapped_column(ForeignKey("models.id"), index=True)
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
    # What was asked for: `auto`, `cpu` or `gpu`.
    hardware: Mapped[str] = mapped_column(String(40), default="auto", server_default="auto")
    # What a worker must serve to run it: `cpu` or `gpu`.
    queue: Mapped[str] = mapped_column(String(40), default="cpu", server_default="cpu")
    # Past it the job is failed by the service, whatever it does then.
    deadline_at: Mapped[float | None] = mapped_column(Double)
    # How long it is kept once it is done; None: the sweep decides that, if anything is to be deleted by itself at all.
    keep_seconds: Mapped[float | None] = mapped_column(Double)
    # When a job that is done is deleted with its bytes.
    expires_at: Mapped[float | None] = mapped_column(Double)
    # Hides it; a sweep removes its bytes, and then the row.
    deleted_at: Mapped[float | None] = mapped_column(Double)
    retry_of: Mapped[str | None] = mapped_column(String(40))
    # sha256 over model, data, spec, seed and version: equal keys, equal results.
    cache_key: Mapped[str | None] = mapped_column(String(64))
    # Where the newest attempt left its state for the next one, on whatever machine.
    checkpoint_key: Mapped[str | None] = mapped_column(String(1024))
    # {"url": …, "events": […]} of a webhook for this job alone.
    webhook: Mapped[dict[str, Any] | None] = mapped_column(Json)
    # W3C trace context of the request that submitted it.
    traceparent: Mapped[str | None] = mapped_column(String(64))


class JobInput(Base):
    """A file of a job; `name` is the reference the spec uses, e.g. `upload:repair` or a URL."""

    __tablename__ = "job_inputs"
    __table_args__ = (Index(None, "storage_key"), Index(None, "sha256"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    name: Mapped[str] = mapped_column(String(2048), primary_key=True)
    filename: Mapped[str] = mapped_column(String(255))
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    storage_key: Mapped[str] = mapped_column(String(1024))


class JobLabel(Base):
    """A pair of a job's metadata, see `app.shared.labels`."""

    __tablename__ = "job_labels"
    __table_args__ = (Index(None, "project_id", "digest", "job_id"),)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    project_id: Mapped[str] = mapped_column(String(40))


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


class WorkerRow(Base):
    """A worker process: seen again with every sweep, forgotten when it is silent for long."""

    __tablename__ = "workers"
    name: Mapped[str] = mapped_column(String(200), primary_key=True)
    queues: Mapped[list[str]] = mapped_column(Json)
    device: Mapped[str] = mapped_column(String(200))
    version: Mapped[str] = mapped_column(String(40))
    draining: Mapped[bool] = mapped_column(Boolean, default=False)
    started_at: Mapped[float] = mapped_column(Double, default=db_now())
    seen_at: Mapped[float] = mapped_column(Double, default=db_now())


class IdempotencyKey(Base):
    """The answer to a POST, written in the transaction of what it did: there is no request half done to wait for."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index(None, "created_at"),)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    # sha256 over method, path and payload.
    fingerprint: Mapped[str] = mapped_column(String(64))
    status: Mapped[int] = mapped_column(Integer)
    headers: Mapped[dict[str, str]] = mapped_column(Json)
    body: Mapped[dict[str, Any]] = mapped_column(Json)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class Upload(Base):
    """A large file that comes in parts, see `app.shared.uploads`. A completed one has the key of its content."""

    __tablename__ = "uploads"
    __table_args__ = (
        Index(None, "project_id", "created_at"),
        Index(None, "expires_at"),
        Index(None, "storage_key"),
        Index(None, "sha256"),
    )
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str] = mapped_column(String(255))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    part_bytes: Mapped[int] = mapped_column(BigInteger)
    # What the client says the whole is, and then what it was.
    sha256: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(40), default="open")
    # While a gateway makes one file of the parts, until when it holds them.
    lease_until: Mapped[float | None] = mapped_column(Double)
    storage_key: Mapped[str | None] = mapped_column(String(1024))
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())
    expires_at: Mapped[float] = mapped_column(Double)
    completed_at: Mapped[float | None] = mapped_column(Double)
    deleted_at: Mapped[float | None] = mapped_column(Double)


class UploadPart(Base):
    """A part that has arrived whole; sent again, it takes the place of the one before."""

    __tablename__ = "upload_parts"
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(1024))
    created_at: Mapped[float] = mapped_column(Double, default=db_now())


class Dataset(Base):
    """A registered reference to data: `resolving → ready | rejected`; `storage_key` once its bytes are in the store."""

    __tablename__ = "datasets"
    __table_args__ = (
        Index(None, "project_id", "created_at"),
        Index(None, "state"),
        Index(None, "storage_key"),
        Index(None, "sha256"),
    )
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(200))
    reference: Mapped[str] = mapped_column(String(2048))
    state: Mapped[str] = mapped_column(String(40), default="resolving")
    # The job that reads it.
    job_id: Mapped[str | None] = mapped_column(String(40), index=True)
    filename: Mapped[str | None] = mapped_column(String(255))
    sha256: Mapped[str | None] = mapped_column(String(64))
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    storage_key: Mapped[str | None] = mapped_column(String(1024))
    facts: Mapped[dict[str, Any] | None] = mapped_column(Json)
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    labels: Mapped[dict[str, str]] = mapped_column("metadata", Json, default=dict)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())
    resolved_at: Mapped[float | None] = mapped_column(Double)
    deleted_at: Mapped[float | None] = mapped_column(Double)


class WebhookEndpoint(Base):
    """Where a project wants to hear of its jobs. Its secret is derived from the service's, and stands nowhere."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index(None, "project_id", "created_at"),)
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    url: Mapped[str] = mapped_column(String(2048))
    events: Mapped[list[str]] = mapped_column(Json)
    description: Mapped[str] = mapped_column(String(200), default="")
    # Grows with every rotation; the secret before stays valid for a while.
    secret_version: Mapped[int] = mapped_column(Integer, default=1)
    rotated_at: Mapped[float | None] = mapped_column(Double)
    enabled: Mapped[bool] = mapped_column(Boolean, default=True)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())
    deleted_at: Mapped[float | None] = mapped_column(Double)


class WebhookDelivery(Base):
    """One message to one endpoint, written with the change it tells of: `pending → delivered | failed`."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index(None, "endpoint_id", "created_at"),
        Index(None, "state", "next_attempt_at"),
        Index(None, "job_id"),
    )
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    # NULL: the webhook of the job itself.
    endpoint_id: Mapped[str | None] = mapped_column(ForeignKey("webhook_endpoints.id"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str | None] = mapped_column(String(40))
    url: Mapped[str] = mapped_column(String(2048))
    event: Mapped[str] = mapped_column(String(40))
    payload: Mapped[dict[str, Any]] = mapped_column(Json)
    state: Mapped[str] = mapped_column(String(40), default="pending")
    # What each attempt met: when, status or error, seconds, the first bytes of the answer.
    attempts: Mapped[list[dict[str, Any]]] = mapped_column(Json, default=list)
    next_attempt_at: Mapped[float | None] = mapped_column(Double)
    created_at: Mapped[float] = mapped_column(Double, default=db_now())
    finished_at: Mapped[float | None] = mapped_column(Double)
