"""What the service is doing: its queues and its workers."""

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.auth import SystemReader
from app.deps import CurrentGateway
from app.routes.system import get_system
from app.ui.rendering import show_page

router = APIRouter()


@router.get("/queue")
def show_queue(request: Request, gateway: CurrentGateway, caller: SystemReader) -> Response:
    """Queues and workers, as they are now."""
    return show_page(request, "queue", system=get_system(gateway, caller))
