"""One request's spec and files, streamed into the store. All or nothing: whatever goes wrong, no object is left."""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from obstore.exceptions import BaseError as StoreError
from obstore.store import ObjectStore
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from app.errors import ApiProblem
from app.limits import body_too_large, limit_body, read_small_body, read_spec_bytes
from app.multipart import Part, read_parts
from app.schemas.requests import JobCreate
from app.shared.contents import keep_content, lock_contents
from app.shared.references import UPLOAD
from app.shared.settings import Settings
from app.shared.storage import StoredFile, delete, put_stream
from app.specs import parse_spec, upload_names

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"
EXPORT_HINT = "Save it with torch.jit.save(torch.jit.script(model), 'model.pt') and send that file."
SPEC_PART, MODEL_PART, INPUT_SHAPE_PART = "spec", "model", "input_shape"
DATASET_PART, DATASET_FIELDS = "file", ("name", "metadata")


@dataclass(frozen=True)
class ReceivedFile:
    """A file of the request that is in the store; its key is temporary until the whole request is accepted."""

    filename: str
    stored: StoredFile


async def open_submission(request: Request, settings: Settings) -> tuple[JobCreate, AsyncIterator[Part] | None]:
    """The spec of a `POST /jobs`, checked before any byte of a file is read, and the parts that follow it, if any."""
    body, media_type = _open_body(request, settings)
    try:
        if media_type == "application/json":
            return parse_spec(await read_spec_bytes(body, max_bytes=settings.spec_bytes)), None
        if media_type == "multipart/form-data":
            parts = read_parts(body, request.headers["content-type"])
            return await _read_spec(parts, settings), parts
    except ClientDisconnect:
        raise _disconnected() from None
    hint = "Send multipart/form-data with the parts spec, model and files, or application/json with a model_id."
    raise _not_taken(media_type, hint)


def open_form(request: Request, settings: Settings, *, part: str) -> AsyncIterator[Part]:
    """The parts of a request that is a form with a file in `part`, or, where `is_json` said no, nothing known."""
    body, media_type = _open_body(request, settings)
    if media_type != "multipart/form-data":
        hint = f"Send multipart/form-data with the part {part}, e.g. curl -F {part}=@file, or application/json."
        raise _not_taken(media_type, hint)
    return read_parts(body, request.headers["content-type"])


def is_json(request: Request) -> bool:
    """Whether the body says that it is JSON."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def _open_body(request: Request, settings: Settings) -> tuple[AsyncIterator[bytes], str]:
    """The body, refused beyond the limit, and its media type."""
    limit = settings.one_shot_body_bytes
    if int(request.headers.get("content-length") or 0) > limit:
        raise body_too_large(limit)
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return limit_body(request.stream(), max_bytes=limit), media_type


def _not_taken(media_type: str, hint: str) -> ApiProblem:
    return ApiProblem("request.unsupported_media_type", f"Content-Type {media_type!r} is not taken here.", hint=hint)


@asynccontextmanager
async def receive_files(
    parts: AsyncIterator[Part] | None, spec: JobCreate, store: ObjectStore
) -> AsyncIterator[dict[str, ReceivedFile]]:
    """All files the spec refers to, by part name, under temporary keys. If the block fails, they are removed."""
    async with _removed_on_failure(store) as files:
        if parts is not None:
            await _store_parts(parts, spec, store, files=files)
        _require_everything(spec, files)
        yield files


@asynccontextmanager
async def receive_form(
    parts: AsyncIterator[Part], store: ObjectStore, *, file: str, fields: Sequence[str]
) -> AsyncIterator[tuple[dict[str, ReceivedFile], dict[str, bytes]]]:
    """The one file of a form, the part `file`, under a temporary key, and the small fields that came with it.

    If the block fails, the file is removed.
    """
    async with _removed_on_failure(store) as files:
        raw: dict[str, bytes] = {}
        async for part in parts:
            if part.name in files or part.name in raw:
                raise _given_twice(part.name)
            if part.name == file:
                files[file] = await _store_part(part, store)
            elif part.name in fields:
                raw[part.name] = await read_small_body(part.chunks)
            else:
                hint = f"The parts are {file} and, if you like, {', '.join(fields)}."
                raise ApiProblem("request.invalid", f"There is no part {part.name!r} here.", hint=hint)
        if file not in files:
            code = "model.missing" if file == MODEL_PART else "dataset.missing"
            raise ApiProblem(code, f"There is no {file} part.", hint=f"Send the file as the part `{file}`.")
        yield files, raw


@asynccontextmanager
async def _removed_on_failure(store: ObjectStore) -> AsyncIterator[dict[str, ReceivedFile]]:
    files: dict[str, ReceivedFile] = {}
    try:
        yield files
    except ClientDisconnect:
        await run_in_threadpool(forget_files, files, store)
        raise _disconnected() from None
    except (StoreError, OSError) as error:
        await run_in_threadpool(forget_files, files, store)
        raise ApiProblem("platform.store_unavailable", "The files could not be stored.") from error
    except BaseException:  # a cancelled request must not leave bytes behind either
        await run_in_threadpool(forget_files, files, store)
        raise


def keep_files(session: Session, files: dict[str, ReceivedFile], store: ObjectStore) -> dict[str, ReceivedFile]:
    """Take the received files to where they stay, in the transaction that writes the rows for them.

    Nobody can delete an equal content as unused in between. From here on `files` is empty: whether a transaction whose
    end nobody heard was committed is not known, and its bytes are not ours to remove.
    """
    lock_contents(session, [file.stored.sha256 for file in files.values()])
    received = list(files.items())
    files.clear()
    return {name: ReceivedFile(file.filename, keep_content(session, store, file.stored)) for name, file in received}


def _disconnected() -> ApiProblem:
    return ApiProblem("upload.truncated", "The connection was closed during the upload.")


async def _read_spec(parts: AsyncIterator[Part], settings: Settings) -> JobCreate:
    part = await anext(parts, None)
    hint = "Send the JSON part `spec` first, then `model`, then the dataset files."
    if part is None:
        raise ApiProblem("spec.missing", "The body has no parts.", hint=hint)
    if part.name != SPEC_PART:
        raise ApiProblem("spec.not_first", f"The first part is {part.name!r}, not 'spec'.", hint=hint)
    return parse_spec(await read_spec_bytes(part.chunks, max_bytes=settings.spec_bytes))


async def _store_parts(
    parts: AsyncIterator[Part], spec: JobCreate, store: ObjectStore, *, files: dict[str, ReceivedFile]
) -> None:
    async for part in parts:
        _expect(part, spec, files)
        files[part.name] = await _store_part(part, store)


async def _store_part(part: Part, store: ObjectStore) -> ReceivedFile:
    chunks = _zip_archive(part.chunks) if part.name == MODEL_PART else part.chunks
    return ReceivedFile(safe_filename(part.filename, part.name), await put_stream(store, chunks))


def _given_twice(name: str) -> ApiProblem:
    return ApiProblem("upload.duplicate_part", f"A second part is named {name!r}.", hint="Name each part once.")


def digests(files: dict[str, ReceivedFile]) -> dict[str, str]:
    """The sha256 of each file, by its part's name."""
    return {name: file.stored.sha256 for name, file in files.items()}


