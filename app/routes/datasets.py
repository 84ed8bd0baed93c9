"""Datasets: register data once, by a file or by a reference, see what is in it, use it in many jobs as `ds_…`."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import Select, select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from app.auth import DatasetsReader, DatasetsWriter
from app.bodies import read_json
from app.deps import CurrentGateway, Gateway
from app.errors import ApiProblem, problem_responses
from app.idempotency import Answer, Once, answer_once
from app.openapi import DATASET_BODY
from app.pages import Cursor, Filter, Limit, cut, page_of
from app.quotas import require_quotas
from app.references import allow, content_columns, usable_upload
from app.rendering import render_dataset
from app.rows import find_row
from app.schemas.requests import DatasetCreate, DatasetFields
from app.schemas.responses import DatasetPage, DatasetRead
from app.shared.contents import free_content, lock_contents
from app.shared.datasets import delete_dataset, submit_ingest
from app.shared.ids import new_id
from app.shared.references import Reference, ReferenceRefused, parse_reference
from app.shared.settings import Settings
from app.shared.tables import Dataset, JobInput
from app.uploads import (
    DATASET_FIELDS,
    DATASET_PART,
    ReceivedFile,
    digests,
    forget_files,
    is_json,
    keep_files,
    open_form,
    receive_form,
    total_bytes,
)
from app.waiting import RETRY_AFTER_SECONDS, wait_for

router = APIRouter(tags=["datasets"], responses=problem_responses(401, 403, 422, 429, 500, 503))
ACCEPTED_HEADERS = {"Retry-After": str(RETRY_AFTER_SECONDS)}
METADATA: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])
FILE_REFERENCE = f"upload:{DATASET_PART}"


def _datasets_of(project_id: str) -> Select[Dataset]:
    return select(Dataset).where(Dataset.project_id == project_id, Dataset.deleted_at.is_(None))


def find_dataset(session: Session, *, dataset_id: str, project_id: str) -> Dataset:
    """The project's dataset of that id. Raises ApiProblem `dataset.not_found`."""
    return find_row(session, _datasets_of(project_id).where(Dataset.id == dataset_id), dataset_id, noun="dataset")


@router.post(
    "/datasets",
    status_code=202,
    response_model=DatasetRead,
    responses=problem_responses(409, 413, 415),
    openapi_extra={"requestBody": DATASET_BODY},
)
async def create_dataset(request: Request, gateway: CurrentGateway, caller: DatasetsWriter, once: Once) -> Response:
    """Register data. A worker fetches it if need be and reads it: then it is `ready` or `rejected`."""
    if is_json(request):
        asked = await read_json(request, DatasetCreate)
        reference = _reference_of(asked, gateway.settings)
        make = partial(_register_reference, gateway, caller.project_id, asked, reference)
        answer = await run_in_threadpool(answer_once, gateway, once, asked, make)
    else:
        parts = open_form(request, gateway.settings, part=DATASET_PART)
        async with receive_form(parts, gateway.store, file=DATASET_PART, fields=DATASET_FIELDS) as (files, raw):
            fields = _fields_of(raw)
            register = partial(_register_file, gateway, caller.project_id, files, fields)
            answer = await run_in_threadpool(answer_once, gateway, once, fields, register, files=digests(files))
            if answer.replayed:
                await run_in_threadpool(forget_files, files, gateway.store)
    gateway.relay.wake()
    return answer.response()


def _reference_of(asked: DatasetCreate, settings: Settings) -> Reference:
    text = asked.reference
    if asked.sha256 is not None and "#" not in text and not text.startswith("upl_"):
        text = f"{text}#sha256={asked.sha256}"
    try:
        reference = parse_reference(text)
        if reference.kind in ("upload", "ds"):
            raise ReferenceRefused("reference_not_supported", f"{asked.reference!r} cannot be registered.")
        allow(reference, settings)
    except ReferenceRefused as error:
        errors = [{"pointer": "#/reference", "detail": error.detail}]
        raise ApiProblem(f"dataset.{error.code}", error.detail, hint=error.hint, errors=errors) from None
    if asked.sha256 not in (None, reference.sha256) and reference.kind != "upl":
        detail = f"The reference says sha256 {reference.sha256}, the field sha256 {asked.sha256}."
        raise ApiProblem("request.invalid", detail, hint="Leave one of them out.")
    return reference


def _fields_of(raw: dict[str, bytes]) -> DatasetFields:
    """The text parts of a form; `metadata` is JSON."""
    fields: dict[str, Any] = {}
    if "name" in raw:
        fields["name"] = raw["name"].decode("utf-8", "replace")
    try:
        if "metadata" in raw:
            fields["metadata"] = METADATA.validate_json(raw["metadata"])
        return DatasetFields.model_validate(fields)
    except ValidationError as error:
        place = ("body", "metadata") if error.title != DatasetFields.__name__ else ("body",)
        raise RequestValidationError([{**item, "loc": (*place, *item["loc"])} for item in error.errors()]) from None


