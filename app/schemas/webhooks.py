"""What the service says of webhooks: endpoints, their secrets, deliveries."""

from typing import Any, Literal

from pydantic import Field

from app.schemas.responses import Page, Read, Time


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


class WebhookEndpointPage(Page):
    data: list[WebhookEndpointRead]


class WebhookDeliveryPage(Page):
    data: list[WebhookDeliveryRead]
