"""Models that were uploaded, to be used again by `model_id`."""

from fastapi import APIRouter
from sqlalchemy import select

from app.auth import ModelsReader
from app.deps import IDENTIFIER, CurrentGateway
from app.errors import ApiProblem, problem_responses
from app.pages import Cursor, Limit, cut, page_of
from app.rendering import render_model
from app.schemas import ModelPage, ModelRead
from app.shared.tables import Model

router = APIRouter(tags=["models"], responses=problem_responses(401, 403, 422, 500, 503))


@router.get("/models", response_model=ModelPage)
def list_models(
    gateway: CurrentGateway, caller: ModelsReader, *, limit: Limit = 20, cursor: Cursor = None
) -> ModelPage:
    """The project's models, newest first."""
    rows = page_of(select(Model).where(Model.project_id == caller.project_id), Model, limit=limit, cursor=cursor)
    with gateway.readers() as session:
        models, next_cursor = cut(session.scalars(rows).all(), limit)
    data = [render_model(row) for row in models]
    return ModelPage(data=data, has_more=next_cursor is not None, next_cursor=next_cursor)


@router.get("/models/{model_id}", response_model=ModelRead, responses=problem_responses(404))
def get_model(model_id: str, gateway: CurrentGateway, caller: ModelsReader) -> ModelRead:
    """One model."""
    found = select(Model).where(Model.id == model_id, Model.project_id == caller.project_id)
    with gateway.readers() as session:
        row = session.scalar(found) if IDENTIFIER.fullmatch(model_id) else None
    if row is None:
        detail = f"There is no model {model_id!r} in your project."
        raise ApiProblem("model.not_found", detail, hint="GET /v1/models lists them.")
    return render_model(row)