def _register_reference(
    gateway: Gateway, project_id: str, asked: DatasetCreate, reference: Reference, session: Session
) -> Answer:
    row, content = _new(project_id, asked, asked.reference), None
    row.name = asked.name or reference.filename
    if reference.kind == "upl":
        upload = usable_upload(session, "reference", reference.target, project_id)
        lock_contents(session, [str(upload.sha256)])
        session.refresh(upload)
        upload = usable_upload(session, "reference", reference.target, project_id)
        if asked.sha256 not in (None, upload.sha256):
            detail = f"The upload has the sha256 {upload.sha256}, the field sha256 is {asked.sha256}."
            raise ApiProblem("upload.digest_mismatch", detail, hint="Register the upload that was meant.")
        row.name = asked.name or upload.filename
        content = JobInput(name=reference.target, **content_columns(upload))
    elif reference.kind != "builtin":
        row.reference = f"{reference.target}#sha256={reference.sha256}" if reference.sha256 else reference.target
    return _submitted(gateway, session, row, content)


def _register_file(
    gateway: Gateway, project_id: str, files: dict[str, ReceivedFile], fields: DatasetFields, session: Session
) -> Answer:
    require_quotas(session, gateway.settings, project_id, stored_bytes=total_bytes(files))
    file = keep_files(session, files, gateway.store)[DATASET_PART]
    row = _new(project_id, fields, FILE_REFERENCE)
    row.name = fields.name or file.filename
    content = JobInput(name=FILE_REFERENCE, filename=file.filename, **vars(file.stored))
    return _submitted(gateway, session, row, content)


def _new(project_id: str, fields: DatasetFields, reference: str) -> Dataset:
    return Dataset(id=new_id("ds"), project_id=project_id, reference=reference, labels=fields.metadata)


def _submitted(gateway: Gateway, session: Session, row: Dataset, content: JobInput | None) -> Answer:
    if content is not None:  # the dataset keeps the bytes from now on, not only when somebody has read them
        row.filename, row.sha256 = content.filename, content.sha256
        row.size_bytes, row.storage_key = content.size_bytes, content.storage_key
    session.add(row)
    session.flush()
    submit_ingest(session, row, content=content, max_attempts=gateway.settings.max_attempts)
    shown = render_dataset(row)
    return Answer(202, shown.model_dump(mode="json"), {"Location": shown.links["self"], **ACCEPTED_HEADERS})


@router.get("/datasets", response_model=DatasetPage)
def list_datasets(
    gateway: CurrentGateway, caller: DatasetsReader, *, state: Filter = None, limit: Limit = 20, cursor: Cursor = None
) -> DatasetPage:
    """The project's datasets, newest first."""
    rows = _datasets_of(caller.project_id)
    if state is not None:
        rows = rows.where(Dataset.state == state)
    with gateway.readers() as session:
        found, next_cursor = cut(session.scalars(page_of(rows, Dataset, limit=limit, cursor=cursor)).all(), limit)
    data = [render_dataset(row) for row in found]
    return DatasetPage(data=data, has_more=next_cursor is not None, next_cursor=next_cursor)


@router.get("/datasets/{dataset_id}", response_model=DatasetRead, responses=problem_responses(404))
async def get_dataset(
    dataset_id: str,
    request: Request,
    gateway: CurrentGateway,
    caller: DatasetsReader,
    *,
    wait: Annotated[float, Query(ge=0, le=60, description="Seconds to wait until it has been read.")] = 0,
) -> Response:
    """One dataset. With `wait` the answer comes when it has been read."""
    look = partial(_look, gateway, dataset_id, project_id=caller.project_id)
    dataset = await wait_for(request, gateway, look, enough=lambda seen: seen.done, seconds=wait)
    return JSONResponse(dataset.model_dump(mode="json"), headers=None if dataset.done else ACCEPTED_HEADERS)


def _look(gateway: Gateway, dataset_id: str, *, project_id: str) -> DatasetRead:
    with gateway.readers() as session:
        return render_dataset(find_dataset(session, dataset_id=dataset_id, project_id=project_id))


@router.delete("/datasets/{dataset_id}", status_code=204, responses=problem_responses(404))
def remove_dataset(dataset_id: str, gateway: CurrentGateway, caller: DatasetsWriter) -> Response:
    """Delete a dataset. Jobs that were given it keep its content."""
    with gateway.sessions.begin() as session:
        freed = delete_dataset(session, find_dataset(session, dataset_id=dataset_id, project_id=caller.project_id))
    for storage_key, sha256 in freed.items():
        with gateway.sessions.begin() as session:
            free_content(session, gateway.store, sha256=sha256, storage_key=storage_key)
    return Response(status_code=204)
