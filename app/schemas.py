"""What goes in and out over HTTP, one schema per direction. Enums are open: clients stop on `done`."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)

from app.keys import SCOPES
from app.limits import MAX_DIMENSIONS, MAX_INPUT_SIDE
from app.shared.references import REGISTER_PATTERN
from app.shared.webhooks import ENDINGS, EVENTS, JOB_EVENTS, EventName, JobEventName
from archrepair_core.gates import parse_gate
from archrepair_core.spec import GateExpression, RepairSpec

MetadataKey = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
MAX_METADATA_PAIRS = 16
InputShape: Any = Field(description="Of one input, without the batch: what the blocks were found with.")
InputShapeSource: Any = Field(description="given with the upload, written in the file, guessed, or a job's data.")
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _parsed_time(value: Any) -> Any:
    # By itself pydantic also takes numbers, as epoch seconds or days or milliseconds, whatever it guesses.
    if not isinstance(value, str) or not RFC3339.fullmatch(value):
        raise ValueError("is not a time like 2026-11-22T10:02:11Z")
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", value.upper()))


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


AskedTime = Annotated[AwareDatetime, BeforeValidator(_parsed_time)]
# To JSON Schema 3.0 is an integer, to a strict pydantic it is none.
AskedInteger = Annotated[int, BeforeValidator(_whole)]


class Asked(BaseModel):
    """What comes in: no field that does not exist, and no value that only looks like the one that is meant."""

    model_config = ConfigDict(extra="forbid", strict=True)


WebhookUrl = Annotated[str, StringConstraints(min_length=1, max_length=2048, pattern=r"^https?://")]


class JobWebhook(BaseModel):
    """A webhook for one job alone."""

    model_config = ConfigDict(extra="forbid")
    url: WebhookUrl
    events: list[JobEventName] = Field(
        list(ENDINGS), min_length=1, max_length=len(JOB_EVENTS), description="What to hear of; by default its end."
    )


class JobCreate(RepairSpec):
    """A repair, and what belongs to the job around it."""

    model_id: str | None = Field(None, max_length=40, description="A registered model, in place of a `model` part.")
    metadata: dict[MetadataKey, MetadataValue] = Field(
        {}, max_length=MAX_METADATA_PAIRS, description="Yours to find the job by: `GET /jobs?metadata[KEY]=VALUE`."
    )
    hardware: Literal["auto", "cpu", "gpu"] = Field(
        "auto", description="What it must run on; auto takes a GPU where a worker has one, and waits for none."
    )
    timeout_seconds: float | None = Field(
        None, gt=0, le=30 * 24 * 3600, description="The job fails when it is not done by then, waiting included."
    )

    keep_days: float | None = Field(
        None,
        gt=0,
        le=36_500,
        description="Deleted so many days after its end, or earlier where the service keeps jobs for less; see "
        "`expires_at`.",
    )
    cache: Literal["prefer"] | None = Field(
        None,
        description="prefer: when the same was run before (model, data, spec, seed, hardware and version) and has "
        "succeeded, the answer is that job, with 200, and nothing is run.",
    )
    webhook: JobWebhook | None = None

    def keep_seconds(self) -> float | None:
        """`keep_days`, in seconds."""
        return None if self.keep_days is None else self.keep_days * 24 * 3600

    def repair_spec(self) -> dict[str, Any]:
        """The part the engine understands, as JSON data."""
        return self.model_dump(mode="json", exclude=set(JobCreate.model_fields) - set(RepairSpec.model_fields))


class CancelRequest(Asked):
    keep_best: bool = Field(
        False,
        description="A repair that is searching ends its search, measures the best it has and hands it over: the "
        "job is cancelled, with result, verdict and files. Where there is nothing yet, as without it.",
    )


def _parsed(gate: str) -> str:
    parse_gate(gate)
    return gate


class VerdictRequest(Asked):
    """Gates to put to what a job has measured, in the words of a spec's `gates`."""

    gates: list[Annotated[GateExpression, AfterValidator(_parsed)]] = Field(
        max_length=64, description="`METRIC OP LIMIT`, e.g. `test.broken_rate <= 0.01`."
    )


