"""Registered models."""

from collections.abc import Sequence
from pathlib import Path

from archrepair_client.resources.resource import D, Resource, given
from archrepair_client.resources.uploads import Uploads
from archrepair_client.resources.waiting import waited
from archrepair_client.steps import Listing, Steps, listing, operation
from archrepair_client.transfers import OnTransfer
from archrepair_client.types import Block, Model


class Models(Resource[D]):
    """`client.models`."""

    @operation
    def create(
        self, path: str | Path, *, input_shape: Sequence[int] | None = None, on_transfer: OnTransfer | None = None
    ) -> Steps[Model]:
        """Register the model in a file. The same content with the same shape is registered once a day, not twice."""
        upload = yield from Uploads.send.steps(Uploads(self._client), path, on_transfer=on_transfer)
        asked = given(upload_id=upload.id, input_shape=list(input_shape) if input_shape else None)
        key = f"model-{upload.id}-{'x'.join(map(str, input_shape or ()))}"
        response = yield from self._post_content("/models", asked, key=key)
        return Model.model_validate_json(response.content)

    @operation
    def retrieve(self, model_id: str) -> Steps[Model]:
        """One model."""
        return Model.model_validate_json((yield from self._get(f"/models/{model_id}")).content)

    @operation
    def wait(self, model_id: str, *, timeout_seconds: float | None = None) -> Steps[Model]:
        """The model when it is inspected: `ready` or `rejected`. Raises TimeoutError."""
        return (yield from waited(self.options, f"/models/{model_id}", Model, timeout_seconds))

    @listing
    def list(self, *, state: str | None = None, limit: int | None = None) -> Listing[Model]:
        """The project's models, newest first."""
        return self._pages("/models", Model, limit=limit, state=state)

    @operation
    def blocks(self, model_id: str) -> "Steps[Sequence[Block]]":
        """The blocks a repair can work on, in the order they run."""
        page = (yield from self._get(f"/models/{model_id}/blocks")).json()
        return [Block.model_validate(item) for item in page["data"]]

    @operation
    def delete(self, model_id: str) -> Steps[None]:
        """Delete a model that no unfinished job uses."""
        yield from self._delete(f"/models/{model_id}")
