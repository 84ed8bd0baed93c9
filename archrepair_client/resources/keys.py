"""The project's API keys."""

from collections.abc import Sequence
from datetime import datetime

from archrepair_client.resources.resource import D, Resource, given
from archrepair_client.steps import Listing, Steps, listing, operation
from archrepair_client.types import ApiKey


class Keys(Resource[D]):
    """`client.keys`."""

    @operation
    def create(self, name: str, *, scopes: Sequence[str], expires_at: datetime | None = None) -> Steps[ApiKey]:
        """Make a key. Its `key` can be read in this answer alone."""
        ends = expires_at.astimezone().isoformat() if expires_at is not None else None
        response = yield from self._post("/api-keys", given(name=name, scopes=[*scopes], expires_at=ends))
        return ApiKey.model_validate_json(response.content)

    @operation
    def retrieve(self, key_id: str) -> Steps[ApiKey]:
        """One key, without its secret."""
        return ApiKey.model_validate_json((yield from self._get(f"/api-keys/{key_id}")).content)

    @listing
    def list(self, *, limit: int | None = None) -> Listing[ApiKey]:
        """The keys that are not revoked, newest first."""
        return self._pages("/api-keys", ApiKey, limit=limit)

    @operation
    def delete(self, key_id: str) -> Steps[None]:
        """Revoke a key."""
        yield from self._delete(f"/api-keys/{key_id}")
