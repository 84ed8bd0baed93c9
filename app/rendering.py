"""From rows to what the API shows."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import PROBLEMS, problem_type
from app.schemas.responses import (
    ApiKeyRead,
    ArtifactRead,
    AttemptRead,
    BlockPage,
    BlockRead,
    DatasetRead,
    EventRead,
    JobError,
    JobRead,
    ModelRead,
    PartUrl,
    Phase,
    Progress,
    QueuePlace,
    UploadPartRead,
    UploadRead,
)
from app.schemas.webhooks import WebhookAttempt, WebhookDeliveryRead, WebhookEndpointRead
from app.shared.datasets import READY, REJECTED, RESOLVING
from app.shared.jobs import DONE
from app.shared.models import INSPECTING
from app.shared.queueing import Look, Place, queue_places
from app.shared.tables import (
    ApiKey,
    Artifact,
    Attempt,
    Dataset,
    Job,
    JobEvent,
    Model,
    Upload,
    UploadPart,
    WebhookDelivery,
    WebhookEndpoint,
)
from app.shared.times import rfc3339
from app.shared.uploads import COMPLETING, OPEN, part_sizes, state_of
from app.shared.workers import name_of_owner
from archrepair_core.spec import format_of_file

MODEL_FACTS = (
    "format",
    "written_by",
    "num_parameters",
    "num_blocks",
    "input_shape",
    "input_shape_source",
    "blocks_unknown",
)
DATASET_FACTS = (
    "format",
    "num_samples",
    "image_shape",
    "pixel_type",
    "labelled",
    "num_classes",
    "classes",
    "content_sha256",
    "num_skipped",
    "skipped",
    "duplicates",
)
JOB_LINKS = (
    "cancel",
    "retry",
    "events",
    "deliveries",
    "logs",
    "artifacts",
    "model",
    "localization",
    "report",
    "verdict",
)


def render_job(session: Session, job: Job, look: Look | None = None) -> JobRead:
    """One job as the API shows it."""
    return render_jobs(session, [job], look)[0]


def render_jobs(session: Session, jobs: Sequence[Job], look: Look | None = None) -> list[JobRead]:
    """Jobs as the API shows them, with one query for all their artifacts; their places are those that `look` saw."""
    artifacts: dict[str, list[ArtifactRead]] = {job.id: [] for job in jobs}
    rows = select(Artifact).where(Artifact.job_id.in_(artifacts)).order_by(Artifact.created_at, Artifact.id)
    for row in session.scalars(rows):
        artifacts[row.job_id].append(render_artifact(row))
    attempts: dict[str, list[AttemptRead]] = {job.id: [] for job in jobs}
    for attempt in session.scalars(select(Attempt).where(Attempt.job_id.in_(attempts)).order_by(Attempt.id)):
        attempts[attempt.job_id].append(_attempt(attempt))
    places = queue_places(session, jobs, look)
    return [_job(job, artifacts[job.id], attempts[job.id], places[job.id]) for job in jobs]


def _job(job: Job, artifacts: list[ArtifactRead], attempts: list[AttemptRead], place: Place) -> JobRead:
    path = f"/v1/jobs/{job.id}"
    return JobRead(
        id=job.id,
        kind=job.kind,
        status=job.status,
        done=job.status in DONE,
        phase=job.phase,
        phases=[
            Phase(
                name=phase["name"],
                started_at=_time(phase["started_at"]),
                finished_at=rfc3339(phase["finished_at"]),
            )
            for phase in job.phases
        ],
        progress=_progress(job),
        queue=_queue(job, place),
        hardware=job.hardware,
        deadline_at=rfc3339(job.deadline_at),
        estimated_finish_at=rfc3339(place.finish_at),
        attempt=job.attempt,
        attempts=attempts,
        max_attempts=job.max_attempts,
        model_id=job.model_id,
        spec=job.spec,
        resolved_spec=job.resolved_spec,
        result=job.result,
        verdict=job.verdict,
        error=_error(job.error),
        artifacts=artifacts,
        metadata=job.labels,
        retry_of=job.retry_of,
        links={"self": path} | {name: f"{path}/{name}" for name in JOB_LINKS},
        created_at=_time(job.created_at),
        started_at=rfc3339(job.started_at),
        finished_at=rfc3339(job.finished_at),
        expires_at=rfc3339(job.expires_at),
        updated_at=_time(job.updated_at),
    )


def _queue(job: Job, place: Place) -> QueuePlace | None:
    if place.position is None:
        return None
    return QueuePlace(name=job.queue, position=place.position, estimated_start_at=rfc3339(place.start_at))


def _attempt(row: Attempt) -> AttemptRead:
    return AttemptRead(
        number=row.number,
        worker=name_of_owner(row.owner),
        started_at=_time(row.started_at),
        ended_at=rfc3339(row.ended_at),
        cause=row.cause,
    )


def _progress(job: Job) -> Progress | None:
    if job.progress is None:
        return None
    return Progress(
        percent=job.progress.get("percent", 0.0),
        message=job.progress.get("message", ""),
        step=job.progress.get("step", 0),
        total_steps=job.progress.get("total_steps", 0),
    )


def _error(error: dict[str, Any] | None) -> JobError | None:
    if error is None:
        return None
    code = error.get("code", "platform.internal")
    kind = PROBLEMS.get(code)
    by_us = error.get("category", "platform") == "platform"
    return JobError.model_validate(
        {
            "type": problem_type(code),
            "title": kind.title if kind else _title(code),
            "code": code,
            "retryable": kind.retryable if kind else by_us,
            "attempt": 0,
            **error,
        }
    )


def _title(code: str) -> str:
    """`model.frozen_graph` reads as "Model: frozen graph"."""
    family, _, name = code.partition(".")
    return f"{family.capitalize()}: {name.replace('_', ' ')}"


def render_artifact(row: Artifact) -> ArtifactRead:
    """One artifact as the API shows it."""
    return ArtifactRead(
        id=row.id,
        job_id=row.job_id,
        name=row.name,
        kind=row.kind,
        format=format_of_file(row.name) if row.kind in ("model", "candidate") else None,
        media_type=row.media_type,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        attempt=row.attempt,
        created_at=_time(row.created_at),
        links={"content": f"/v1/artifacts/{row.id}/content", "job": f"/v1/jobs/{row.job_id}"},
    )


def render_model(row: Model) -> ModelRead:
    """One uploaded model as the API shows it."""
    path, facts = f"/v1/models/{row.id}", row.facts or {}
    return ModelRead(
        id=row.id,
        filename=row.filename,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        state=row.state,
        done=row.state != INSPECTING,
        **{name: facts.get(name) for name in MODEL_FACTS},
        error=_error(row.error),
        created_at=_time(row.created_at),
        inspected_at=rfc3339(row.inspected_at),
        links={"self": path, "blocks": f"{path}/blocks"},
    )


def render_blocks(row: Model) -> BlockPage:
    """The blocks of a model that has them."""
    facts = row.facts or {}
    return BlockPage(
        data=[BlockRead.model_validate(block) for block in row.blocks or []],
        has_more=False,
        model_id=row.id,
        input_shape=facts["input_shape"],
        input_shape_source=facts["input_shape_source"],
    )


def render_key(row: ApiKey) -> ApiKeyRead:
    """One API key as the API shows it."""
    return ApiKeyRead(
        id=row.id,
        name=row.name,
        prefix=row.prefix,
        scopes=row.scopes,
        created_at=_time(row.created_at),
        expires_at=rfc3339(row.expires_at),
        last_used_at=rfc3339(row.last_used_at),
        links={"self": f"/v1/api-keys/{row.id}"},
    )


def render_dataset(row: Dataset) -> DatasetRead:
    """One dataset as the API shows it."""
    facts = row.facts or {}
    return DatasetRead(
        id=row.id,
        name=row.name,
        reference=row.reference,
        state=row.state or RESOLVING,
        done=row.state in (READY, REJECTED),
        filename=row.filename,
        size_bytes=row.size_bytes,
        sha256=row.sha256,
        **{name: facts.get(name) for name in DATASET_FACTS},
        job_id=row.job_id,
        error=_error(row.error),
        metadata=row.labels,
        created_at=_time(row.created_at),
        resolved_at=rfc3339(row.resolved_at),
        links={"self": f"/v1/datasets/{row.id}", "job": f"/v1/jobs/{row.job_id}"},
    )


def render_upload(row: Upload, parts: Sequence[UploadPart], *, now: float) -> UploadRead:
    """One upload with the parts that have arrived; without signed URLs."""
    path, state = f"/v1/uploads/{row.id}", state_of(row, now)
    return UploadRead(
        id=row.id,
        filename=row.filename,
        size_bytes=row.size_bytes,
        part_bytes=row.part_bytes,
        part_count=len(part_sizes(row)),
        sha256=row.sha256,
        state=state,
        done=state not in (OPEN, COMPLETING),
        parts=[render_part(part) for part in parts],
        part_urls=None,
        error=_error(row.error),
        created_at=_time(row.created_at),
        expires_at=_time(row.expires_at),
        completed_at=rfc3339(row.completed_at),
        links={"self": path, "parts": f"{path}/parts/{{number}}", "complete": f"{path}/complete"},
    )


def render_part(row: UploadPart) -> UploadPartRead:
    """One part that has arrived."""
    return UploadPartRead(number=row.number, size_bytes=row.size_bytes, sha256=row.sha256)


def render_part_urls(urls: Mapping[int, str], sizes: Sequence[int], *, seconds: float) -> list[PartUrl]:
    """Signed URLs by part number, made just now."""
    expires_at = _time(time.time() + seconds)
    return [
        PartUrl(number=number, size_bytes=sizes[number - 1], url=url, expires_at=expires_at)
        for number, url in urls.items()
    ]


def render_endpoint(row: WebhookEndpoint) -> WebhookEndpointRead:
    """One webhook endpoint as the API shows it."""
    path = f"/v1/webhook-endpoints/{row.id}"
    return WebhookEndpointRead(
        id=row.id,
        url=row.url,
        events=row.events,
        description=row.description,
        enabled=row.enabled,
        created_at=_time(row.created_at),
        rotated_at=rfc3339(row.rotated_at),
        links={"self": path, "deliveries": f"{path}/deliveries", "test": f"{path}/test"},
    )


def render_delivery(row: WebhookDelivery) -> WebhookDeliveryRead:
    """One delivery as the API shows it."""
    return WebhookDeliveryRead(
        id=row.id,
        endpoint_id=row.endpoint_id,
        job_id=row.job_id,
        url=row.url,
        event=row.event,
        payload=row.payload,
        state=row.state,
        attempts=[WebhookAttempt.model_validate({**entry, "at": _time(entry["at"])}) for entry in row.attempts],
        next_attempt_at=rfc3339(row.next_attempt_at),
        created_at=_time(row.created_at),
        finished_at=rfc3339(row.finished_at),
    )


def render_event(row: JobEvent) -> EventRead:
    """One event as the API shows it."""
    return EventRead(seq=row.seq, type=row.type, data=row.data, created_at=_time(row.created_at))


def _time(epoch_seconds: float) -> str:
    text = rfc3339(epoch_seconds)
    assert text is not None
    return text
