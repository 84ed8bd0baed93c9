"""Webhooks: where a project wants to hear of its jobs and models, what was sent there, and what came of it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Select, select
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.auth import WebhooksReader, WebhooksWriter
from app.deps import CurrentGateway, Gateway
from app.egress import require_callable
from app.errors import problem_responses
from app.idempotency import Answer, Once, answer_once
from app.pages import Cursor, Limit, cut, page_of
from app.quotas import require_quotas
from app.rendering import render_delivery, render_endpoint
from app.rows import find_job, find_row
from app.schemas.requests import WebhookEndpointCreate, WebhookEndpointUpdate
from app.schemas.webhooks import (
    WebhookDeliveryPage,
    WebhookDeliveryRead,
    WebhookEndpointPage,
    WebhookEndpointRead,
    WebhookEndpointSecret,
    WebhookSigningSecret,
)
from app.shared.db import db_now
from app.shared.ids import new_id
from app.shared.quotas import lock_project
from app.shared.tables import WebhookDelivery, WebhookEndpoint
from app.shared.webhooks import (
    close_endpoint,
    redeliver,
    rotate_secret_of_single_jobs,
    secret_of_single_jobs,
    send_test,
    signing_secret,
)

router = APIRouter(tags=["webhooks"], responses=problem_responses(401, 403, 422, 429, 500, 503))


def find_endpoint(session: Session, *, endpoint_id: str, project_id: str) -> WebhookEndpoint:
    """The project's endpoint of that id. Raises ApiProblem `endpoint.not_found`."""
    return find_row(session, _endpoints(project_id).where(WebhookEndpoint.id == endpoint_id), endpoint_id,
                    noun="endpoint")  # fmt: skip


def _endpoints(project_id: str) -> Select[WebhookEndpoint]:
    return select(WebhookEndpoint).where(WebhookEndpoint.project_id == project_id, WebhookEndpoint.deleted_at.is_(None))


@router.post(
    "/webhook-endpoints", status_code=201, response_model=WebhookEndpointSecret, responses=problem_responses(409, 413)
)
def create_endpoint(
    asked: WebhookEndpointCreate, gateway: CurrentGateway, caller: WebhooksWriter, once: Once
) -> Response:
    """Register an endpoint. The answer is the only place where its signing secret can be read."""
    require_callable(gateway, asked.url, pointer="#/url")
    return answer_once(gateway, once, asked, partial(_create, gateway, caller.project_id, asked)).response()


def _create(gateway: Gateway, project_id: str, asked: WebhookEndpointCreate, session: Session) -> Answer:
    require_quotas(session, gateway.settings, project_id, webhook_endpoints=1)
    row = WebhookEndpoint(id=new_id("whk"), project_id=project_id, **asked.model_dump())
    session.add(row)
    session.flush()
    return _with_secret(gateway, row, status=201)


def _with_secret(gateway: Gateway, row: WebhookEndpoint, *, status: int) -> Answer:
    secret = signing_secret(gateway.service_secret, row.id, row.secret_version)
    shown = WebhookEndpointSecret(**render_endpoint(row).model_dump(), secret=secret)
    return Answer(status, shown.model_dump(mode="json"), {"Location": shown.links["self"]}, secrets=("secret",))


@router.get("/webhook-endpoints", response_model=WebhookEndpointPage)
def list_endpoints(
    gateway: CurrentGateway, caller: WebhooksReader, *, limit: Limit = 20, cursor: Cursor = None
) -> WebhookEndpointPage:
    """The project's endpoints, newest first."""
    page = page_of(_endpoints(caller.project_id), WebhookEndpoint, limit=limit, cursor=cursor)
    with gateway.readers() as session:
        rows, next_cursor = cut(session.scalars(page).all(), limit)
    data = [render_endpoint(row) for row in rows]
    return WebhookEndpointPage(data=data, has_more=next_cursor is not None, next_cursor=next_cursor)


