"""The references of a spec, checked before a byte is read: what they mean, and whether it is there and may be read."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import ApiProblem
from app.rows import row_of_id
from app.schemas.requests import JobCreate
from app.shared.contents import lock_contents
from app.shared.db import db_now
from app.shared.egress import EgressPolicy
from app.shared.references import (
    MODEL_REFERENCE,
    Reference,
    ReferenceRefused,
    parse_reference,
    references_in,
    require_allowed,
)
from app.shared.settings import Settings
from app.shared.tables import Dataset, JobInput, Upload
from app.shared.uploads import COMPLETED, state_of

NOT_A_MODEL = ("ds", "builtin")


def parse_references(spec: JobCreate) -> dict[str, Reference]:
    """Field to what its reference means. Raises ApiProblem `dataset.*` that points at every one that means nothing."""
    found, refused = {}, []
    for field, text in references_in(spec.repair_spec()).items():
        try:
            reference = parse_reference(text)
            if field == MODEL_REFERENCE and reference.kind in NOT_A_MODEL:
                raise ReferenceRefused("reference_not_supported", f"{text!r} is data, not an earlier model.")
            found[field] = reference
        except ReferenceRefused as error:
            refused.append((field, error))
    _refuse(refused)
    return found


def require_readable(spec: JobCreate, settings: Settings) -> None:
    """Raises ApiProblem `dataset.*` for URLs and places the operator does not let this service read."""
    refused = []
    for field, reference in parse_references(spec).items():
        try:
            allow(reference, settings)
        except ReferenceRefused as error:
            refused.append((field, error))
    _refuse(refused)


def allow(reference: Reference, settings: Settings) -> None:
    """Raises ReferenceRefused for what the settings do not let anybody read."""
    require_allowed(
        reference,
        roots=settings.dataset_roots,
        buckets=settings.dataset_buckets,
        policy=EgressPolicy(settings.egress_allow),
    )


def _refuse(refused: Sequence[tuple[str, ReferenceRefused]]) -> None:
    if refused:
        errors = [{"pointer": f"#/{field}", "detail": error.detail} for field, error in refused]
        detail = "; ".join(f"{error['pointer']}: {error['detail']}" for error in errors)
        raise ApiProblem(f"dataset.{refused[0][1].code}", detail, hint=refused[0][1].hint, errors=errors)


def check_stored(session: Session, spec: JobCreate, *, project_id: str) -> None:
    """Raises ApiProblem for an upload or dataset that is not the project's, or cannot be used (yet)."""
    for field, reference in parse_references(spec).items():
        if reference.kind in FINDERS:
            FINDERS[reference.kind](session, field, reference.target, project_id)


def stored_inputs(session: Session, spec: JobCreate, *, project_id: str, also: Sequence[str] = ()) -> list[JobInput]:
    """The inputs of a job that are in the store already. They share its bytes, and nobody can free those before.

    `also` are contents the caller will lock: locks on contents are taken once, in one order.
    """
    wanted = {
        reference.target: (field, reference.kind)
        for field, reference in parse_references(spec).items()
        if reference.kind in FINDERS
    }
    rows = {name: FINDERS[kind](session, field, name, project_id) for name, (field, kind) in wanted.items()}
    if not rows:
        return []
    lock_contents(session, [*also, *(row.sha256 for row in rows.values() if row.sha256 is not None)])
    for row in rows.values():
        session.refresh(row)
    found = [(name, FINDERS[kind](session, field, name, project_id)) for name, (field, kind) in wanted.items()]
    return [JobInput(name=name, **content_columns(row)) for name, row in found if row.storage_key is not None]


def stored_digests(session: Session, spec: JobCreate, *, project_id: str) -> dict[str, str]:
    """What is behind the uploads and datasets of a spec: the sha256 of the file, or the name of a builtin one."""
    found = {}
    for field, reference in parse_references(spec).items():
        if reference.kind in FINDERS:
            row = FINDERS[reference.kind](session, field, reference.target, project_id)
            found[reference.target] = row.sha256 or row.reference
    return found


def content_columns(row: Any) -> dict[str, Any]:
    """What a completed upload or a ready dataset says of its content."""
    return {name: getattr(row, name) for name in ("filename", "sha256", "size_bytes", "storage_key")}


def usable_upload(session: Session, field: str, upload_id: str, project_id: str) -> Upload:
    """The project's completed upload. Raises ApiProblem `upload.*` that points at `field`."""
    mine = (Upload.id == upload_id, Upload.project_id == project_id, Upload.deleted_at.is_(None))
    row = row_of_id(session, select(Upload).where(*mine), upload_id)
    if row is None:
        detail = f"There is no upload {upload_id!r} in your project."
        raise _at(field, "upload.unknown_id", detail, "POST /v1/uploads makes one.")
    state = state_of(row, session.scalars(select(db_now())).one())
    if state != COMPLETED:
        hint = "Send its parts, then POST /v1/uploads/{id}/complete."
        raise _at(field, "upload.not_completed", f"Upload {upload_id} is {state}.", hint)
    return row


def usable_dataset(session: Session, field: str, dataset_id: str, project_id: str) -> Dataset:
    """The project's dataset that is ready. Raises ApiProblem `dataset.*` that points at `field`."""
    mine = (Dataset.id == dataset_id, Dataset.project_id == project_id, Dataset.deleted_at.is_(None))
    row = row_of_id(session, select(Dataset).where(*mine), dataset_id)
    if row is None:
        detail = f"There is no dataset {dataset_id!r} in your project."
        raise _at(field, "dataset.unknown_id", detail, "GET /v1/datasets lists them.")
    if row.state == "rejected":
        error = row.error or {}
        detail = f"Dataset {row.id} was rejected with {error.get('code')}: {error.get('detail', '')}"
        raise _at(field, "dataset.rejected", detail, error.get("hint", ""))
    if row.state != "ready":
        hint = f"GET /v1/datasets/{row.id}?wait=60 waits for it."
        raise _at(field, "dataset.resolving", f"Dataset {row.id} is still being read.", hint)
    return row


def _at(field: str, code: str, detail: str, hint: str) -> ApiProblem:
    return ApiProblem(code, detail, hint=hint, errors=[{"pointer": f"#/{field}", "detail": detail}])


FINDERS: dict[str, Any] = {"upl": usable_upload, "ds": usable_dataset}
