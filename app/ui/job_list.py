"""All jobs of the project, as they run, narrowed by what stands in the URL."""

from typing import get_args

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.auth import JobsReader
from app.deps import CurrentGateway
from app.filters import AskedJobs, Kind, Status, Verdict
from app.pages import Cursor, Limit
from app.routes.jobs import list_jobs
from app.ui.rendering import show_page

router = APIRouter()
CHOICES = {"status": get_args(Status), "kind": get_args(Kind), "verdict": get_args(Verdict)}


@router.get("/jobs")
def show_jobs(
    request: Request,
    gateway: CurrentGateway,
    caller: JobsReader,
    asked: AskedJobs,
    *,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Response:
    """The list."""
    page = list_jobs(gateway, caller, asked, limit=limit, cursor=cursor)
    # What the form has no field for, and is to stay as it is.
    others = [
        (name, value)
        for name, value in request.query_params.multi_items()
        if name not in (*CHOICES, "cursor", "model_id")
    ]
    return show_page(request, "jobs", page=page, choices=CHOICES, others=others)