@router.post("/webhook-endpoints/job-secret", response_model=WebhookSigningSecret)
def show_job_secret(gateway: CurrentGateway, caller: WebhooksWriter) -> WebhookSigningSecret:
    """The secret with which the webhooks of single jobs (`webhook` in a spec) are signed: one for your project."""
    with gateway.readers() as session:
        secret = secret_of_single_jobs(session, gateway.service_secret, caller.project_id)
    return WebhookSigningSecret(secret=secret)


@router.post(
    "/webhook-endpoints/job-secret/rotate", response_model=WebhookSigningSecret, responses=problem_responses(409)
)
def rotate_job_secret(gateway: CurrentGateway, caller: WebhooksWriter, once: Once) -> Response:
    """A new secret for the webhooks of single jobs. For a day every message carries a signature by the old one too."""
    return answer_once(gateway, once, None, partial(_rotate_of_jobs, gateway, caller.project_id)).response()


def _rotate_of_jobs(gateway: Gateway, project_id: str, session: Session) -> Answer:
    lock_project(session, project_id)
    rotate_secret_of_single_jobs(session, project_id)
    shown = WebhookSigningSecret(secret=secret_of_single_jobs(session, gateway.service_secret, project_id))
    return Answer(200, shown.model_dump(mode="json"), secrets=("secret",))


@router.get("/webhook-endpoints/{endpoint_id}", response_model=WebhookEndpointRead, responses=problem_responses(404))
def get_endpoint(endpoint_id: str, gateway: CurrentGateway, caller: WebhooksReader) -> WebhookEndpointRead:
    """One endpoint, without its secret."""
    with gateway.readers() as session:
        return render_endpoint(find_endpoint(session, endpoint_id=endpoint_id, project_id=caller.project_id))


@router.patch(
    "/webhook-endpoints/{endpoint_id}", response_model=WebhookEndpointRead, responses=problem_responses(404, 413)
)
def change_endpoint(
    endpoint_id: str, asked: WebhookEndpointUpdate, gateway: CurrentGateway, caller: WebhooksWriter
) -> WebhookEndpointRead:
    """Change what is given; `enabled: true` tries an endpoint again that was given up."""
    if asked.url is not None:
        require_callable(gateway, asked.url, pointer="#/url")
    with gateway.sessions.begin() as session:
        row = find_endpoint(session, endpoint_id=endpoint_id, project_id=caller.project_id)
        for name, value in asked.model_dump(exclude_none=True).items():
            setattr(row, name, value)
        session.flush()
        return render_endpoint(row)


@router.delete("/webhook-endpoints/{endpoint_id}", status_code=204, responses=problem_responses(404))
def delete_endpoint(endpoint_id: str, gateway: CurrentGateway, caller: WebhooksWriter) -> Response:
    """Delete an endpoint; what still waits for it is not sent."""
    with gateway.sessions.begin() as session:
        close_endpoint(session, find_endpoint(session, endpoint_id=endpoint_id, project_id=caller.project_id))
    return Response(status_code=204)


@router.post(
    "/webhook-endpoints/{endpoint_id}/rotate-secret",
    response_model=WebhookEndpointSecret,
    responses=problem_responses(404, 409),
)
def rotate_secret(endpoint_id: str, gateway: CurrentGateway, caller: WebhooksWriter, once: Once) -> Response:
    """A new secret. For a day every message carries a signature by the old one too."""
    return answer_once(gateway, once, None, partial(_rotate, gateway, caller.project_id, endpoint_id)).response()


def _rotate(gateway: Gateway, project_id: str, endpoint_id: str, session: Session) -> Answer:
    row = find_endpoint(session, endpoint_id=endpoint_id, project_id=project_id)
    row.secret_version += 1
    row.rotated_at = session.scalars(select(db_now())).one()
    return _with_secret(gateway, row, status=200)


@router.post(
    "/webhook-endpoints/{endpoint_id}/test",
    status_code=202,
    response_model=WebhookDeliveryRead,
    responses=problem_responses(404),
)
def test_endpoint(endpoint_id: str, gateway: CurrentGateway, caller: WebhooksWriter, once: Once) -> Response:
    """Send a message that says nothing; its delivery tells what came of it."""

    def send(session: Session) -> Answer:
        row = find_endpoint(session, endpoint_id=endpoint_id, project_id=caller.project_id)
        return _accepted(send_test(session, row))

    return answer_once(gateway, once, None, send).response()