def total_bytes(files: dict[str, ReceivedFile]) -> int:
    """The size of all of them."""
    return sum(file.stored.size_bytes for file in files.values())


def forget_files(files: dict[str, ReceivedFile], store: ObjectStore) -> None:
    """Remove received files that are not to be kept."""
    for file in files.values():
        delete(store, file.stored.storage_key)


def _expect(part: Part, spec: JobCreate, files: dict[str, ReceivedFile]) -> None:
    """Refuse a part nobody asked for, by its header alone."""
    if part.name in files or part.name == SPEC_PART:
        raise _given_twice(part.name)
    if part.name == MODEL_PART:
        if spec.model_id is not None:
            detail = "The spec has a model_id and the request has a model part."
            raise ApiProblem("model.given_twice", detail, hint="Send one of them.")
        return
    wanted = upload_names(spec)
    if part.name not in wanted:
        known = ", ".join(sorted(wanted)) or "none"
        detail = f"The part {part.name!r} is not referred to by any dataset of the spec (referred to: {known})."
        hint = f"Write '{UPLOAD}{part.name}' at its place in datasets, or leave the part out."
        raise ApiProblem("dataset.unreferenced_upload", detail, hint=hint)


def _require_everything(spec: JobCreate, files: dict[str, ReceivedFile]) -> None:
    received = ", ".join(files) or "none"
    missing = {name: fields for name, fields in upload_names(spec).items() if name not in files}
    if missing:
        errors = [
            {"pointer": f"#/{field}", "detail": f"'{UPLOAD}{name}' needs a file part named {name!r}."}
            for name, fields in missing.items()
            for field in fields
        ]
        names = ", ".join(f"'{UPLOAD}{name}'" for name in missing)
        detail = f"The spec refers to {names}, but no such part came; file parts received: {received}."
        raise ApiProblem("dataset.missing_upload", detail, hint="Add the file parts, e.g. -F NAME=@file", errors=errors)
    if MODEL_PART not in files and spec.model_id is None:
        detail = f"There is no model part and no model_id; file parts received: {received}."
        raise ApiProblem("model.missing", detail, hint="Send the TorchScript or .pt2 file as the part `model`.")


async def _zip_archive(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes, refused at the first four when they cannot be a TorchScript or .pt2 archive (a zip)."""
    head = b""
    async for chunk in chunks:
        if len(head) < len(ZIP_MAGIC):
            head += chunk
            if len(head) < len(ZIP_MAGIC):
                continue
            require_zip(head)
            chunk = head
        yield chunk
    if len(head) < len(ZIP_MAGIC):
        require_zip(head)


def require_zip(head: bytes) -> None:
    """Refuse a model by its first bytes. Raises ApiProblem `model.not_torchscript`."""
    if head.startswith(ZIP_MAGIC):
        return
    if not head:
        what = "it is empty"
    elif head.startswith(PICKLE_MAGIC):
        what = "it looks like a pickle (torch.save of an old format, or pickle.dump), which is never loaded here"
    else:
        what = f"it starts with {head[:4]!r}, TorchScript and .pt2 files with {ZIP_MAGIC!r}"
    raise ApiProblem(
        "model.not_torchscript",
        f"The model is neither a TorchScript archive nor a .pt2 file: {what}.",
        hint=EXPORT_HINT,
    )


def safe_filename(filename: str, default: str) -> str:
    """The last component of a client's file name, printable and short."""
    name = re.split(r"[/\\]", filename)[-1]
    name = "".join(letter for letter in name if letter.isprintable())[-200:].strip(". ")
    return name or default
