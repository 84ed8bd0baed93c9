"""Cursor pages, newest first: the cursor is the place of the last row shown, so new rows never shift a page."""

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Query
from sqlalchemy import Select, tuple_

from app.errors import ApiProblem

Limit = Annotated[int, Query(ge=1, le=100)]
Filter = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_]{1,40}$")]
Cursor = Annotated[str | None, Query(max_length=200, description="`next_cursor` of the page before.")]


def page_of(rows: Select[Any], table: Any, *, limit: int, cursor: str | None) -> Select[Any]:
    """`rows`, newest first, after the cursor; one more than `limit`, which tells whether there are more."""
    if cursor is not None:
        created_at, row_id = _decoded(cursor)
        rows = rows.where(tuple_(table.created_at, table.id) < tuple_(created_at, row_id))
    return rows.order_by(table.created_at.desc(), table.id.desc()).limit(limit + 1)


def cut(rows: Sequence[Any], limit: int) -> tuple[Sequence[Any], str | None]:
    """The rows of this page, and the cursor of the next one when there is one."""
    if len(rows) <= limit:
        return rows, None
    last = rows[limit - 1]
    return rows[:limit], base64.urlsafe_b64encode(f"{last.created_at!r} {last.id}".encode()).decode().rstrip("=")


def _decoded(cursor: str) -> tuple[float, str]:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
        created_at, row_id = text.split(" ")
        return float(created_at), row_id
    except (binascii.Error, ValueError):
        detail = f"{cursor!r} is not a cursor of this list."
        errors = [{"parameter": "query cursor", "detail": detail}]
        raise ApiProblem("request.invalid", detail, hint="Take it from next_cursor.", errors=errors) from None