def _in_order(scopes: list[str]) -> list[str]:
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown:
        raise ValueError(f"there is no scope {', '.join(map(repr, unknown))}; there are {', '.join(SCOPES)}")
    return [scope for scope in SCOPES if scope in scopes]


def _in_the_future(when: datetime) -> datetime:
    if when <= datetime.now(UTC):
        raise ValueError("lies in the past")
    return when


class ApiKeyCreate(Asked):
    name: Label = Field(description="For people: who uses it, where.")
    scopes: Annotated[list[str], AfterValidator(_in_order)] = Field(
        min_length=1,
        max_length=len(SCOPES),
        json_schema_extra={"items": {"type": "string", "enum": list(SCOPES)}},
        description="What it may do; only what the key that asks may do itself.",
    )
    expires_at: Annotated[AskedTime, AfterValidator(_in_the_future)] | None = Field(
        None, description="From then on it is refused. Without it, never."
    )


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
MAX_PARTS = 1000


class UploadCreate(Asked):
    """A large file that will come in parts."""

    filename: str = Field(min_length=1, max_length=255)
    size_bytes: AskedInteger = Field(ge=1, lt=2**53)
    sha256: Sha256 | None = Field(None, description="Of the whole file: completing it checks this.")
    part_bytes: AskedInteger | None = Field(
        None, ge=1, lt=2**53, description="Of every part but the last; without it, the largest allowed."
    )
    presigned: bool = Field(False, description="Also give URLs by which the parts go to the S3 store directly.")


class SentPart(Asked):
    number: AskedInteger = Field(ge=1, le=MAX_PARTS)
    sha256: Sha256


class UploadComplete(Asked):
    """`parts` names those that went to signed URLs; the others are known already."""

    parts: list[SentPart] = Field([], max_length=MAX_PARTS)


_Size = Annotated[int, Field(ge=1, le=MAX_INPUT_SIDE, strict=True), BeforeValidator(_whole)]
GivenShape = Annotated[list[_Size], Field(min_length=1, max_length=MAX_DIMENSIONS)]


class ModelCreate(Asked):
    """A model that was uploaded in parts."""

    upload_id: str = Field(max_length=40, description="A completed upload.")
    input_shape: GivenShape | None = Field(
        None, description="Of one input, e.g. [3, 224, 224]; without it, it is worked out."
    )


class DatasetFields(Asked):
    name: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] | None = (
        Field(None, description="For people; without it, the name of the file.")
    )
    metadata: dict[MetadataKey, MetadataValue] = Field(
        {}, max_length=MAX_METADATA_PAIRS, description="Yours to find it by."
    )


class DatasetCreate(DatasetFields):
    """Data that lies somewhere: `https://…`, `s3://…`, `gs://…`, `az://…`, `file:///…`, `upl_…`, `builtin:digits`."""

    reference: str = Field(
        min_length=1,
        max_length=1900,
        json_schema_extra={"pattern": REGISTER_PATTERN},
        description="Where it is; `#sha256=HEX` may follow a URL.",
    )
    sha256: Sha256 | None = Field(None, description="Of the file; https:// needs it, here or after the URL.")


class Read(BaseModel):
    """Answers may grow fields; what is here stays."""


class ProblemError(Read):
    pointer: str | None = Field(None, description="JSON Pointer into the body, as a URI fragment.")
    parameter: str | None = Field(None, description="The query, path or header parameter.")
    detail: str


