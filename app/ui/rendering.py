"""From what the API answers to pages: templates, their filters, and problems as people read them."""

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse, RedirectResponse, Response

from app.errors import answer_to
from app.schemas.responses import Phase
from app.ui.access import sign_in_path
from archrepair_core.report.numbers import show

# Nothing inline and nothing from elsewhere; the report is framed with a policy of its own.
PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'"
)
STATIC = Path(__file__).parent / "static"
# Who is not signed in is led to the page for it, but for scripts.
NOT_SIGNED_IN = frozenset({"auth.missing_key", "auth.expired_key"})


def show_page(
    request: Request, name: str, *, status: int = 200, headers: Mapping[str, str] | None = None, **values: Any
) -> HTMLResponse:
    """The page `name` with these values."""
    template = _environment().get_template(f"{name}.html.j2")
    body = template.render(path=request.url.path, query=request.query_params, **values)
    return HTMLResponse(body, status, {"Content-Security-Policy": PAGE_POLICY, **(headers or {})})


def answer_problem(request: Request, error: Exception) -> Response:
    """A refusal as the API words it: JSON to scripts, a page to people, and the sign-in page where that is missing."""
    problem = answer_to(request, error)
    if request.url.path.startswith(f"{request.scope['root_path']}/api/"):
        return problem
    told = json.loads(bytes(problem.body))
    if told["code"] in NOT_SIGNED_IN:
        return _to_sign_in(request)
    return show_page(request, "problem", status=problem.status_code, headers=_kept(problem), problem=told)


def _kept(problem: Response) -> dict[str, str]:
    return {name: problem.headers[name] for name in ("retry-after", "allow") if name in problem.headers}


def _to_sign_in(request: Request) -> Response:
    path = sign_in_path(request)
    if "hx-request" in request.headers:  # a part of a page is asked for; the page as a whole has to go
        return Response(status_code=401, headers={"HX-Redirect": path})
    if request.headers.get("sec-fetch-site") == "cross-site" and request.method == "GET":
        # A browser keeps a strict cookie to itself when a link elsewhere leads here. Asked by our own page, it tells.
        return show_page(request, "again")
    return RedirectResponse(path, 303)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("app.ui"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals["static"] = static_path
    environment.filters |= {
        "ago": ago,
        "bytes": size_in_words,
        "duration": duration,
        "moment": moment,
        "seconds": seconds_of,
        "show": show,
        "pretty": partial(json.dumps, indent=2, ensure_ascii=False),
        "query": query_of,
        "words": words,
    }
    return environment


@cache
def static_path(name: str) -> str:
    """The URL of a static file, which changes with it: browsers may keep it for ever."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/ui/static/{name}?{digest}"


def query_of(query: Mapping[str, str], **changes: str | None) -> str:
    """The query string with some parameters changed, or taken out where they are None."""
    return "?" + urlencode({name: value for name, value in {**query, **changes}.items() if value is not None})


def words(description: str) -> Markup:
    """A description of a schema, in which `backticks` stand around code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(description))))


def _parsed(at: str) -> datetime:
    return datetime.fromisoformat(at)


def moment(at: str | None) -> str:
    """A time as people write it, in UTC."""
    return f"{_parsed(at):%Y-%m-%d %H:%M:%S} UTC" if at else "–"


def ago(at: str | None) -> str:
    """How long ago a time is, or how far ahead, roughly."""
    if not at:
        return "–"
    seconds = (datetime.now(UTC) - _parsed(at)).total_seconds()
    return f"{duration(seconds)} ago" if seconds >= 0 else f"in {duration(-seconds)}"


def duration(seconds: float | None) -> str:
    """Seconds in the two largest units that say something."""
    if seconds is None:
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, rest, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // rest} {part}"
    return f"{whole} s"


def size_in_words(size: int | None) -> str:
    """Bytes in the unit that leaves up to four digits."""
    if size is None:
        return "–"
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            return f"{size / 1024**power:.1f} {unit}"
    return f"{size} B"


def seconds_of(phase: Phase) -> float | None:
    """How long a phase took, if it is over."""
    if phase.finished_at is None:
        return None
    return (_parsed(phase.finished_at) - _parsed(phase.started_at)).total_seconds()
