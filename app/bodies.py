"""JSON bodies, read by hand: what is too large or wrong is refused as a problem, before the framework sees it."""

from typing import TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from app.limits import JSON_BODY_BYTES, read_small_body

Body = TypeVar("Body", bound=BaseModel)


async def read_json(
    request: Request, schema: type[Body], *, empty: bytes = b"", max_bytes: int = JSON_BODY_BYTES
) -> Body:
    """The body as `schema`; `empty` stands for no body. Raises RequestValidationError, ApiProblem."""
    raw = await read_small_body(request.stream(), max_bytes=max_bytes)
    try:
        return schema.model_validate_json(raw or empty)
    except ValidationError as error:
        raise RequestValidationError([{**item, "loc": ("body", *item["loc"])} for item in error.errors()]) from None
