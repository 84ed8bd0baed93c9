"""The dashboard as an app below `/ui`: its pages, and the API's own routes for them, entered with a session.

Pages and scripts call what the API calls: the same functions, filters and scopes. What differs is how one is known, and
that is exchanged here, in one place.
"""

from pathlib import Path
from urllib.parse import parse_qsl, urlencode

from fastapi import Depends, FastAPI
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from app.auth import authenticate
from app.errors import install_error_handlers
from app.routes import artifacts, datasets, events, jobs, logs, models, system, uploads, verdicts
from app.ui import account, catalogue, comparison, job, job_list, new_job, queue
from app.ui.access import COOKIE_PATH, START_PAGE, require_own_page, signed_in
from app.ui.rendering import answer_problem

STATIC = Path(__file__).parent / "static"
PAGES = (account, job_list, job, comparison, new_job, catalogue, queue)
# What scripts of our pages ask for. Keys and webhooks are not among them: a stolen session makes no lasting way in.
API = (jobs, verdicts, events, logs, artifacts, models, datasets, uploads, system)


def mount_dashboard(app: FastAPI) -> None:
    """Put the dashboard below `/ui` of the gateway, whose state it shares."""
    dashboard = FastAPI(
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(require_own_page)],
    )
    dashboard.state = app.state
    # Every scope of every route asks `authenticate` who it is.
    dashboard.dependency_overrides[authenticate] = signed_in
    install_error_handlers(dashboard, answer_problem)
    for page in PAGES:
        dashboard.include_router(page.router)
    for module in API:
        dashboard.include_router(module.router, prefix="/api")
    dashboard.mount("/static", KeptFiles(directory=STATIC), name="static")
    dashboard.add_middleware(WithoutEmptyFields)
    app.mount(COOKIE_PATH, dashboard)
    for path in ("/", COOKIE_PATH):
        app.add_api_route(path, _to_start, include_in_schema=False, methods=["GET"])


async def _to_start() -> RedirectResponse:
    return RedirectResponse(START_PAGE, 303)


class KeptFiles(StaticFiles):
    """Static files that browsers keep: those whose URL names their content for ever, others until they have changed."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """The file, or 304."""
        answer = await super().get_response(path, scope)
        answer.headers["Cache-Control"] = "public, max-age=31536000, immutable" if scope["query_string"] else "no-cache"
        return answer


class WithoutEmptyFields:
    """A field of a form that was left empty asks for nothing, where the API would read an empty word."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on without its empty query parameters."""
        if scope["type"] == "http" and b"=&" in scope["query_string"] + b"&":
            scope = {**scope, "query_string": urlencode(parse_qsl(scope["query_string"].decode("latin-1"))).encode()}
        await self.app(scope, receive, send)
