"""What is said to customers' endpoints, and how it is signed (standardwebhooks.com). Callers own the transaction.

A delivery is a row, written in the transaction of the change it tells of, so that none is told that did not happen and
none is forgotten. Whoever delivers takes rows for a while; one that was not brought back is taken again, with the same
`webhook-id`, by which receivers tell it from a new one.
"""

import base64
import hashlib
import hmac
import json
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, get_args

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session
from standardwebhooks import Webhook

from app.shared.db import db_now
from app.shared.ids import new_id
from app.shared.tables import Job, Model, WebhookDelivery, WebhookEndpoint
from app.shared.times import rfc3339

JobEventName = Literal["job.created", "job.started", "job.requeued", "job.succeeded", "job.failed", "job.cancelled"]
EventName = JobEventName | Literal["model.ready", "model.rejected"]
JOB_EVENTS: tuple[JobEventName, ...] = get_args(JobEventName)
EVENTS: tuple[EventName, ...] = (*JOB_EVENTS, "model.ready", "model.rejected")
TEST_EVENT = "webhook.test"
# Of a job's own webhook, unless it says which.
ENDINGS: tuple[JobEventName, ...] = ("job.succeeded", "job.failed", "job.cancelled")
PENDING, DELIVERED, FAILED = "pending", "delivered", "failed"
# A delivery whose deliverer died is taken again after this.
TAKEN_SECONDS = 60.0
OLD_SECRET_SECONDS = 24 * 3600.0
# An endpoint that has taken nothing for so long, while it was tried, is disabled.
GIVE_UP_SECONDS = 5 * 24 * 3600.0
KEEP_SECONDS = 30 * 24 * 3600.0
JITTER = 0.1
# Standard Webhooks: receivers take 20 kB for sure.
MAX_PAYLOAD_BYTES = 20_000
# Who asks again and again does not make a row grow without end.
MAX_ATTEMPTS_SHOWN = 50
GONE = 410
# Of the row that stands for the webhooks of a project's single jobs: their secret rotates like that of an endpoint. It
# is made by the first rotation, deleted from the start, and is only ever asked for its version.
NO_URL = ""


@dataclass(frozen=True)
class Delivery:
    """One message to bring out now, and the secrets it is signed with: two for a day after a rotation.

    Its deliverer has it until `taken_until`, by the database's clock; it is also the fence of what is noted of it.
    """

    id: str
    project_id: str
    url: str
    body: bytes
    secrets: tuple[str, ...] = field(repr=False)
    taken_until: float


@dataclass(frozen=True)
class Attempt:
    """What an attempt met: an HTTP status, or words about why there was none. `retry_after` in seconds."""

    status: int | None
    error: str | None
    excerpt: str
    seconds: float
    retry_after: float | None = None

    @property
    def succeeded(self) -> bool:
        """Any 2xx."""
        return self.status is not None and 200 <= self.status < 300


def signing_secret(service_secret: bytes, owner: str, version: int = 1) -> str:
    """`whsec_…` of an endpoint, or of a project for the webhooks of its jobs."""
    derived = hmac.digest(service_secret, f"webhook:{owner}:{version}".encode(), hashlib.sha256)
    return f"whsec_{base64.b64encode(derived).decode()}"


def secret_of_single_jobs(session: Session, service_secret: bytes, project_id: str) -> str:
    """What the webhooks of a project's single jobs are signed with now."""
    row = _of_single_jobs(session, project_id)
    return signing_secret(service_secret, project_id, row.secret_version if row is not None else 1)


def rotate_secret_of_single_jobs(session: Session, project_id: str) -> None:
    """Sign them with another from now on, and for a day with the one before too. The project must be locked."""
    row, now = _of_single_jobs(session, project_id), session.scalars(select(db_now())).one()
    if row is None:
        row = WebhookEndpoint(id=new_id("whk"), project_id=project_id, url=NO_URL, events=[], secret_version=1,
                              enabled=False, deleted_at=now)  # fmt: skip
        session.add(row)
    row.secret_version += 1
    row.rotated_at = now
    session.flush()


def _of_single_jobs(session: Session, project_id: str) -> WebhookEndpoint | None:
    rows = select(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id, WebhookEndpoint.url == NO_URL)
    return session.scalar(rows)


def signed_headers(delivery: Delivery) -> dict[str, str]:
    """The three headers of Standard Webhooks, for now."""
    now = datetime.now(UTC)
    signatures = [Webhook(secret).sign(delivery.id, now, delivery.body.decode()) for secret in delivery.secrets]
    return {
        "webhook-id": delivery.id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
        "Content-Type": "application/json",
    }


