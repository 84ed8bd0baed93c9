"""What all resources share: the client they belong to, and how they ask."""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import httpx

from archrepair_client.errors import Conflict
from archrepair_client.retries import Options, answered
from archrepair_client.steps import Async, FilePart, Item, Listing, Request, Steps, Sync
from archrepair_client.types import Answer

# So often a day the same content is known again after it was deleted.
GENERATIONS = 8
D = TypeVar("D", bound=Sync | Async, covariant=True)
A = TypeVar("A", bound=Answer)


class Client(Protocol[D]):
    """What a resource needs of its client."""

    @property
    def driver(self) -> D:
        """How steps are run."""
        ...

    @property
    def options(self) -> Options:
        """How requests are made."""
        ...


class Resource(Generic[D]):
    """A noun of the API."""

    def __init__(self, client: Client[D]) -> None:
        self._client = client

    @property
    def driver(self) -> D:
        """How steps are run."""
        return self._client.driver

    @property
    def options(self) -> Options:
        """How requests are made."""
        return self._client.options

    def _get(self, path: str, *, patient: bool = False, **query: Any) -> Steps[httpx.Response]:
        options = self.options.patient() if patient else self.options
        return answered(Request("GET", path, query), options)

    def _post(
        self,
        path: str,
        json: Any = None,
        *,
        form: Sequence[FilePart] = (),
        query: Mapping[str, Any] | None = None,
        key: str | None = None,
    ) -> Steps[httpx.Response]:
        headers = {"Idempotency-Key": key} if key else {}
        return answered(Request("POST", path, query or {}, headers, json=json, form=form), self.options)

    def _post_content(self, path: str, json: Any, *, key: str) -> Steps[httpx.Response]:
        """POST what makes something of this content, or gives what it made; what was deleted since is made anew."""
        for generation in range(GENERATIONS):
            try:
                return (yield from self._post(path, json, key=f"{key}-{generation}"))
            except Conflict as error:
                if error.code != "request.idempotency_gone":
                    raise
        return (yield from self._post(path, json))

    def _delete(self, path: str) -> Steps[None]:
        yield from answered(Request("DELETE", path), self.options)

    def _pages(self, path: str, kind: type[A], /, *, limit: int | None, **query: Any) -> Listing[A]:
        """All items of a list, fetched a page at a time, `limit` of them at most."""
        cursor, left = None, limit
        while left is None or left > 0:
            size = 100 if left is None else min(left, 100)
            page = (yield from self._get(path, limit=size, cursor=cursor, **query)).json()
            for item in page["data"][:left]:
                yield Item(kind.model_validate(item))
            left = None if left is None else left - len(page["data"])
            cursor = page.get("next_cursor")
            if not cursor:
                return


def given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
