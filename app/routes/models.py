"""Models: register once, see what is in them, use in many jobs by `model_id`."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from app.auth import ModelsReader, ModelsWriter
from app.bodies import read_json
from app.deps import CurrentGateway, Gateway
from app.errors import ApiProblem, problem_responses
from app.idempotency import Answer, Once, answer_once
from app.openapi import REGISTER_BODY
from app.pages import Cursor, Filter, Limit, cut, page_of
from app.quotas import require_quotas
from app.references import content_columns, usable_upload
from app.rendering import render_blocks, render_model
from app.rows import find_row, models_of, why_rejected
from app.schemas.requests import ModelCreate
from app.schemas.responses import BlockPage, ModelPage, ModelRead
from app.shared.contents import free_content, lock_contents
from app.shared.ids import new_id
from app.shared.models import (
    INSPECTING,
    REJECTED,
    ModelInUse,
    delete_model,
    submit_inspection,
)
from app.shared.storage import first_bytes
from app.shared.tables import Model
from app.specs import parse_input_shape
from app.uploads import (
    INPUT_SHAPE_PART,
    MODEL_PART,
    ZIP_MAGIC,
    ReceivedFile,
    digests,
    forget_files,
    is_json,
    keep_files,
    open_form,
    receive_form,
    require_zip,
    total_bytes,
)
from app.waiting import RETRY_AFTER_SECONDS, wait_for

router = APIRouter(tags=["models"], responses=problem_responses(401, 403, 422, 429, 500, 503))
ACCEPTED_HEADERS = {"Retry-After": str(RETRY_AFTER_SECONDS)}


def find_model(session: Session, *, model_id: str, project_id: str) -> Model:
    """The project's model of that id. Raises ApiProblem `model.not_found`."""
    return find_row(session, models_of(project_id).where(Model.id == model_id), model_id, noun="model")


def add_model(session: Session, project_id: str, file: ReceivedFile) -> Model:
    """The row of a model whose bytes are in the store."""
    model = Model(id=new_id("mdl"), project_id=project_id, **file_columns(file))
    session.add(model)
    session.flush()
    return model


def file_columns(file: ReceivedFile) -> dict[str, Any]:
    """What models and job inputs note of their file."""
    return {"filename": file.filename, **vars(file.stored)}


@router.post(
    "/models",
    status_code=202,
    response_model=ModelRead,
    responses=problem_responses(409, 413, 415),
    openapi_extra={"requestBody": REGISTER_BODY},
)
async def create_model(request: Request, gateway: CurrentGateway, caller: ModelsWriter, once: Once) -> Response:
    """Register a model, sent here or uploaded before. A worker inspects it: soon it is `ready` or `rejected`."""
    if is_json(request):
        asked = await read_json(request, ModelCreate)
        make = partial(_register_upload, gateway, caller.project_id, asked)
        answer = await run_in_threadpool(answer_once, gateway, once, asked, make)
    else:
        parts = open_form(request, gateway.settings, part=MODEL_PART)
        async with receive_form(parts, gateway.store, file=MODEL_PART, fields=[INPUT_SHAPE_PART]) as (files, raw):
            shape = parse_input_shape(raw[INPUT_SHAPE_PART]) if INPUT_SHAPE_PART in raw else None
            register = partial(_register, gateway, caller.project_id, files, shape)
            answer = await run_in_threadpool(answer_once, gateway, once, shape, register, files=digests(files))
            if answer.replayed:
                await run_in_threadpool(forget_files, files, gateway.store)
    gateway.relay.wake()
    return answer.response()


def _register(
    gateway: Gateway,
    project_id: str,
    files: dict[str, ReceivedFile],
    input_shape: Sequence[int] | None,
    session: Session,
) -> Answer:
    require_quotas(session, gateway.settings, project_id, models=1, stored_bytes=total_bytes(files))
    kept = keep_files(session, files, gateway.store)
    return _to_inspect(gateway, session, add_model(session, project_id, kept[MODEL_PART]), input_shape)


def _register_upload(gateway: Gateway, project_id: str, asked: ModelCreate, session: Session) -> Answer:
    """The model shares the bytes of the upload, which may be deleted after."""
    require_quotas(session, gateway.settings, project_id, models=1)
    upload = usable_upload(session, "upload_id", asked.upload_id, project_id)
    lock_contents(session, [str(upload.sha256)])
    session.refresh(upload)
    columns = content_columns(usable_upload(session, "upload_id", asked.upload_id, project_id))
    require_zip(first_bytes(gateway.store, columns["storage_key"], len(ZIP_MAGIC)))
    model = Model(id=new_id("mdl"), project_id=project_id, **columns)
    session.add(model)
    session.flush()
    return _to_inspect(gateway, session, model, asked.input_shape)


