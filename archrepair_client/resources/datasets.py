"""Registered data."""

from collections.abc import Mapping
from pathlib import Path

from archrepair_client.resources.resource import D, Resource, given
from archrepair_client.resources.uploads import Uploads
from archrepair_client.resources.waiting import waited
from archrepair_client.specs import is_reference
from archrepair_client.steps import Listing, Steps, listing, operation
from archrepair_client.transfers import OnTransfer
from archrepair_client.types import Dataset


class Datasets(Resource[D]):
    """`client.datasets`."""

    @operation
    def create(
        self,
        source: str | Path,
        *,
        name: str | None = None,
        sha256: str | None = None,
        metadata: Mapping[str, str] | None = None,
        on_transfer: OnTransfer | None = None,
    ) -> Steps[Dataset]:
        """Register a file of this machine, or a reference: `https://…`, `s3://…`, `builtin:digits`."""
        reference = str(source)
        if isinstance(source, Path) or not is_reference(reference):
            upload = yield from Uploads.send.steps(Uploads(self._client), source, on_transfer=on_transfer)
            reference = upload.id
        asked = given(reference=reference, name=name, sha256=sha256, metadata=dict(metadata) if metadata else None)
        return Dataset.model_validate_json((yield from self._post("/datasets", asked)).content)

    @operation
    def retrieve(self, dataset_id: str) -> Steps[Dataset]:
        """One dataset."""
        return Dataset.model_validate_json((yield from self._get(f"/datasets/{dataset_id}")).content)

    @operation
    def wait(self, dataset_id: str, *, timeout_seconds: float | None = None) -> Steps[Dataset]:
        """The dataset when it has been read: `ready` or `rejected`. Raises TimeoutError."""
        return (yield from waited(self.options, f"/datasets/{dataset_id}", Dataset, timeout_seconds))

    @listing
    def list(self, *, state: str | None = None, limit: int | None = None) -> Listing[Dataset]:
        """The project's datasets, newest first."""
        return self._pages("/datasets", Dataset, limit=limit, state=state)

    @operation
    def delete(self, dataset_id: str) -> Steps[None]:
        """Delete a dataset. Jobs that were given it keep its content."""
        yield from self._delete(f"/datasets/{dataset_id}")
