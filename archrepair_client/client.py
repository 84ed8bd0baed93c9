"""The two clients. What they can do is written once, in `resources`; they differ in who waits."""

from copy import copy
from dataclasses import replace
from importlib.metadata import version
from typing import Any, Generic, Self, TypeVar

import httpx

from archrepair_client.config import find_access
from archrepair_client.drivers import AsyncDriver, SyncDriver, uses_environment
from archrepair_client.resources.datasets import Datasets
from archrepair_client.resources.jobs import Jobs
from archrepair_client.resources.keys import Keys
from archrepair_client.resources.models import Models
from archrepair_client.resources.resource import given
from archrepair_client.resources.system import System
from archrepair_client.resources.uploads import Uploads
from archrepair_client.resources.webhooks import Webhooks
from archrepair_client.retries import Options
from archrepair_client.steps import Async, Sync

D = TypeVar("D", bound=Sync | Async)
CONNECTIONS = httpx.Limits(max_connections=20, max_keepalive_connections=10)


class _Client(Generic[D]):
    """A driver, options, and the resources on them."""

    def __init__(self, driver: D, options: Options) -> None:
        self.driver: D = driver
        self.options = options
        self.jobs: Jobs[D] = Jobs(self)
        self.models: Models[D] = Models(self)
        self.datasets: Datasets[D] = Datasets(self)
        self.uploads: Uploads[D] = Uploads(self)
        self.keys: Keys[D] = Keys(self)
        self.webhooks: Webhooks[D] = Webhooks(self)
        self.system: System[D] = System(self)

    def with_options(self, *, timeout_seconds: float | None = None, max_retries: int | None = None) -> Self:
        """The same client, on the same connections, with other options."""
        changes = given(timeout_seconds=timeout_seconds, max_retries=max_retries)
        other = copy(self)
        _Client.__init__(other, self.driver, replace(self.options, **changes))
        return other


def _http_arguments(base_url: str | None, api_key: str | None) -> dict[str, Any]:
    access = find_access(base_url, api_key)
    return {
        "base_url": f"{access.url}/v1",
        "headers": {"Authorization": f"Bearer {access.api_key}", "User-Agent": f"archrepair/{version('archrepair')}"},
        "limits": CONNECTIONS,
        "trust_env": uses_environment(access.url),
    }


class ArchRepair(_Client[SyncDriver]):
    """A client that returns when it is done.

    Without arguments the service and the key are those of `ARCHREPAIR_URL` and `ARCHREPAIR_API_KEY`, of
    `archrepair login`, or of `archrepair up` on this machine. Raises NotConfigured.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_seconds: float = Options.timeout_seconds,
        max_retries: int = Options.max_retries,
    ) -> None:
        self._http = httpx.Client(**_http_arguments(base_url, api_key))
        super().__init__(SyncDriver(self._http), Options(timeout_seconds, max_retries))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class AsyncArchRepair(_Client[AsyncDriver]):
    """A client whose calls are awaited; else it is like ArchRepair."""

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_seconds: float = Options.timeout_seconds,
        max_retries: int = Options.max_retries,
    ) -> None:
        self._http = httpx.AsyncClient(**_http_arguments(base_url, api_key))
        super().__init__(AsyncDriver(self._http), Options(timeout_seconds, max_retries))

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.close()
