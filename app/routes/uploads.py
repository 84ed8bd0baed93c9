"""Uploads: large files in parts, sent in any order, again after a failure, and by several connections at once."""

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request
from obstore.exceptions import BaseError as StoreError
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from app.auth import UploadsReader, UploadsWriter
from app.bodies import read_json
from app.deps import CurrentGateway, Gateway
from app.errors import ApiProblem, problem_responses
from app.idempotency import Answer, Once, answer_once
from app.openapi import COMPLETE_BODY, PART_BODY, UPLOAD_BODY
from app.parts import receive_part
from app.quotas import require_quotas
from app.rendering import render_part_urls, render_upload
from app.rows import find_row
from app.schemas.requests import MAX_PARTS, SentPart, UploadComplete, UploadCreate
from app.schemas.responses import UploadPartRead, UploadRead
from app.shared import storage
from app.shared.db import db_now
from app.shared.ids import new_id
from app.shared.settings import Settings
from app.shared.storage import StoredFile
from app.shared.tables import Upload, UploadPart
from app.shared.uploads import (
    COMPLETED,
    COMPLETING,
    EXPIRED,
    FAILED,
    OPEN,
    begin_completion,
    free_upload,
    locked_upload,
    new_part_key,
    part_sizes,
    parts_of,
    prefix_of,
    record_part,
    signed_part_key,
)
from app.uploads import safe_filename
from app.waiting import RETRY_AFTER_SECONDS, wait_for

router = APIRouter(tags=["uploads"], responses=problem_responses(401, 403, 422, 429, 500, 503))
COMPLETE_BODY_BYTES = 256 * 1024
SIGNED_SECONDS = 3600.0
PartNumber = Annotated[int, Path(ge=1, le=MAX_PARTS)]
Presign = Annotated[bool, Query(description="Also give signed URLs for the parts that are missing.")]


def find_upload(session: Session, *, upload_id: str, project_id: str) -> Upload:
    """The project's upload of that id. Raises ApiProblem `upload.not_found`."""
    rows = select(Upload).where(Upload.id == upload_id, Upload.project_id == project_id, Upload.deleted_at.is_(None))
    return find_row(session, rows, upload_id, noun="upload")


@router.post(
    "/uploads",
    status_code=201,
    response_model=UploadRead,
    responses=problem_responses(409, 413),
    openapi_extra={"requestBody": UPLOAD_BODY},
)
async def create_upload(request: Request, gateway: CurrentGateway, caller: UploadsWriter, once: Once) -> Response:
    """Begin an upload. The answer says how large the parts are and how many."""
    asked = await read_json(request, UploadCreate)
    make = partial(_create, gateway, caller.project_id, asked)
    answer = await run_in_threadpool(answer_once, gateway, once, asked, make)
    return answer.response()


def _create(gateway: Gateway, project_id: str, asked: UploadCreate, session: Session) -> Answer:
    if asked.presigned:
        _require_signer(gateway)
    part_bytes = _part_bytes(asked, gateway.settings)
    require_quotas(session, gateway.settings, project_id, open_uploads=1, stored_bytes=asked.size_bytes)
    now = session.scalars(select(db_now())).one()
    upload = Upload(
        id=new_id("upl"),
        project_id=project_id,
        filename=safe_filename(asked.filename, "file"),
        size_bytes=asked.size_bytes,
        part_bytes=part_bytes,
        sha256=asked.sha256,
        state=OPEN,
        created_at=now,
        expires_at=now + gateway.settings.upload_seconds,
    )
    session.add(upload)
    session.flush()
    shown = _shown(gateway, session, upload, presign=asked.presigned)
    # A signed URL is a key to the store for an hour: it is not kept.
    return Answer(201, shown.model_dump(mode="json"), {"Location": shown.links["self"]}, secrets=("part_urls",))


