"""What goes out over HTTP. Enums are open: clients stop on `done`."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


class Read(BaseModel):
    """Answers may grow fields; what is here stays."""


InputShape: Any = Field(description="Of one input, without the batch: what the blocks were found with.")
InputShapeSource: Any = Field(description="given with the upload, written in the file, guessed, or a job's data.")


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


class SkippedImageRead(Read):
    row: int = Field(description="In the source.")
    name: str
    reason: str


class DuplicatesRead(Read):
    """Images that stand a second time in the data."""

    exact: int = Field(description="Pixel for pixel.")
    near: int = Field(description="Alike but for what a re-encoding changes, among those compared.")
    compared: int = Field(description="Looked at for near ones: 20,000 at most, none below 16 pixels.")


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
    num_skipped: int | None = Field(description="Broken images, which jobs leave out: one in a hundred at most.")
    skipped: list[SkippedImageRead] | None = Field(description="The first twenty of them.")
    duplicates: DuplicatesRead | None
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


class EventPage(Page):
    data: list[EventRead]


class Validation(Read):
    object: Literal["validation"] = "validation"
    valid: Literal[True] = True
    spec: dict[str, Any]