def _accepted(row: WebhookDelivery) -> Answer:
    return Answer(202, render_delivery(row).model_dump(mode="json"))


@router.get(
    "/webhook-endpoints/{endpoint_id}/deliveries",
    response_model=WebhookDeliveryPage,
    responses=problem_responses(404),
)
def list_deliveries(
    endpoint_id: str, gateway: CurrentGateway, caller: WebhooksReader, *, limit: Limit = 20, cursor: Cursor = None
) -> WebhookDeliveryPage:
    """What was sent in the last thirty days and what came of every attempt, newest first."""
    rows = select(WebhookDelivery).where(WebhookDelivery.endpoint_id == endpoint_id)
    with gateway.readers() as session:
        find_endpoint(session, endpoint_id=endpoint_id, project_id=caller.project_id)
        page = page_of(rows, WebhookDelivery, limit=limit, cursor=cursor)
        found, next_cursor = cut(session.scalars(page).all(), limit)
    return WebhookDeliveryPage(data=_shown(found), has_more=next_cursor is not None, next_cursor=next_cursor)


def _shown(rows: Sequence[Any]) -> list[WebhookDeliveryRead]:
    return [render_delivery(row) for row in rows]


@router.post(
    "/webhook-endpoints/{endpoint_id}/deliveries/{delivery_id}/redeliver",
    status_code=202,
    response_model=WebhookDeliveryRead,
    responses=problem_responses(404),
)
def send_again(
    endpoint_id: str, delivery_id: str, gateway: CurrentGateway, caller: WebhooksWriter, once: Once
) -> Response:
    """Send a message again, with the same webhook-id, to where the endpoint is now."""

    def send(session: Session) -> Answer:
        endpoint = find_endpoint(session, endpoint_id=endpoint_id, project_id=caller.project_id)
        wanted = (WebhookDelivery.id == delivery_id, WebhookDelivery.endpoint_id == endpoint.id)
        row = find_row(session, select(WebhookDelivery).where(*wanted), delivery_id, noun="delivery")
        redeliver(session, row, url=endpoint.url)
        session.flush()
        return _accepted(row)

    return answer_once(gateway, once, None, send).response()


@router.get("/jobs/{job_id}/deliveries", response_model=WebhookDeliveryPage, responses=problem_responses(404))
def list_deliveries_of_job(
    job_id: str, gateway: CurrentGateway, caller: WebhooksReader, *, limit: Limit = 20, cursor: Cursor = None
) -> WebhookDeliveryPage:
    """What was sent to the job's own `webhook`, newest first."""
    page = page_of(_own_deliveries(job_id), WebhookDelivery, limit=limit, cursor=cursor)
    with gateway.readers() as session:
        find_job(session, job_id=job_id, project_id=caller.project_id)
        found, next_cursor = cut(session.scalars(page).all(), limit)
    return WebhookDeliveryPage(data=_shown(found), has_more=next_cursor is not None, next_cursor=next_cursor)


def _own_deliveries(job_id: str) -> Select[WebhookDelivery]:
    return select(WebhookDelivery).where(WebhookDelivery.job_id == job_id, WebhookDelivery.endpoint_id.is_(None))


@router.post(
    "/jobs/{job_id}/deliveries/{delivery_id}/redeliver",
    status_code=202,
    response_model=WebhookDeliveryRead,
    responses=problem_responses(404),
)
def send_again_of_job(
    job_id: str, delivery_id: str, gateway: CurrentGateway, caller: WebhooksWriter, once: Once
) -> Response:
    """Send a message to the job's own `webhook` again, with the same webhook-id."""

    def send(session: Session) -> Answer:
        find_job(session, job_id=job_id, project_id=caller.project_id)
        wanted = _own_deliveries(job_id).where(WebhookDelivery.id == delivery_id)
        row = find_row(session, wanted, delivery_id, noun="delivery")
        redeliver(session, row, url=row.url)
        session.flush()
        return _accepted(row)

    return answer_once(gateway, once, None, send).response()
