"""Signing in with an API key, and out. Without scripts: the form works before anything else does."""

from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import RedirectResponse, Response

from app.auth import admit, presented
from app.deps import CurrentGateway
from app.errors import PROBLEMS, ApiProblem
from app.ui.access import COOKIE, COOKIE_PATH, own_path, set_cookie
from app.ui.rendering import show_page

router = APIRouter()
# So long at most that nothing longer than a key and a path of ours is looked at.
MAX_WORDS = 2048
Word = Annotated[str, Form(max_length=MAX_WORDS)]


@router.get("/sign-in")
async def show_sign_in(request: Request, next: str = "") -> Response:
    """The form."""
    return show_page(request, "sign_in", next=own_path(next), wrong=None)


@router.post("/sign-in")
async def sign_in(request: Request, gateway: CurrentGateway, key: Word, next: Word = "") -> Response:
    """Exchange a key for a session, and go where one wanted to."""
    try:
        found = await presented(request, gateway, key.strip())
        await admit(request, gateway, found)
    except ApiProblem as wrong:
        status = PROBLEMS[wrong.code].status
        return show_page(request, "sign_in", status=status, headers=wrong.headers, next=own_path(next), wrong=wrong)
    token = await run_in_threadpool(gateway.browser_sessions.begin, found.row.id)
    answer = RedirectResponse(own_path(next), 303)
    set_cookie(request, answer, token)
    return answer


@router.post("/sign-out")
async def sign_out(request: Request, gateway: CurrentGateway) -> Response:
    """End the session, here and wherever its cookie may have come."""
    if token := request.cookies.get(COOKIE):
        await run_in_threadpool(gateway.browser_sessions.end, token)
    answer = RedirectResponse(f"{COOKIE_PATH}/sign-in", 303)
    answer.delete_cookie(COOKIE, path=COOKIE_PATH)
    return answer
