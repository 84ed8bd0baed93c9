"""What Prometheus asks for."""

import hmac
from typing import Annotated

from fastapi import APIRouter, Depends
from fastapi.security import HTTPAuthorizationCredentials
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from starlette.responses import Response

from app.auth import CHALLENGE, bearer
from app.deps import CurrentGateway
from app.errors import ApiProblem, problem_responses
from app.shared.disk import local_store
from app.shared.gauges import DiskGauges
from app.shared.metrics import registry_with

router = APIRouter(tags=["system"])
TEXT = {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' text format"}


# With a key or without one: which, the operator has set (ARCHREPAIR_METRICS_TOKEN).
@router.get(
    "/metrics",
    response_class=Response,
    responses={200: TEXT, **problem_responses(401, 500)},
    openapi_extra={"security": [{}]},
)
def get_metrics(
    gateway: CurrentGateway, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> Response:
    """Counts and times of this gateway, and the state of the queues. No key: a token of its own, where one is set."""
    token = gateway.settings.metrics_token
    if token is not None:
        given = credentials.credentials if credentials else ""
        if not hmac.compare_digest(given.encode(), token.encode()):
            hint = "Send the header Authorization: Bearer with the service's ARCHREPAIR_METRICS_TOKEN."
            raise ApiProblem("auth.invalid_key", "Metrics need their token.", hint=hint, headers=CHALLENGE)
    registry = registry_with(gateway.gauges, DiskGauges(local_store(gateway.settings)))
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)