def announce_job(session: Session, job_id: str, event: str) -> None:
    """Tell all who want to hear of this change of a job."""
    if event not in JOB_EVENTS:
        return
    session.flush()
    job = session.scalars(select(Job).where(Job.id == job_id).execution_options(populate_existing=True)).one()
    if job.kind not in ("repair", "localize", "evaluate"):
        return  # the service's own
    told = _subscribed(session, job.project_id, event)
    own = job.webhook
    if not told and not (own and event in (own.get("events") or ENDINGS)):
        return
    payload = _payload(session, event, _job_data(job))
    for endpoint in told:
        _add(session, job.project_id, event, payload, url=endpoint.url, endpoint_id=endpoint.id, job_id=job.id)
    if own and event in (own.get("events") or ENDINGS):
        _add(session, job.project_id, event, payload, url=own["url"], job_id=job.id)


def announce_model(session: Session, model: Model) -> None:
    """Tell all who want to hear that a model was inspected."""
    event = f"model.{model.state}"
    told = _subscribed(session, model.project_id, event)
    if not told:
        return
    links = {"self": f"/v1/models/{model.id}"}
    data = {"object": "model", "id": model.id, "state": model.state, "filename": model.filename, "links": links}
    payload = _payload(session, event, data)
    for endpoint in told:
        _add(session, model.project_id, event, payload, url=endpoint.url, endpoint_id=endpoint.id)


def send_test(session: Session, endpoint: WebhookEndpoint) -> WebhookDelivery:
    """A message that says nothing, to see whether it arrives; sent to a disabled endpoint too."""
    payload = _payload(session, TEST_EVENT, {"object": "webhook_endpoint", "id": endpoint.id})
    return _add(session, endpoint.project_id, TEST_EVENT, payload, url=endpoint.url, endpoint_id=endpoint.id)


def redeliver(session: Session, delivery: WebhookDelivery, *, url: str) -> None:
    """Send it again, to where its endpoint is now, with a whole schedule of attempts before it."""
    now = session.scalars(select(db_now())).one()
    delivery.state, delivery.finished_at, delivery.url, delivery.next_attempt_at = PENDING, None, url, now
    if not (delivery.attempts and delivery.attempts[-1].get("asked_again")):
        _note(delivery, {"at": now, "asked_again": True})


def take_due(
    session: Session, service_secret: bytes, *, limit: int, per_project: int, busy: Collection[str] = ()
) -> list[Delivery]:
    """Deliveries whose time has come, taken so that nobody else brings them out meanwhile.

    Of one project `per_project` at most, and none of those that are `busy`: its slow receivers hold up only its own.
    """
    due = (WebhookDelivery.state == PENDING, WebhookDelivery.next_attempt_at <= db_now(),
           WebhookDelivery.project_id.not_in(busy))  # fmt: skip
    of_project = func.row_number().over(
        partition_by=WebhookDelivery.project_id, order_by=(WebhookDelivery.next_attempt_at, WebhookDelivery.id)
    )
    ranked = select(WebhookDelivery.id, of_project.label("place")).where(*due).subquery()
    next_ids = select(ranked.c.id).where(ranked.c.place <= per_project)
    rows = select(WebhookDelivery).where(*due, WebhookDelivery.id.in_(next_ids))
    rows = rows.order_by(WebhookDelivery.next_attempt_at).limit(limit).with_for_update(skip_locked=True)
    found = session.scalars(rows).all()
    now = session.scalars(select(db_now())).one()
    return [_taken(session, row, service_secret, now) for row in found]


def _taken(session: Session, row: WebhookDelivery, service_secret: bytes, now: float) -> Delivery:
    endpoint = session.get(WebhookEndpoint, row.endpoint_id) if row.endpoint_id else None
    if endpoint is not None:
        row.url = endpoint.url  # it may have moved since
    row.next_attempt_at = now + TAKEN_SECONDS
    signed_by = endpoint or _of_single_jobs(session, row.project_id)
    owner = endpoint.id if endpoint is not None else row.project_id
    secrets = _secrets(signed_by, service_secret, owner=owner, now=now)
    return Delivery(row.id, row.project_id, row.url, _body(row.payload), secrets, row.next_attempt_at)


def record_attempt(session: Session, delivery: Delivery, attempt: Attempt, *, retry_seconds: Sequence[float]) -> None:
    """Note what happened, and when it is tried again, if it is. Who was too slow with it decides nothing any more."""
    row = session.get(WebhookDelivery, delivery.id, with_for_update=True)
    if row is None:  # its job was deleted
        return
    now = session.scalars(select(db_now())).one()
    noted = {"at": now, "status": attempt.status, "error": attempt.error, "answer": attempt.excerpt}
    _note(row, {**noted, "seconds": round(attempt.seconds, 3)})
    if row.state != PENDING or row.next_attempt_at != delivery.taken_until:
        return
    endpoint = session.get(WebhookEndpoint, row.endpoint_id) if row.endpoint_id else None
    if attempt.succeeded:
        row.state, row.finished_at, row.next_attempt_at = DELIVERED, now, None
        return
    failures = _failures_in_a_row(row.attempts)
    over = failures > len(retry_seconds) or attempt.status == GONE or (endpoint is not None and not endpoint.enabled)
    if not over:
        pause = retry_seconds[failures - 1] * random.uniform(1 - JITTER, 1 + JITTER)
        row.next_attempt_at = now + max(pause, attempt.retry_after or 0)
        return
    row.state, row.finished_at, row.next_attempt_at = FAILED, now, None
    if endpoint is not None and (attempt.status == GONE or _has_taken_nothing(session, endpoint, now)):
        endpoint.enabled = False


