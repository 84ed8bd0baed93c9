"""The service itself."""

from archrepair_client.resources.resource import D, Resource
from archrepair_client.steps import Steps, operation
from archrepair_client.types import SystemState


class System(Resource[D]):
    """`client.system`."""

    @operation
    def retrieve(self) -> Steps[SystemState]:
        """How long the queues are, and who works."""
        return SystemState.model_validate_json((yield from self._get("/system")).content)