def _to_inspect(gateway: Gateway, session: Session, model: Model, input_shape: Sequence[int] | None) -> Answer:
    submit_inspection(session, model, input_shape=input_shape, max_attempts=gateway.settings.max_attempts)
    shown = render_model(model)
    return Answer(202, shown.model_dump(mode="json"), {"Location": shown.links["self"], **ACCEPTED_HEADERS})


@router.get("/models", response_model=ModelPage)
def list_models(
    gateway: CurrentGateway, caller: ModelsReader, *, state: Filter = None, limit: Limit = 20, cursor: Cursor = None
) -> ModelPage:
    """The project's models, newest first."""
    rows = models_of(caller.project_id)
    if state is not None:
        rows = rows.where(Model.state == state)
    with gateway.readers() as session:
        models, next_cursor = cut(session.scalars(page_of(rows, Model, limit=limit, cursor=cursor)).all(), limit)
    data = [render_model(row) for row in models]
    return ModelPage(data=data, has_more=next_cursor is not None, next_cursor=next_cursor)


@router.get("/models/{model_id}", response_model=ModelRead, responses=problem_responses(404))
async def get_model(
    model_id: str,
    request: Request,
    gateway: CurrentGateway,
    caller: ModelsReader,
    *,
    wait: Annotated[float, Query(ge=0, le=60, description="Seconds to wait for the inspection to end.")] = 0,
) -> Response:
    """One model. With `wait` the answer comes when it is inspected."""
    look = partial(_look, gateway, model_id, project_id=caller.project_id)
    model = await wait_for(request, gateway, look, enough=lambda seen: seen.done, seconds=wait)
    return JSONResponse(model.model_dump(mode="json"), headers=None if model.done else ACCEPTED_HEADERS)


def _look(gateway: Gateway, model_id: str, *, project_id: str) -> ModelRead:
    with gateway.readers() as session:
        return render_model(find_model(session, model_id=model_id, project_id=project_id))


@router.get("/models/{model_id}/blocks", response_model=BlockPage, responses=problem_responses(404, 409))
def list_blocks(model_id: str, gateway: CurrentGateway, caller: ModelsReader) -> BlockPage:
    """The blocks a repair can work on, in the order they run: for `localization.include` and to read results by."""
    with gateway.readers() as session:
        row = find_model(session, model_id=model_id, project_id=caller.project_id)
        _require_blocks(row)
        return render_blocks(row)


def _require_blocks(row: Model) -> None:
    if row.state == INSPECTING:
        hint = f"GET /v1/models/{row.id}?wait=60 waits for it."
        raise ApiProblem(
            "model.inspecting", f"Model {row.id} is still being inspected.", hint=hint, headers=ACCEPTED_HEADERS
        )
    if row.state == REJECTED:
        raise ApiProblem("model.blocks_unknown", why_rejected(row), hint=(row.error or {}).get("hint", ""))
    reason = (row.facts or {}).get("blocks_unknown")
    if reason:
        detail = f"Model {row.id} is ready, but its blocks are not known: {reason['detail']}"
        raise ApiProblem("model.blocks_unknown", detail, hint=reason["hint"])


@router.delete("/models/{model_id}", status_code=204, responses=problem_responses(404, 409))
def remove_model(model_id: str, gateway: CurrentGateway, caller: ModelsWriter) -> Response:
    """Delete a model that no unfinished job uses. Finished jobs keep what they made, and its id."""
    try:
        with gateway.sessions.begin() as session:
            row = find_model(session, model_id=model_id, project_id=caller.project_id)
            delete_model(session, row)
    except ModelInUse as error:
        hint = "Wait for them, or POST /v1/jobs/{id}/cancel."
        raise ApiProblem("model.in_use", f"Model {model_id} cannot be deleted: {error}.", hint=hint) from None
    # Apart: should this fail, some bytes stay that nobody needs; the other way round, a model would lose its bytes.
    with gateway.sessions.begin() as session:
        free_content(session, gateway.store, sha256=row.sha256, storage_key=row.storage_key)
    return Response(status_code=204)