def _note(row: WebhookDelivery, entry: Mapping[str, Any]) -> None:
    row.attempts = [*row.attempts, dict(entry)][-MAX_ATTEMPTS_SHOWN:]


def _failures_in_a_row(attempts: Sequence[Mapping[str, Any]]) -> int:
    """Attempts since the delivery was made, or since somebody asked for it again."""
    asked_again = [place for place, entry in enumerate(attempts) if entry.get("asked_again")]
    return len(attempts) - (asked_again[-1] + 1 if asked_again else 0)


def forget_old_deliveries(session: Session) -> None:
    """The log is kept for thirty days."""
    old = (WebhookDelivery.state != PENDING, WebhookDelivery.created_at < db_now() - KEEP_SECONDS)
    session.execute(delete(WebhookDelivery).where(*old))


def close_endpoint(session: Session, endpoint: WebhookEndpoint) -> None:
    """Delete an endpoint; what was still to be sent to it is not sent."""
    now = session.scalars(select(db_now())).one()
    endpoint.deleted_at, endpoint.enabled = now, False
    waiting = (WebhookDelivery.endpoint_id == endpoint.id, WebhookDelivery.state == PENDING)
    values = {"state": FAILED, "finished_at": now, "next_attempt_at": None}
    session.execute(update(WebhookDelivery).where(*waiting).values(**values))


def _subscribed(session: Session, project_id: str, event: str) -> list[WebhookEndpoint]:
    alive = (WebhookEndpoint.project_id == project_id, WebhookEndpoint.enabled, WebhookEndpoint.deleted_at.is_(None))
    return [row for row in session.scalars(select(WebhookEndpoint).where(*alive)) if event in row.events]


def _job_data(job: Job) -> dict[str, Any]:
    """Thin: who wants more asks for the job, and is then told the truth of that moment."""
    outcome = (job.result or {}).get("outcome")
    links = {"self": f"/v1/jobs/{job.id}"}
    return {"object": "job", "id": job.id, "kind": job.kind, "status": job.status, "verdict": job.verdict,
            "outcome": outcome, "model_id": job.model_id, "metadata": job.labels, "links": links}  # fmt: skip


def _payload(session: Session, event: str, data: Mapping[str, Any]) -> dict[str, Any]:
    now = session.scalars(select(db_now())).one()
    payload = {"type": event, "timestamp": rfc3339(now), "data": dict(data)}
    if len(_body(payload)) > MAX_PAYLOAD_BYTES:
        payload["data"] = {**data, "metadata": None}
    return payload


def _add(
    session: Session,
    project_id: str,
    event: str,
    payload: dict[str, Any],
    *,
    url: str,
    endpoint_id: str | None = None,
    job_id: str | None = None,
) -> WebhookDelivery:
    row = WebhookDelivery(
        id=new_id("whd"),
        project_id=project_id,
        endpoint_id=endpoint_id,
        job_id=job_id,
        url=url,
        event=event,
        payload=payload,
        next_attempt_at=db_now(),
    )
    session.add(row)
    session.flush()
    return row


def _body(payload: Mapping[str, Any]) -> bytes:
    return json.dumps(payload, separators=(",", ":"), ensure_ascii=False).encode()


def _secrets(row: WebhookEndpoint | None, service_secret: bytes, *, owner: str, now: float) -> tuple[str, ...]:
    """The secret of the version in `row`, without one the first, and for a day after a rotation the one before."""
    versions = [row.secret_version if row is not None else 1]
    if row is not None and row.rotated_at is not None and now - row.rotated_at < OLD_SECRET_SECONDS:
        versions.append(row.secret_version - 1)
    return tuple(signing_secret(service_secret, owner, version) for version in versions)


def _has_taken_nothing(session: Session, endpoint: WebhookEndpoint, now: float) -> bool:
    """Whether its first delivery is long ago, and none since came through."""
    since = now - GIVE_UP_SECONDS
    mine = select(WebhookDelivery.id).where(WebhookDelivery.endpoint_id == endpoint.id)
    came = session.scalar(mine.where(WebhookDelivery.state == DELIVERED, WebhookDelivery.finished_at > since).limit(1))
    tried_before = session.scalar(mine.where(WebhookDelivery.created_at < since).limit(1))
    return came is None and tried_before is not None
