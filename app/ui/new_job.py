"""A new job: files dropped on the page, and a form read off the schema of the spec."""

from fastapi import APIRouter, Request
from sqlalchemy import select
from starlette.responses import Response

from app.auth import JobsWriter
from app.deps import CurrentGateway
from app.rows import models_of
from app.shared.datasets import READY
from app.shared.models import READY as MODEL_READY
from app.shared.tables import Dataset, Model
from app.ui.forms import form_of_spec
from app.ui.rendering import show_page
from archrepair_core.spec import SPLITS

router = APIRouter()
OFFERED = 50
# What a file of the page can become: where its id goes in the spec.
ROLES = {"model_id": "model", **{f"datasets.{split}": split for split in SPLITS}, "model.reference": "earlier model"}


@router.get("/new")
def show_form(request: Request, gateway: CurrentGateway, caller: JobsWriter, model_id: str = "") -> Response:
    """The form, with the project's own models and data to choose from."""
    models = models_of(caller.project_id).where(Model.state == MODEL_READY).order_by(Model.created_at.desc())
    datasets = select(Dataset).where(
        Dataset.project_id == caller.project_id, Dataset.deleted_at.is_(None), Dataset.state == READY
    )
    with gateway.readers() as session:
        known_models = [(row.id, row.filename) for row in session.scalars(models.limit(OFFERED))]
        known_data = [
            (row.id, row.name) for row in session.scalars(datasets.order_by(Dataset.created_at.desc()).limit(OFFERED))
        ]
    return show_page(
        request,
        "new_job",
        sections=form_of_spec(),
        roles=ROLES,
        model_id=model_id,
        models=known_models if "models:read" in caller.scopes else [],
        datasets=known_data if "datasets:read" in caller.scopes else [],
    )
