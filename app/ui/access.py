"""Who is asking, of a browser: a session cookie instead of a Bearer key, and only for what our own pages ask.

The cookie is sent to `/ui` alone: the API never sees it. A change is taken only from a page of this service, which the
browser itself says (Sec-Fetch-Site, or Origin where it sends none); besides, the cookie is SameSite=Strict.
"""

from urllib.parse import quote

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.auth import Caller, admit
from app.browser_sessions import SESSION_SECONDS
from app.deps import CurrentGateway, Gateway
from app.errors import ApiProblem
from app.keys import FoundKey, find_key_of_id

COOKIE = "archrepair_session"
COOKIE_PATH = "/ui"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
START_PAGE = "/ui/jobs"


async def require_own_page(request: Request) -> None:
    """Let changes pass that a page of this service asks for. Raises ApiProblem `auth.foreign_page`.

    A plain-http browser sends no Sec-Fetch-Site but to loopback; every browser sends Origin with what changes things.
    """
    if request.method in SAFE_METHODS:
        return
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin", "")
    host = origin.partition("://")[2]
    is_own = site == "same-origin" if site else host != "" and host == request.headers.get("host")
    if not is_own:
        detail = f"Another page asked for this: Sec-Fetch-Site is {site!r}, Origin {origin!r}."
        raise ApiProblem("auth.foreign_page", detail, hint="Programs use the API, with a key: see /docs.")


async def signed_in(request: Request, gateway: CurrentGateway) -> Caller:
    """The caller whose session the cookie names. Raises ApiProblem `auth.missing_key` where there is none."""
    token = request.cookies.get(COOKIE, "")
    found = await run_in_threadpool(_key_of, gateway, token) if token else None
    if found is None:
        raise ApiProblem("auth.missing_key", "Nobody is signed in here.", hint="Sign in with an API key.")
    return await admit(request, gateway, found)


def _key_of(gateway: Gateway, token: str) -> FoundKey | None:
    key_id = gateway.browser_sessions.key_of(token)
    if key_id is None:
        return None
    with gateway.readers() as session:
        return find_key_of_id(session, key_id)


def set_cookie(request: Request, answer: Response, token: str) -> None:
    """Give the browser its session. Secure wherever the browser speaks TLS, which a proxy may hide from us."""
    is_secure = request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")
    answer.set_cookie(
        COOKIE,
        token,
        max_age=SESSION_SECONDS,
        path=COOKIE_PATH,
        secure=is_secure,
        httponly=True,
        samesite="strict",
    )


def own_path(asked: str) -> str:
    """Where to go after signing in: a page of the dashboard, whatever the link says."""
    return asked if asked.startswith(f"{COOKIE_PATH}/") and "\\" not in asked else START_PAGE


def sign_in_path(request: Request) -> str:
    """The page to sign in on, which leads back to the one that was asked for."""
    path = request.url.path if request.method == "GET" else START_PAGE
    asked = f"{path}?{request.url.query}" if request.url.query and path == request.url.path else path
    return f"{COOKIE_PATH}/sign-in?next={quote(asked, safe='')}"
