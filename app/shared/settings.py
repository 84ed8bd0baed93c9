"""Settings from the environment (`ARCHREPAIR_*`). No URL set: embedded. All three set: those servers."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

SERVER_URLS = ("database_url", "broker_url", "store_url")
EMBEDDED_LEASE_SECONDS = 10.0
PRODUCTION_LEASE_SECONDS = 60.0
MIB, GIB = 1024**2, 1024**3
# A minute. Far above what a client needs that waits with ?wait=, and below what keeps others from being served.
PRODUCTION_RATE_LIMITS = {
    "rate_limit_reads": 12_000,
    "rate_limit_writes": 3_000,
    "rate_limit_uploads": 3_000,
    "rate_limit_failed_authentications": 300,
}


class Settings(BaseSettings):
    """One process's settings. `broker_url` is None only when embedded without `archrepair up` around it."""

    model_config = SettingsConfigDict(env_prefix="ARCHREPAIR_", frozen=True, extra="ignore", hide_input_in_errors=True)

    state_dir: Path = Field(
        default_factory=lambda: Path.home() / ".archrepair",
        description="Of an embedded service everything; else the engines' scratch, and where migrate finds `api-key`.",
    )
    # Two with passwords: neither a repr nor a validation error shows them.
    database_url: str = Field(repr=False, description="`postgresql+psycopg://user:password@host/name`, or SQLite's.")
    store_url: str = Field(description="`s3://bucket[/prefix]`, with the usual `AWS_*` variables, or `file:///…`.")
    broker_url: str | None = Field(
        None, repr=False, description="`redis://:password@host/0`; `archrepair up` brings its own."
    )
    host: str = Field("127.0.0.1", description="Where `archrepair up` listens.")
    port: int = Field(8000, ge=1, le=65535, description="The port there.")
    lease_seconds: float = Field(gt=0, description="A silent worker loses its job after this; renewed every third.")
    max_attempts: int = Field(3, ge=1, description="How often a job is tried when workers are lost.")
    retention_days: float = Field(90, ge=0, description="How long jobs are kept once they are done; 0 for ever.")
    drain_seconds: float = Field(0, ge=0, description="A gateway told to stop answers on, unready, for so long.")
    one_shot_body_bytes: int = Field(512 * MIB, gt=0, description="The largest body of one request.")
    spec_bytes: int = Field(256 * 1024, gt=0, description="The largest spec of a job.")
    # What a project may have at once, unless the operator gave it numbers of its own (python -m app.projects).
    quota_queued_jobs: int = Field(1000, ge=0, description="Waiting jobs of a project.")
    quota_running_jobs: int = Field(100, ge=0, description="Running jobs of a project; others wait.")
    quota_stored_bytes: int = Field(1024 * GIB, ge=0, description="What a project stores, equal contents once.")
    quota_models: int = Field(10_000, ge=0, description="Models of a project.")
    quota_open_uploads: int = Field(100, ge=0, description="Uploads of a project that are not complete.")
    # Each gets a message for every change of every job.
    quota_webhook_endpoints: int = Field(20, ge=0, description="Webhook endpoints of a project.")
    upload_bytes: int = Field(8 * GIB, gt=0, description="The largest file that comes in parts.")
    part_bytes: int = Field(64 * MIB, gt=0, description="The largest part of an upload.")
    upload_seconds: float = Field(24 * 3600, gt=0, description="How long an upload waits for its parts, and for use.")
    store_public_endpoint: str | None = Field(None, description="How clients reach the S3 store, for signed URLs.")
    # See PRODUCTION_RATE_LIMITS.
    rate_limit_reads: int = Field(0, ge=0, description="GETs per key; 0 for no limit.")
    rate_limit_writes: int = Field(0, ge=0, description="Other requests per key; 0 for no limit.")
    rate_limit_uploads: int = Field(0, ge=0, description="Forms with files and PUTs per key; 0 for no limit.")
    rate_limit_failed_authentications: int = Field(0, ge=0, description="Wrong keys per address; 0 for no limit.")
    event_streams_per_key: int = Field(100, ge=0, description="Open event streams per key and gateway; 0 for no limit.")
    cors_origins: str = Field("", description="Origins whose web pages may call the API, apart by spaces; none.")
    dataset_buckets: tuple[str, ...] = Field((), description='Open to every project, e.g. `["s3://acme/signs"]`.')
    dataset_roots: tuple[str, ...] = Field((), description="Directories of the workers, open to every project.")
    dataset_bytes: int = Field(8 * GIB, gt=0, description="The largest file that is fetched.")
    dataset_fetch_seconds: float = Field(3600, gt=0, description="How long fetching one may take.")
    log_level: str = Field(
        "INFO", pattern=r"^(?i:debug|info|warning|error)$", description="`DEBUG`, `INFO`, `WARNING` or `ERROR`."
    )
    metrics_token: str | None = Field(
        None, repr=False, min_length=16, description="Who asks the gateway for /metrics must send it."
    )
    metrics_host: str = Field("127.0.0.1", description="Where a worker tells its metrics, if it has a port for them.")
    metrics_port: int | None = Field(None, ge=1, le=65535, description="Of a worker; without one it tells none.")
    secret_key: str | None = Field(
        None,
        repr=False,
        min_length=32,
        description="Signing secrets of webhooks are derived from it; an embedded service makes one of its own.",
    )
    webhook_retry_seconds: tuple[float, ...] = Field(
        (5, 300, 1800, 7200, 18000, 36000, 50400),
        description="How long to wait after each failed attempt to deliver a webhook.",
    )
    egress_allow: tuple[str, ...] = Field(
        (), description='Inside, but open to webhooks and datasets of all: hosts and networks, e.g. `["10.1.0.0/16"]`.'
    )

    @model_validator(mode="before")
    @classmethod
    def _embedded_or_complete(cls, values: dict[str, Any]) -> dict[str, Any]:
        values = {name: value for name, value in values.items() if value not in ("", None)}
        missing = [name for name in SERVER_URLS if name not in values]
        if missing and len(missing) < len(SERVER_URLS):
            names = ", ".join(f"ARCHREPAIR_{name.upper()}" for name in missing)
            raise ValueError(f"half-configured: set {names} too, or no URL at all for the embedded default")
        if missing:
            state_dir = Path(values.get("state_dir") or Path.home() / ".archrepair").expanduser().absolute()
            values |= {
                "state_dir": state_dir,
                "database_url": f"sqlite:///{state_dir}/archrepair.db",
                "store_url": (state_dir / "objects").as_uri(),
            }
        on_sqlite = values["database_url"].startswith("sqlite")
        values.setdefault("lease_seconds", EMBEDDED_LEASE_SECONDS if on_sqlite else PRODUCTION_LEASE_SECONDS)
        return values if on_sqlite else PRODUCTION_RATE_LIMITS | values