class Problem(Read):
    """RFC 9457. `code` is for programs, `detail` and `hint` for people."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    code: str
    hint: str
    retryable: bool
    request_id: str
    errors: list[ProblemError]


class JobError(Read):
    """Why a job failed. `category` says whose turn it is: `user` or `platform`."""

    model_config = ConfigDict(extra="allow")
    type: str
    title: str
    code: str
    detail: str
    hint: str = ""
    category: str = "platform"
    retryable: bool
    phase: str | None = None
    attempt: int
    log_tail: list[str] = []


class Phase(Read):
    name: str
    started_at: Time
    finished_at: Time | None


class Progress(Read):
    percent: float
    message: str
    step: int
    total_steps: int


class QueuePlace(Read):
    """Priority comes first, then projects that run few jobs, then age: a job can be overtaken."""

    name: str = Field(description="cpu, gpu")
    position: int = Field(description="1 for the job the next free worker takes.")
    estimated_start_at: Time | None = Field(
        description="At the earliest; null without a worker for it, or where runs like those ahead are not known yet."
    )


class AttemptRead(Read):
    """One run by a worker. A `preempted` one is not counted, so its number comes twice."""

    number: int
    worker: str
    started_at: Time
    ended_at: Time | None
    cause: str | None = Field(
        description="Why it ended: succeeded, cancelled, user_error, oom, engine_crashed, platform_error, deadline, "
        "worker_lost, preempted; null while it runs."
    )


class ArtifactRead(Read):
    object: Literal["artifact"] = "artifact"
    id: str
    job_id: str
    name: str
    kind: str
    format: str | None = Field(description="Of a model or candidate: what GET /jobs/{id}/model takes as `format`.")
    media_type: str
    size_bytes: int
    sha256: str
    attempt: int
    created_at: Time
    links: dict[str, str]


class JobRead(Read):
    """`status` says whether it ran, `verdict` whether the repair is good enough."""

    object: Literal["job"] = "job"
    id: str
    kind: str
    status: str = Field(description="queued, running, cancelling, succeeded, failed, cancelled")
    done: bool
    phase: str | None
    phases: list[Phase]
    progress: Progress | None
    queue: QueuePlace | None
    hardware: str = Field(description="auto, cpu, gpu")
    deadline_at: Time | None
    estimated_finish_at: Time | None = Field(
        description="From the last runs of its kind and its budget; null where they are not known, or are exceeded."
    )
    attempt: int
    max_attempts: int
    attempts: list[AttemptRead]
    model_id: str | None = Field(description="null for a job that reads a dataset.")
    spec: dict[str, Any]
    resolved_spec: dict[str, Any] | None
    result: dict[str, Any] | None
    verdict: str = Field(description="pass, fail, inconclusive, not_evaluated")
    error: JobError | None
    artifacts: list[ArtifactRead]
    metadata: dict[str, str]
    retry_of: str | None = Field(description="The job it runs once more.")
    links: dict[str, str]
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    expires_at: Time | None = Field(description="When a job that is done is deleted with its files; null for never.")
    updated_at: Time


class GateRead(Read):
    """What one gate said, as in `result.gates` of a job."""

    expression: str
    state: str = Field(description="pass, fail, inconclusive, not_evaluated")
    reason: str
    observed: float | None = Field(description="What was measured; of a gate with `before`, the change.")
    limit: float | None
    interval: list[float] | None = Field(description="The 95 % confidence interval of `observed`.")


class VerdictRead(Read):
    """What gates say of a job that has ended; the job itself is as it was."""

    object: Literal["verdict"] = "verdict"
    job_id: str
    verdict: str = Field(description="pass, fail, inconclusive, not_evaluated")
    gates: list[GateRead]
    links: dict[str, str]


class Reason(Read):
    code: str
    detail: str
    hint: str = ""


class ModelRead(Read):
    """An uploaded model and what the inspection found in it; the facts are null until it is `done`."""

    object: Literal["model"] = "model"
    id: str
    filename: str
    size_bytes: int
    sha256: str
    state: str = Field(description="inspecting, ready, rejected")
    done: bool
    format: str | None = Field(description="torchscript, torch_export")
    written_by: str | None = Field(description="The version of torch that wrote the file.")
    num_parameters: int | None
    num_blocks: int | None = Field(description="Blocks without the stages they form; null when they are not known.")
    input_shape: list[int] | None = InputShape
    input_shape_source: str | None = InputShapeSource
    blocks_unknown: Reason | None = Field(description="Why a model that is ready shows no blocks.")
    error: JobError | None = Field(description="Why the model was rejected.")
    created_at: Time
    inspected_at: Time | None
    links: dict[str, str]


class BlockRead(Read):
    """A part of a model that can be replaced as one. Shapes are without the batch."""

    object: Literal["block"] = "block"
    name: str
    kind: str = Field(description="The class of the module.")
    level: str = Field(description="block, stage")
    stage: str | None = Field(description="The name of the stage it is in.")
    depth: int = Field(description="Place in the order of execution, from 0.")
    input_shape: list[int]
    output_shape: list[int]
    num_params: int
    macs: int = Field(description="Multiply-adds of one input.")
    latency_share: float = Field(description="Part of the model's time, 0 to 1, as measured.")


class UploadPartRead(Read):
    object: Literal["upload_part"] = "upload_part"
    number: int = Field(description="From 1.")
    size_bytes: int
    sha256: str | None = Field(description="null for a part at a signed URL: the service has not read it yet.")


class PartUrl(Read):
    """Where to PUT a part that is missing: anybody who has the URL may, until it expires."""

    number: int
    size_bytes: int
    url: str
    expires_at: Time


class UploadRead(Read):
    """A file on its way in. Send the parts that are not in `parts`, in any order, then complete it."""

    object: Literal["upload"] = "upload"
    id: str
    filename: str
    size_bytes: int
    part_bytes: int = Field(description="The size of every part but the last, which has the rest.")
    part_count: int
    sha256: str | None = Field(description="As it was given; of a completed upload, as it is.")
    state: str = Field(description="open, completing, completed, failed, expired")
    done: bool
    parts: list[UploadPartRead] = Field(description="Those that have arrived.")
    part_urls: list[PartUrl] | None = Field(description="For the parts that are missing, when asked for.")
    error: JobError | None = Field(description="Why the upload failed.")
    created_at: Time
    expires_at: Time = Field(description="Until then it waits for its parts, and once completed for a use.")
    completed_at: Time | None
    links: dict[str, str]


class DatasetRead(Read):
    """Registered data and what was found in it; the facts are null until it is `done`."""

    object: Literal["dataset"] = "dataset"
    id: str
    name: str
    reference: str = Field(description="Where it came from; `upload:file` was sent with the request.")
    state: str = Field(description="resolving, ready, rejected")
    done: bool
    filename: str | None
    size_bytes: int | None
    sha256: str | None = Field(description="Of the file; null for a builtin one.")
    format: str | None = Field(description="npz, parquet, image_folder, webdataset, manifest, builtin")
    num_samples: int | None
    image_shape: list[int] | None = Field(description="[height, width, channels]")
    pixel_type: str | None = Field(description="uint8, float32")
    labelled: bool | None
    num_classes: int | None
    classes: dict[str, int] | None = Field(description="How many samples each label has.")
    content_sha256: str | None = Field(description="Of pixels and labels: the same data has it in any format.")
    job_id: str | None = Field(description="The job that reads it; once done it goes at its `expires_at`.")
    error: JobError | None = Field(description="Why it was rejected.")
    metadata: dict[str, str]
    created_at: Time
    resolved_at: Time | None
    links: dict[str, str]


class EventRead(Read):
    object: Literal["job_event"] = "job_event"
    seq: int
    type: str
    data: dict[str, Any]
    created_at: Time


class ApiKeyRead(Read):
    """A key without its secret, of which only a hash is kept."""

    object: Literal["api_key"] = "api_key"
    id: str
    name: str
    prefix: str = Field(description="How the key begins: ar_<prefix>_.")
    scopes: list[str]
    created_at: Time
    expires_at: Time | None
    last_used_at: Time | None = Field(description="To ten minutes.")
    links: dict[str, str]


class ApiKeyCreated(ApiKeyRead):
    key: str | None = Field(description="The whole key, shown this once; null when the request is answered again.")


class WebhookEndpointCreate(Asked):
    url: WebhookUrl
    events: list[EventName] = Field(list(EVENTS), min_length=1, max_length=len(EVENTS))
    description: str = Field("", max_length=200)


class WebhookEndpointUpdate(Asked):
    """What is not given stays as it is."""

    url: WebhookUrl | None = None
    events: list[EventName] | None = Field(None, min_length=1, max_length=len(EVENTS))
    description: str | None = Field(None, max_length=200)
    enabled: bool | None = None


class WebhookEndpointRead(Read):
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    id: str
    url: str
    events: list[str]
    description: str
    enabled: bool = Field(description="Off after an answer of 410, or five days in which nothing was taken.")
    created_at: Time
    rotated_at: Time | None
    links: dict[str, str]


class WebhookEndpointSecret(WebhookEndpointRead):
    """An endpoint with the secret its messages are signed with: shown when it is made, and when it is rotated."""

    secret: str | None = Field(description="Null when the request is answered again.")


class WebhookSigningSecret(Read):
    object: Literal["webhook_signing_secret"] = "webhook_signing_secret"
    secret: str | None = Field(
        description="What the webhooks of your single jobs are signed with; null when a rotation is answered again."
    )


class WebhookAttempt(Read):
    at: Time
    asked_again: bool = Field(False, description="Not an attempt: somebody asked for the message again.")
    status: int | None = None
    error: str | None = None
    answer: str | None = Field(None, description="The first bytes of what the receiver said.")
    seconds: float | None = None


class WebhookDeliveryRead(Read):
    object: Literal["webhook_delivery"] = "webhook_delivery"
    id: str = Field(description="The header webhook-id of the message, the same in every attempt.")
    endpoint_id: str | None
    job_id: str | None
    url: str
    event: str
    payload: dict[str, Any]
    state: str = Field(description="pending, delivered, failed")
    attempts: list[WebhookAttempt]
    next_attempt_at: Time | None
    created_at: Time
    finished_at: Time | None


class Page(Read):
    object: Literal["list"] = "list"
    has_more: bool
    next_cursor: str | None = None


class JobPage(Page):
    data: list[JobRead]


class ModelPage(Page):
    data: list[ModelRead]


class ApiKeyPage(Page):
    data: list[ApiKeyRead]


class DatasetPage(Page):
    data: list[DatasetRead]


class BlockPage(Page):
    """All blocks and stages in the order they run, found with inputs of `input_shape`."""

    data: list[BlockRead]
    model_id: str
    input_shape: list[int] = InputShape
    input_shape_source: str = InputShapeSource


class ArtifactPage(Page):
    data: list[ArtifactRead]


class WebhookEndpointPage(Page):
    data: list[WebhookEndpointRead]


class WebhookDeliveryPage(Page):
    data: list[WebhookDeliveryRead]


class EventPage(Page):
    data: list[EventRead]


class Validation(Read):
    object: Literal["validation"] = "validation"
    valid: Literal[True] = True
    spec: dict[str, Any]


class Health(Read):
    status: str


class Readiness(Read):
    status: Literal["ready", "unready"]
    checks: dict[str, str]


class NamedQueue(Read):
    name: str = Field(description="cpu, gpu")
    queued: int
    running: int
    workers: int = Field(description="Workers that serve it and may take a job any moment.")
    expected_wait_seconds: float | None = Field(
        description="For a job submitted now; null without a worker, or where runs like those ahead are not known yet."
    )


class QueueState(Read):
    queued: int
    running: int
    cancelling: int
    oldest_queued_at: Time | None


class WorkerSeen(Read):
    name: str
    queues: list[str]
    device: str
    version: str
    state: str = Field(description="idle, busy, draining, silent")
    job_id: str | None = Field(description="What it runs, when that is a job of the caller's project.")
    started_at: Time
    last_seen_at: Time


class System(Read):
    object: Literal["system"] = "system"
    version: str
    queue: QueueState
    queues: list[NamedQueue]
    workers: list[WorkerSeen]
