"""API keys of a project: make, list, revoke. What a key is stands in app.keys."""

from functools import partial

from fastapi import APIRouter
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.responses import Response

from app.auth import Caller, KeysReader, KeysWriter
from app.deps import CurrentGateway
from app.errors import ApiProblem, problem_responses
from app.idempotency import Answer, Once, answer_once
from app.keys import KEYS_WRITE, add_api_key, live_keys
from app.pages import Cursor, Limit, cut, page_of
from app.rendering import render_key
from app.rows import find_row
from app.schemas.requests import ApiKeyCreate
from app.schemas.responses import ApiKeyCreated, ApiKeyPage, ApiKeyRead
from app.shared.db import db_now
from app.shared.tables import ApiKey, Project

router = APIRouter(tags=["api keys"], responses=problem_responses(401, 403, 422, 429, 500, 503))


def find_key(session: Session, *, key_id: str, project_id: str) -> ApiKey:
    """The project's key of that id, unless it is revoked. Raises ApiProblem `key.not_found`."""
    found = select(ApiKey).where(ApiKey.id == key_id, ApiKey.project_id == project_id, ApiKey.revoked_at.is_(None))
    return find_row(session, found, key_id, noun="key")


@router.post(
    "/api-keys",
    status_code=201,
    response_model=ApiKeyCreated,
    responses=problem_responses(409, 413),
)
def create_key(asked: ApiKeyCreate, gateway: CurrentGateway, caller: KeysWriter, once: Once) -> Response:
    """Make a key. The answer is the only place where it can be read."""
    return answer_once(gateway, once, asked, partial(_create, caller, asked)).response()


def _create(caller: Caller, asked: ApiKeyCreate, session: Session) -> Answer:
    if wanting := [scope for scope in asked.scopes if scope not in caller.scopes]:
        detail = f"Your key does not have {', '.join(wanting)} itself."
        errors = [{"pointer": "#/scopes", "detail": detail}]
        raise ApiProblem("key.scope_not_held", detail, hint="Use a key that has these scopes.", errors=errors)
    row, key = add_api_key(
        session,
        project_id=caller.project_id,
        name=asked.name,
        scopes=asked.scopes,
        expires_at=asked.expires_at.timestamp() if asked.expires_at else None,
    )
    shown = ApiKeyCreated(**render_key(row).model_dump(), key=key)
    return Answer(201, shown.model_dump(mode="json"), {"Location": shown.links["self"]}, secrets=("key",))


@router.get("/api-keys", response_model=ApiKeyPage)
def list_keys(gateway: CurrentGateway, caller: KeysReader, *, limit: Limit = 20, cursor: Cursor = None) -> ApiKeyPage:
    """The project's keys that are not revoked, newest first."""
    rows = select(ApiKey).where(ApiKey.project_id == caller.project_id, ApiKey.revoked_at.is_(None))
    with gateway.readers() as session:
        keys, next_cursor = cut(session.scalars(page_of(rows, ApiKey, limit=limit, cursor=cursor)).all(), limit)
    return ApiKeyPage(data=[render_key(row) for row in keys], has_more=next_cursor is not None, next_cursor=next_cursor)


@router.get("/api-keys/{key_id}", response_model=ApiKeyRead, responses=problem_responses(404))
def get_key(key_id: str, gateway: CurrentGateway, caller: KeysReader) -> ApiKeyRead:
    """One key, without its secret."""
    with gateway.readers() as session:
        return render_key(find_key(session, key_id=key_id, project_id=caller.project_id))


@router.delete("/api-keys/{key_id}", status_code=204, responses=problem_responses(404, 409))
def revoke_key(key_id: str, gateway: CurrentGateway, caller: KeysWriter) -> Response:
    """Revoke a key: the next request with it is refused, by other gateways within a second.

    The last one that can make keys stays.
    """
    with gateway.sessions.begin() as session:
        # One at a time: two keys that can make keys must not revoke each other.
        session.get_one(Project, caller.project_id, with_for_update={"key_share": True})
        row = find_key(session, key_id=key_id, project_id=caller.project_id)
        makers = [key.id for key in session.scalars(live_keys(caller.project_id)) if KEYS_WRITE in key.scopes]
        if makers == [row.id]:
            detail = f"Key {key_id} is the last of your project that can make keys."
            raise ApiProblem("key.last_one", detail, hint=f"Make another one with {KEYS_WRITE} before.")
        row.revoked_at = session.scalars(select(db_now())).one()
    gateway.known_keys.forget()
    return Response(status_code=204)
