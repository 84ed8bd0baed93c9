"""What is registered: models with their blocks and what came of them, and datasets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastapi import APIRouter, Request
from sqlalchemy import select
from starlette.responses import Response

from app.auth import DatasetsReader, ModelsReader
from app.deps import CurrentGateway
from app.pages import Cursor, Filter, Limit
from app.rendering import render_blocks, render_jobs, render_model
from app.routes.datasets import list_datasets
from app.routes.models import find_model, list_models
from app.schemas.responses import BlockRead
from app.shared.tables import Artifact, Job, Model
from app.ui.rendering import show_page

router = APIRouter()
LINEAGE_JOBS = 50


@dataclass
class Branch:
    """A part of the tree of blocks: a module on the way to blocks, or a block itself."""

    name: str
    block: BlockRead | None = None
    children: dict[str, "Branch"] = field(default_factory=dict)


def tree_of(blocks: Sequence[BlockRead]) -> Mapping[str, Branch]:
    """Blocks below the modules their dotted names lie in, in the order they run."""
    root = Branch("")
    for block in sorted(blocks, key=lambda block: block.depth):
        place, parts = root, block.name.split(".")
        for number, part in enumerate(parts, start=1):
            place = place.children.setdefault(part, Branch(".".join(parts[:number])))
        place.block = block
    return root.children


@router.get("/models")
def show_models(
    request: Request,
    gateway: CurrentGateway,
    caller: ModelsReader,
    *,
    state: Filter = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Response:
    """All models."""
    page = list_models(gateway, caller, state=state, limit=limit, cursor=cursor)
    return show_page(request, "models", page=page)


@router.get("/models/{model_id}")
def show_model(model_id: str, request: Request, gateway: CurrentGateway, caller: ModelsReader) -> Response:
    """One model: its facts, its blocks, the job it came out of, and the jobs that worked on it."""
    with gateway.readers() as session:
        row = find_model(session, model_id=model_id, project_id=caller.project_id)
        of_project = (Job.project_id == caller.project_id, Job.deleted_at.is_(None))
        # The same bytes as a file of a job are that job's work: who downloads a repair and registers it, sees it here.
        made = select(Job.id).join(Artifact).where(*of_project, Artifact.sha256 == row.sha256)
        may_see_jobs = "jobs:read" in caller.scopes
        made_by = session.scalars(made.order_by(Job.created_at).limit(1)).first() if may_see_jobs else None
        used = select(Job).where(*of_project, Job.model_id == row.id, Job.kind.not_in(("inspect", "ingest")))
        jobs = render_jobs(session, session.scalars(used.order_by(Job.created_at.desc()).limit(LINEAGE_JOBS)).all())
        outcomes = {
            artifact.sha256 for job in jobs for artifact in job.artifacts if artifact.kind in ("model", "candidate")
        }
        later = select(Model).where(
            Model.project_id == caller.project_id, Model.deleted_at.is_(None), Model.sha256.in_(outcomes)
        )
        blocks = render_blocks(row).data if row.blocks else []
        registered = {model.sha256: model.id for model in session.scalars(later)}
    return show_page(
        request,
        "model",
        model=render_model(row),
        tree=tree_of(blocks),
        made_by=made_by,
        jobs=jobs if may_see_jobs else [],
        registered=registered,
    )


@router.get("/datasets")
def show_datasets(
    request: Request,
    gateway: CurrentGateway,
    caller: DatasetsReader,
    *,
    state: Filter = None,
    limit: Limit = 20,
    cursor: Cursor = None,
) -> Response:
    """All datasets."""
    page = list_datasets(gateway, caller, state=state, limit=limit, cursor=cursor)
    return show_page(request, "datasets", page=page)
