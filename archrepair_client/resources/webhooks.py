"""Where the project wants to hear of its jobs and models, and what was sent there."""

from collections.abc import Sequence
from typing import Any

from archrepair_client.resources.resource import D, Resource, given
from archrepair_client.retries import answered
from archrepair_client.steps import Listing, Request, Steps, listing, operation
from archrepair_client.types import WebhookDelivery, WebhookEndpoint

PATH = "/webhook-endpoints"


class Webhooks(Resource[D]):
    """`client.webhooks`."""

    @operation
    def create(
        self, url: str, *, events: Sequence[str] | None = None, description: str | None = None
    ) -> Steps[WebhookEndpoint]:
        """Register an endpoint. Its `secret` can be read in this answer alone."""
        asked = given(url=url, events=[*events] if events else None, description=description)
        return WebhookEndpoint.model_validate_json((yield from self._post(PATH, asked)).content)

    @operation
    def retrieve(self, endpoint_id: str) -> Steps[WebhookEndpoint]:
        """One endpoint, without its secret."""
        return WebhookEndpoint.model_validate_json((yield from self._get(f"{PATH}/{endpoint_id}")).content)

    @listing
    def list(self, *, limit: int | None = None) -> Listing[WebhookEndpoint]:
        """The project's endpoints, newest first."""
        return self._pages(PATH, WebhookEndpoint, limit=limit)

    @operation
    def update(self, endpoint_id: str, **changes: Any) -> Steps[WebhookEndpoint]:
        """Change `url`, `events`, `description` or `enabled`."""
        request = Request("PATCH", f"{PATH}/{endpoint_id}", json=changes)
        return WebhookEndpoint.model_validate_json((yield from answered(request, self.options)).content)

    @operation
    def delete(self, endpoint_id: str) -> Steps[None]:
        """Delete an endpoint; what still waits for it is not sent."""
        yield from self._delete(f"{PATH}/{endpoint_id}")

    @operation
    def rotate_secret(self, endpoint_id: str) -> Steps[WebhookEndpoint]:
        """A new signing secret; for a day messages carry a signature by the old one too."""
        response = yield from self._post(f"{PATH}/{endpoint_id}/rotate-secret")
        return WebhookEndpoint.model_validate_json(response.content)

    @operation
    def test(self, endpoint_id: str) -> Steps[WebhookDelivery]:
        """Send a message that says nothing."""
        return WebhookDelivery.model_validate_json((yield from self._post(f"{PATH}/{endpoint_id}/test")).content)

    @listing
    def deliveries(self, endpoint_id: str, *, limit: int | None = None) -> Listing[WebhookDelivery]:
        """What was sent in the last thirty days and what came of it, newest first."""
        return self._pages(f"{PATH}/{endpoint_id}/deliveries", WebhookDelivery, limit=limit)

    @operation
    def redeliver(self, endpoint_id: str, delivery_id: str) -> Steps[WebhookDelivery]:
        """Send a message again."""
        response = yield from self._post(f"{PATH}/{endpoint_id}/deliveries/{delivery_id}/redeliver")
        return WebhookDelivery.model_validate_json(response.content)
