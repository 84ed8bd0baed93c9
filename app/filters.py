"""What `GET /jobs` can be narrowed to: conditions on rows. A value that means nothing is refused, not answered."""

import re
from typing import Annotated, Any, Literal

from fastapi import Depends, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import ColumnElement

from app.auth import JobsReader
from app.openapi import METADATA
from app.schemas.requests import AskedTime, Metadata
from app.shared.datasets import INGEST
from app.shared.labels import has_label
from app.shared.models import INSPECT
from app.shared.tables import Job

Status = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]
Kind = Literal["repair", "localize", "evaluate", "inspect", "ingest"]
Verdict = Literal["pass", "fail", "inconclusive", "not_evaluated"]
METADATA_PARAMETER: dict[str, Any] = {
    "parameters": [
        {
            "name": "metadata",
            "in": "query",
            "required": False,
            "style": "deepObject",
            "explode": True,
            "schema": METADATA,
            "description": "`metadata[git_sha]=8c1f2e0`: jobs that have this pair; of several, all of them.",
        }
    ]
}
_PAIRS: TypeAdapter[dict[str, str]] = TypeAdapter(Metadata)
_NAME = re.compile(r"metadata\[(.*)\]", re.DOTALL)


def _asked_metadata(request: Request) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name != "metadata" and not name.startswith("metadata["):
            continue
        match = _NAME.fullmatch(name)
        if match is None:
            raise _refused(name, "must be metadata[KEY]=VALUE")
        if found.setdefault(match.group(1), value) != value:
            raise _refused(name, "stands here twice, with two values: no job has both")
    try:
        return _PAIRS.validate_python(found)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise _refused(f"metadata[{wrong['loc'][0]}]" if wrong["loc"] else "metadata", str(wrong["msg"])) from None


def _refused(name: str, why: str) -> RequestValidationError:
    return RequestValidationError([{"type": "value_error", "loc": ("query", name), "msg": why}])


def _conditions(
    caller: JobsReader,
    metadata: Annotated[dict[str, str], Depends(_asked_metadata)],
    *,
    status: Status | None = None,
    kind: Annotated[Kind | None, Query(description="Without it: all but `inspect` and `ingest`.")] = None,
    verdict: Verdict | None = None,
    model_id: Annotated[str | None, Query(pattern=r"^mdl_[0-9A-Z]{26}$")] = None,
    created_after: AskedTime | None = None,
    created_before: AskedTime | None = None,
) -> list[ColumnElement[bool]]:
    conditions = [Job.kind == kind] if kind is not None else [Job.kind.not_in((INSPECT, INGEST))]
    equal = ((Job.status, status), (Job.verdict, verdict), (Job.model_id, model_id))
    conditions += [column == wanted for column, wanted in equal if wanted is not None]
    if created_after is not None:
        conditions.append(Job.created_at > created_after.timestamp())
    if created_before is not None:
        conditions.append(Job.created_at < created_before.timestamp())
    return [*conditions, *(has_label(caller.project_id, key, value) for key, value in metadata.items())]


AskedJobs = Annotated[list[ColumnElement[bool]], Depends(_conditions)]
