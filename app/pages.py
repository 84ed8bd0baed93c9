"""Cursor pages, newest first: the cursor is the place of the last row shown, so new rows never shift a page."""

import struct
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Query
from sqlalchemy import Select, tuple_

Limit = Annotated[int, Query(ge=1, le=100)]
Filter = Annotated[str | None, Query(pattern=r"^[A-Za-z0-9_]{1,40}$")]
# Every string of this form is the place of a row that may have been: the schema says all there is to say about cursors.
Cursor = Annotated[
    str | None,
    Query(pattern=r"^4[0-9a-f]{15}[a-z]{2,4}_[0-9A-Z]{26}$", description="`next_cursor` of the page before."),
]
_TIME_DIGITS = 16  # the hexadecimal digits of a float; those of a time from year 1970 on begin with 4


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
    return rows[:limit], struct.pack(">d", last.created_at).hex() + last.id


def _decoded(cursor: str) -> tuple[float, str]:
    created_at: float = struct.unpack(">d", bytes.fromhex(cursor[:_TIME_DIGITS]))[0]
    return created_at, cursor[_TIME_DIGITS:]
