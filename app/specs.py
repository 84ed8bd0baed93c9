"""From the bytes of a spec to a JobCreate, or to a problem that says where it is wrong and what was meant."""

import difflib
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from app.errors import ApiProblem
from app.references import parse_references
from app.schemas.requests import GivenShape, JobCreate


def parse_spec(raw: bytes) -> JobCreate:
    """Parse and validate one spec. Raises ApiProblem `spec.*` or `dataset.*`."""
    data = _json(raw)
    try:
        spec = JobCreate.model_validate(data, strict=True)
    except ValidationError as error:
        raise _spec_problem(error, data) from None
    parse_references(spec)
    return spec


def parse_input_shape(raw: bytes) -> tuple[int, ...]:
    """The shape of one input from its JSON. Raises ApiProblem `request.invalid`."""
    try:
        return tuple(_SHAPE.validate_json(raw))
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        detail = f"input_shape is {raw[:100].decode('utf-8', 'replace')!r}: {_detail(wrong)}."
        errors = [{"pointer": "#/input_shape", "detail": detail}]
        hint = "Send one input's sizes without the batch as JSON, e.g. [3, 224, 224]."
        raise ApiProblem("request.invalid", detail, hint=hint, errors=errors) from None


_SHAPE: TypeAdapter[list[int]] = TypeAdapter(GivenShape)


def _json(raw: bytes) -> Any:
    try:
        data = json.loads(raw, parse_constant=_finite, parse_float=_finite)
        json.dumps(data, ensure_ascii=False).encode()  # a lone surrogate could be stored but never answered
    except json.JSONDecodeError as error:
        wrong = f"{error.msg} at line {error.lineno}, column {error.colno}"
    except UnicodeError as error:
        wrong = (
            f"it is not UTF-8, {error.reason}" if isinstance(error, UnicodeDecodeError) else "it has half a surrogate"
        )
    except RecursionError:
        wrong = "it is nested too deeply"
    except ValueError as error:
        wrong = str(error)
    else:
        return data
    raise ApiProblem("spec.invalid_json", f"The spec is not JSON: {wrong}.", hint="Send one JSON object, in UTF-8.")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return int(number) if number.is_integer() else number  # to JSON Schema 3.0 is an integer


def upload_names(spec: JobCreate) -> dict[str, list[str]]:
    """Part name to the fields that refer to it (`datasets/repair`), for every `upload:NAME` of the spec."""
    names: dict[str, list[str]] = {}
    for field, reference in parse_references(spec).items():
        if reference.kind == "upload":
            names.setdefault(reference.target, []).append(field)
    return names


def _spec_problem(error: ValidationError, data: Any) -> ApiProblem:
    found = error.errors(include_url=False)
    errors = [{"pointer": _pointer(item["loc"], data), "detail": _detail(item)} for item in found]
    unknown = any(item["type"] == "extra_forbidden" for item in found)
    detail = "; ".join(f"{item['pointer']}: {item['detail']}" for item in errors)
    hint = "Correct these fields; /docs has the schema JobCreate."
    return ApiProblem("spec.unknown_field" if unknown else "spec.invalid", detail, hint=hint, errors=errors)


def _detail(error: Mapping[str, Any]) -> str:
    if error["type"] == "model_type":
        return "must be a JSON object"
    if error["type"] != "extra_forbidden":
        cause = error.get("ctx", {}).get("error")
        return str(cause) if isinstance(cause, Exception) else str(error["msg"])
    allowed = _names_at(error["loc"][:-1])
    close = difflib.get_close_matches(str(error["loc"][-1]), allowed, n=1, cutoff=0.5)
    meant = f" Did you mean '{close[0]}'?" if close else f" Allowed here: {', '.join(allowed)}."
    return f"There is no field '{error['loc'][-1]}' here.{meant}"


def _names_at(path: Sequence[int | str]) -> list[str]:
    """The field names of the schema at `path`."""
    schema: type[BaseModel] = JobCreate
    for step in path:
        field = schema.model_fields.get(str(step))
        schema = _model_in(field.annotation if field else None) or schema
    return list(schema.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next((model for part in typing.get_args(annotation) if (model := _model_in(part))), None)
    return None


def _pointer(location: Sequence[int | str], data: Any) -> str:
    """JSON Pointer of a pydantic location, without the steps that only name a branch of a union."""
    steps = []
    for number, step in enumerate(location):
        is_last = number == len(location) - 1
        if isinstance(data, dict) and (step in data or is_last):
            data = data.get(step)
        elif isinstance(data, list) and isinstance(step, int):
            data = data[step] if step < len(data) else None
        else:
            continue
        steps.append(str(step).replace("~", "~0").replace("/", "~1"))
    return "#" + "".join(f"/{step}" for step in steps)
