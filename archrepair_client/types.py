"""What the service answers, as objects. An answer may grow fields, and an enum values: both are kept as they come.

Whether something has come to its end says `done`, never a list of states.
"""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """Fields this version does not know are kept, and read by their name."""

    model_config = ConfigDict(extra="allow", frozen=True)


class ProblemError(Answer):
    detail: str = ""
    pointer: str | None = None
    parameter: str | None = None


class Problem(Answer):
    """RFC 9457: `code` is for programs, `detail` and `hint` for people. None for `retryable`: it does not say."""

    code: str = ""
    status: int = 0
    title: str = ""
    detail: str = ""
    hint: str = ""
    retryable: bool | None = None
    request_id: str = ""
    errors: list[ProblemError] = []


class JobError(Answer):
    """Why something failed. `category` says whose turn it is: `user` or `platform`."""

    code: str = ""
    detail: str = ""
    hint: str = ""
    category: str = "platform"
    retryable: bool = False
    phase: str | None = None
    log_tail: list[str] = []


class Progress(Answer):
    percent: float = 0.0
    message: str = ""
    step: int = 0
    total_steps: int = 0


class QueuePlace(Answer):
    name: str = ""
    position: int = 0
    estimated_start_at: datetime | None = None


class Phase(Answer):
    name: str
    started_at: datetime | None = None
    finished_at: datetime | None = None


class Artifact(Answer):
    """A file a job left."""

    id: str
    job_id: str = ""
    name: str = ""
    kind: str = ""
    format: str | None = None
    media_type: str = ""
    size_bytes: int = 0
    sha256: str = ""


class Job(Answer):
    """`status` says whether it ran, `verdict` whether the repair is good enough, `done` whether it has ended."""

    id: str
    done: bool
    kind: str = ""
    status: str = ""
    verdict: str = "not_evaluated"
    phase: str | None = None
    phases: list[Phase] = []
    progress: Progress | None = None
    queue: QueuePlace | None = None
    attempt: int = 0
    model_id: str | None = None
    spec: dict[str, Any] = {}
    resolved_spec: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    error: JobError | None = None
    artifacts: list[Artifact] = []
    metadata: dict[str, str] = {}
    retry_of: str | None = None
    links: dict[str, str] = {}
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    estimated_finish_at: datetime | None = None
    expires_at: datetime | None = None

    @property
    def outcome(self) -> str:
        """repaired, no_improvement, localized, evaluated; empty without a result."""
        return str((self.result or {}).get("outcome", ""))


class JobEvent(Answer):
    seq: int
    type: str
    data: dict[str, Any] = {}
    created_at: datetime | None = None


class LogLine(Answer):
    """`seq` grows along the log; the lines an engine said together share one."""

    text: str
    seq: int | None = None
    at: datetime | None = None
    attempt: int | None = None
    source: str = ""


class Gate(Answer):
    expression: str = ""
    state: str = ""
    reason: str = ""
    observed: float | None = None
    limit: float | None = None
    interval: list[float] | None = None


class Verdict(Answer):
    job_id: str = ""
    verdict: str
    gates: list[Gate] = []


class Model(Answer):
    id: str
    done: bool
    filename: str = ""
    state: str = ""
    format: str | None = None
    size_bytes: int = 0
    sha256: str = ""
    num_parameters: int | None = None
    num_blocks: int | None = None
    input_shape: list[int] | None = None
    error: JobError | None = None
    created_at: datetime | None = None


class Block(Answer):
    """A part of a model that can be replaced as one; shapes are without the batch."""

    name: str
    kind: str = ""
    level: str = ""
    stage: str | None = None
    depth: int = 0
    input_shape: list[int] = []
    output_shape: list[int] = []
    num_params: int = 0
    macs: int = 0
    latency_share: float = 0.0


class Dataset(Answer):
    id: str
    done: bool
    name: str = ""
    reference: str = ""
    state: str = ""
    format: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    num_samples: int | None = None
    num_classes: int | None = None
    num_skipped: int | None = None
    labelled: bool | None = None
    error: JobError | None = None
    metadata: dict[str, str] = {}
    created_at: datetime | None = None


class UploadPart(Answer):
    number: int
    size_bytes: int = 0
    sha256: str | None = None


class PartUrl(Answer):
    """Where in the object store a part may be put, by anybody who has the URL, for an hour."""

    number: int
    url: str = Field(repr=False)


class Upload(Answer):
    """A file on its way in, or in. `part_urls` are there when they were asked for."""

    id: str
    done: bool
    state: str
    filename: str = ""
    size_bytes: int
    part_bytes: int
    part_count: int
    sha256: str | None = None
    parts: list[UploadPart] = []
    part_urls: list[PartUrl] | None = None
    error: JobError | None = None


class ApiKey(Answer):
    """`key` is the whole key, when it was made just now."""

    id: str
    name: str = ""
    prefix: str = ""
    scopes: list[str] = []
    key: str | None = Field(None, repr=False)
    created_at: datetime | None = None
    expires_at: datetime | None = None
    last_used_at: datetime | None = None


class WebhookEndpoint(Answer):
    """`secret` is what its messages are signed with, when it was made or rotated just now."""

    id: str
    url: str = ""
    events: list[str] = []
    description: str = ""
    enabled: bool = True
    secret: str | None = Field(None, repr=False)
    created_at: datetime | None = None


class WebhookDelivery(Answer):
    id: str
    event: str = ""
    state: str = ""
    url: str = ""
    attempts: list[dict[str, Any]] = []
    created_at: datetime | None = None


class SystemState(Answer):
    version: str = ""
    queue: dict[str, Any] = {}
    queues: list[dict[str, Any]] = []
    workers: list[dict[str, Any]] = []