def _part_bytes(asked: UploadCreate, settings: Settings) -> int:
    if asked.size_bytes > settings.upload_bytes:
        detail = f"The file has {asked.size_bytes:,} bytes, the limit upload_bytes is {settings.upload_bytes:,}."
        raise ApiProblem("upload.too_large", detail, hint="The operator can raise ARCHREPAIR_UPLOAD_BYTES.")
    part_bytes = asked.part_bytes or settings.part_bytes
    if part_bytes > settings.part_bytes:
        detail = f"part_bytes is {part_bytes:,}, the limit part_bytes of this service {settings.part_bytes:,}."
        errors = [{"pointer": "#/part_bytes", "detail": detail}]
        hint = "Leave part_bytes out, or ask for smaller parts."
        raise ApiProblem("upload.part_too_large", detail, hint=hint, errors=errors)
    count = -(-asked.size_bytes // part_bytes)
    if count > MAX_PARTS:
        detail = (
            f"{asked.size_bytes:,} bytes in parts of {part_bytes:,} are {count:,} parts; the limit is {MAX_PARTS:,}."
        )
        errors = [{"pointer": "#/part_bytes", "detail": detail}]
        hint = f"Ask for parts of at least {-(-asked.size_bytes // MAX_PARTS):,} bytes."
        raise ApiProblem("upload.too_many_parts", detail, hint=hint, errors=errors)
    return part_bytes


def _require_signer(gateway: Gateway) -> storage.S3Store:
    if gateway.signer is None:
        detail = "The store of this service is a local directory: there are no URLs to sign."
        hint = "Send the parts to PUT /v1/uploads/{id}/parts/{n}."
        raise ApiProblem("upload.no_signed_urls", detail, hint=hint)
    return gateway.signer


@router.get("/uploads/{upload_id}", response_model=UploadRead, responses=problem_responses(404))
def get_upload(upload_id: str, gateway: CurrentGateway, caller: UploadsReader, presign: Presign = False) -> UploadRead:
    """One upload and the parts of it that have arrived: send the others."""
    with gateway.readers() as session:
        upload = find_upload(session, upload_id=upload_id, project_id=caller.project_id)
        if presign:
            _require_signer(gateway)
            _require_scope(caller)
        return _shown(gateway, session, upload, presign=presign)


def _require_scope(caller: Any) -> None:
    if "uploads:write" not in caller.scopes:  # a signed URL is a right to write
        detail = "Signed URLs need the scope 'uploads:write'."
        raise ApiProblem("auth.missing_scope", detail, hint="Use a key with that scope.")


def _shown(gateway: Gateway, session: Session, upload: Upload, *, presign: bool = False) -> UploadRead:
    shown = render_upload(upload, parts_of(session, upload.id), now=session.scalars(select(db_now())).one())
    if not presign or shown.state != OPEN:
        return shown
    missing = set(range(1, shown.part_count + 1)) - {part.number for part in shown.parts}
    sizes, stored = part_sizes(upload), storage.sizes_under(gateway.store, f"{prefix_of(upload.id)}/signed")
    for number in sorted(missing):
        if stored.get(signed_part_key(upload.id, number)) == sizes[number - 1]:
            shown.parts.append(UploadPartRead(number=number, size_bytes=sizes[number - 1], sha256=None))
            missing.discard(number)
    keys = {number: signed_part_key(upload.id, number) for number in sorted(missing)}
    urls = storage.sign_puts(_require_signer(gateway), list(keys.values()), seconds=SIGNED_SECONDS)
    shown.parts.sort(key=lambda part: part.number)
    shown.part_urls = render_part_urls(dict(zip(keys, urls, strict=True)), sizes, seconds=SIGNED_SECONDS)
    return shown


@router.put(
    "/uploads/{upload_id}/parts/{number}",
    response_model=UploadPartRead,
    responses=problem_responses(404, 409),
    openapi_extra=PART_BODY,
)
async def put_part(
    upload_id: str, number: PartNumber, request: Request, gateway: CurrentGateway, caller: UploadsWriter
) -> UploadPartRead:
    """Send one part as the raw body. Sent again, it takes the place of the one before."""
    size = await run_in_threadpool(_size_of_part, gateway, caller.project_id, upload_id, number)
    key = new_part_key(upload_id, number)
    stored = await receive_part(request, gateway.store, key=key, number=number, size_bytes=size)
    return await run_in_threadpool(_keep_part, gateway, caller.project_id, upload_id, number, stored=stored)


def _size_of_part(gateway: Gateway, project_id: str, upload_id: str, number: int) -> int:
    """Refuse a part nobody waits for before its bytes are read."""
    with gateway.readers() as session:
        upload = find_upload(session, upload_id=upload_id, project_id=project_id)
        shown = _shown(gateway, session, upload)
        sizes = part_sizes(upload)
    _require_open(upload_id, shown.state)
    if number > len(sizes):
        detail = f"Upload {upload_id} has the parts 1 to {len(sizes)}; there is no part {number}."
        raise ApiProblem("upload.no_such_part", detail, hint="GET the upload for its part_bytes and part_count.")
    return sizes[number - 1]


def _keep_part(gateway: Gateway, project_id: str, upload_id: str, number: int, *, stored: StoredFile) -> UploadPartRead:
    try:
        with gateway.sessions.begin() as session:
            find_upload(session, upload_id=upload_id, project_id=project_id)
            _require_open(upload_id, locked_upload(session, upload_id)[1])
            replaced = record_part(session, upload_id, number, stored)
    except BaseException:
        storage.delete(gateway.store, stored.storage_key)
        raise
    if replaced is not None:
        storage.delete(gateway.store, replaced)
    return UploadPartRead(number=number, size_bytes=stored.size_bytes, sha256=stored.sha256)


def _require_open(upload_id: str, state: str) -> None:
    if state != OPEN:
        hint = "Begin another upload." if state in (EXPIRED, FAILED) else "GET the upload shows what came of it."
        raise ApiProblem("upload.not_open", f"Upload {upload_id} is {state}.", hint=hint)


@router.post(
    "/uploads/{upload_id}/complete",
    response_model=UploadRead,
    responses={
        202: {"model": UploadRead, "description": "It takes longer than `wait`: send the request again"},
        **problem_responses(404, 409, 413),
    },
    openapi_extra={"requestBody": COMPLETE_BODY},
)
async def complete_upload(
    upload_id: str,
    request: Request,
    gateway: CurrentGateway,
    caller: UploadsWriter,
    wait: Annotated[float, Query(ge=0, le=60, description="Seconds to wait for the end.")] = 20,
) -> Response:
    """Make one file of the parts, and check its sha256. Sent again it waits on, or gives the same answer again."""
    asked = await read_json(request, UploadComplete, empty=b"{}", max_bytes=COMPLETE_BODY_BYTES)
    attempt = _Attempt(gateway, caller.project_id, upload_id, asked.parts)
    shown = await wait_for(request, gateway, attempt.look, enough=attempt.is_over, seconds=wait)
    if shown.state == COMPLETED:
        return JSONResponse(shown.model_dump(mode="json"))
    if shown.state == FAILED and shown.error is not None:
        raise ApiProblem("upload.digest_mismatch", shown.error.detail, hint=shown.error.hint)
    if shown.state not in (OPEN, COMPLETING):
        _require_open(upload_id, shown.state)
    headers = {"Retry-After": str(RETRY_AFTER_SECONDS)}
    return JSONResponse(shown.model_dump(mode="json"), 202, headers)


class _Attempt:
    """One request to complete: begins the copy once there is room for it, then looks how it goes."""

    def __init__(self, gateway: Gateway, project_id: str, upload_id: str, sent: Sequence[SentPart]) -> None:
        self._gateway = gateway
        self._project_id = project_id
        self._upload_id = upload_id
        self._sent = sent
        self._begun = False

    def look(self) -> UploadRead:
        with self._gateway.readers() as session:
            upload = find_upload(session, upload_id=self._upload_id, project_id=self._project_id)
            shown = _shown(self._gateway, session, upload)
        if shown.state != OPEN:
            self._begun = True
        elif self._begun:
            raise ApiProblem("platform.store_unavailable", "The parts could not be put together now.")
        elif self._gateway.completions.room.acquire(blocking=False):
            return self._begin(upload)
        return shown

    def is_over(self, shown: UploadRead) -> bool:
        return shown.state not in (OPEN, COMPLETING)

    def _begin(self, upload: Upload) -> UploadRead:
        """Take the lease and start the copy. The place in the room goes with it, or is given back."""
        gateway = self._gateway
        try:
            found = _signed_parts(gateway, upload, self._sent)
            with gateway.sessions.begin() as session:
                find_upload(session, upload_id=upload.id, project_id=self._project_id)
                row, state = locked_upload(session, upload.id)
                completion = None
                if state == OPEN:
                    for part in found:
                        record_part(session, upload.id, part.number, _stored(part))
                    session.flush()
                    _require_parts(row, parts_of(session, upload.id), self._sent)
                    completion = begin_completion(session, row)
                session.flush()
                shown = _shown(gateway, session, row)
        except BaseException:
            gateway.completions.room.release()
            raise
        self._begun = True
        if completion is None:
            gateway.completions.room.release()
        else:
            gateway.completions.start(completion)
        return shown


def _stored(part: UploadPart) -> StoredFile:
    return StoredFile(part.storage_key, part.sha256, part.size_bytes)


def _signed_parts(gateway: Gateway, upload: Upload, sent: Sequence[SentPart]) -> list[UploadPart]:
    """The parts that went to signed URLs, of the right size. What the store has not, came another way or not at all."""
    if not sent:
        return []
    try:
        stored = storage.sizes_under(gateway.store, f"{prefix_of(upload.id)}/signed")
    except StoreError as error:
        raise ApiProblem("platform.store_unavailable", "The store does not list the parts.") from error
    sizes, found = part_sizes(upload), []
    for part in sent:
        key = signed_part_key(upload.id, part.number)
        if part.number > len(sizes) or key not in stored:
            continue
        if stored[key] != sizes[part.number - 1]:
            detail = (
                f"Part {part.number} of this upload has {sizes[part.number - 1]:,} bytes, the store {stored[key]:,}."
            )
            raise ApiProblem("upload.wrong_part_size", detail, hint="Send the part again; ?presign=true gives a URL.")
        found.append(UploadPart(number=part.number, size_bytes=stored[key], sha256=part.sha256, storage_key=key))
    return found


def _require_parts(upload: Upload, parts: Sequence[UploadPart], sent: Sequence[SentPart]) -> None:
    count, arrived = len(part_sizes(upload)), {part.number: part for part in parts}
    missing = [number for number in range(1, count + 1) if number not in arrived]
    if missing:
        some = ", ".join(map(str, missing[:20])) + (" …" if len(missing) > 20 else "")
        detail = f"Of the {count} parts of upload {upload.id}, {len(missing)} are missing: {some}."
        raise ApiProblem("upload.parts_missing", detail, hint="Send them, then complete again.")
    for part in sent:
        if part.number not in arrived or arrived[part.number].sha256 != part.sha256:
            there = arrived[part.number].sha256 if part.number in arrived else "none"
            detail = f"Part {part.number} should have the sha256 {part.sha256}, but {there} arrived."
            raise ApiProblem("upload.digest_mismatch", detail, hint="Send the part again, then complete.")


@router.delete("/uploads/{upload_id}", status_code=204, responses=problem_responses(404))
def delete_upload(upload_id: str, gateway: CurrentGateway, caller: UploadsWriter) -> Response:
    """Delete an upload. Models, datasets and jobs that were made of it keep its content."""
    with gateway.sessions.begin() as session:
        find_upload(session, upload_id=upload_id, project_id=caller.project_id)
        upload, _ = locked_upload(session, upload_id)
        upload.deleted_at = session.scalars(select(db_now())).one()
    free_upload(gateway.sessions, gateway.store, upload)
    return Response(status_code=204)
