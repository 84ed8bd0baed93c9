"""What the service says of itself: health, queues, workers."""

from typing import Literal

from pydantic import Field

from app.schemas.responses import Read, Time


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
