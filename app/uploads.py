"""One request's spec and files, streamed into the store. All or nothing: whatever goes wrong, no object is left."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from obstore.exceptions import BaseError as StoreError
from obstore.store import ObjectStore
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request

from app.errors import ApiProblem
from app.limits import body_too_large, limit_body, read_spec_bytes
from app.multipart import Part, read_parts
from app.schemas import JobCreate
from app.shared.settings import Settings
from app.shared.storage import StoredFile, delete, keep_upload, put_stream
from app.specs import UPLOAD, parse_spec, upload_names

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"
EXPORT_HINT = "Save it with torch.jit.save(torch.jit.script(model), 'model.pt') and send that file."
SPEC_PART, MODEL_PART = "spec", "model"


@dataclass(frozen=True)
class ReceivedFile:
    """A file of the request that is in the store; its key is temporary until the whole request is accepted."""

    filename: str
    stored: StoredFile


@dataclass
class Submission:
    """What a request has brought so far; `files` by part name, the model's is `model`."""

    spec: JobCreate
    files: dict[str, ReceivedFile] = field(default_factory=dict)


async def read_submission(request: Request, *, store: ObjectStore, settings: Settings, only_spec: bool) -> Submission:
    """Read `POST /jobs`. The spec is checked before any byte of a file is read; with `only_spec` files never are."""
    limit = settings.one_shot_body_bytes
    if int(request.headers.get("content-length") or 0) > limit:
        raise body_too_large(limit)
    content_type = request.headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    body = limit_body(request.stream(), max_bytes=limit)
    if media_type == "application/json":
        spec = parse_spec(await read_spec_bytes(body, max_bytes=settings.spec_bytes))
        submission = Submission(spec)
        if not only_spec:
            _require_everything(submission)
        return submission
    if media_type != "multipart/form-data":
        hint = "Send multipart/form-data with the parts spec, model and files, or application/json with a model_id."
        raise ApiProblem("request.unsupported_media_type", f"Content-Type {media_type!r} is not taken here.", hint=hint)
    parts = read_parts(body, content_type)
    submission = Submission(await _read_spec(parts, settings))
    if not only_spec:
        await _receive_files(parts, submission, store)
    return submission


async def keep_files(submission: Submission, store: ObjectStore) -> dict[str, ReceivedFile]:
    """Move the received files to the keys of their contents."""
    with_keys = {}
    for name, file in submission.files.items():
        with_keys[name] = ReceivedFile(file.filename, await keep_upload(store, file.stored))
    return with_keys


async def _read_spec(parts: AsyncIterator[Part], settings: Settings) -> JobCreate:
    part = await anext(parts, None)
    hint = "Send the JSON part `spec` first, then `model`, then the dataset files."
    if part is None:
        raise ApiProblem("spec.missing", "The body has no parts.", hint=hint)
    if part.name != SPEC_PART:
        raise ApiProblem("spec.not_first", f"The first part is {part.name!r}, not 'spec'.", hint=hint)
    return parse_spec(await read_spec_bytes(part.chunks, max_bytes=settings.spec_bytes))


async def _receive_files(parts: AsyncIterator[Part], submission: Submission, store: ObjectStore) -> None:
    try:
        async for part in parts:
            _expect(part, submission)
            chunks = _torchscript(part.chunks) if part.name == MODEL_PART else part.chunks
            stored = await put_stream(store, chunks)
            submission.files[part.name] = ReceivedFile(safe_filename(part.filename, part.name), stored)
        _require_everything(submission)
    except BaseException as error:
        # BaseException: a cancelled request must not leave bytes behind either.
        await run_in_threadpool(_forget, submission, store)
        if isinstance(error, ClientDisconnect):
            raise ApiProblem("upload.truncated", "The connection was closed during the upload.") from None
        if isinstance(error, StoreError | OSError):
            raise ApiProblem("platform.store_unavailable", "The file could not be stored.") from error
        raise


def _forget(submission: Submission, store: ObjectStore) -> None:
    for file in submission.files.values():
        delete(store, file.stored.storage_key)


def _expect(part: Part, submission: Submission) -> None:
    """Refuse a part nobody asked for, by its header alone."""
    if part.name in submission.files or part.name == SPEC_PART:
        raise ApiProblem("upload.duplicate_part", f"A second part is named {part.name!r}.", hint="Name each part once.")
    if part.name == MODEL_PART:
        if submission.spec.model_id is not None:
            detail = "The spec has a model_id and the request has a model part."
            raise ApiProblem("model.given_twice", detail, hint="Send one of them.")
        return
    wanted = upload_names(submission.spec)
    if part.name not in wanted:
        known = ", ".join(sorted(wanted)) or "none"
        detail = f"The part {part.name!r} is not referred to by any dataset of the spec (referred to: {known})."
        hint = f"Write '{UPLOAD}{part.name}' at its place in datasets, or leave the part out."
        raise ApiProblem("dataset.unreferenced_upload", detail, hint=hint)


def _require_everything(submission: Submission) -> None:
    received = ", ".join(submission.files) or "none"
    missing = {name: splits for name, splits in upload_names(submission.spec).items() if name not in submission.files}
    if missing:
        errors = [
            {"pointer": f"#/datasets/{split}", "detail": f"'{UPLOAD}{name}' needs a file part named {name!r}."}
            for name, splits in missing.items()
            for split in splits
        ]
        names = ", ".join(f"'{UPLOAD}{name}'" for name in missing)
        detail = f"The spec refers to {names}, but no such part came; file parts received: {received}."
        raise ApiProblem("dataset.missing_upload", detail, hint="Add the file parts, e.g. -F NAME=@file", errors=errors)
    if MODEL_PART not in submission.files and submission.spec.model_id is None:
        detail = f"There is no model part and no model_id; file parts received: {received}."
        raise ApiProblem("model.missing", detail, hint="Send the TorchScript file as the part `model`.")


async def _torchscript(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes, refused at the first four when they cannot be a TorchScript archive (a zip)."""
    head = b""
    async for chunk in chunks:
        if len(head) < len(ZIP_MAGIC):
            head += chunk
            if len(head) < len(ZIP_MAGIC):
                continue
            _require_zip(head)
            chunk = head
        yield chunk
    if len(head) < len(ZIP_MAGIC):
        _require_zip(head)


def _require_zip(head: bytes) -> None:
    if head.startswith(ZIP_MAGIC):
        return
    if not head:
        what = "it is empty"
    elif head.startswith(PICKLE_MAGIC):
        what = "it looks like a pickle (torch.save of an old format, or pickle.dump), which is never loaded here"
    else:
        what = f"it starts with {head[:4]!r}, a TorchScript file with {ZIP_MAGIC!r}"
    raise ApiProblem("model.not_torchscript", f"The model is not a TorchScript archive: {what}.", hint=EXPORT_HINT)


def safe_filename(filename: str, default: str) -> str:
    """The last component of a client's file name, printable and short."""
    name = re.split(r"[/\\]", filename)[-1]
    name = "".join(letter for letter in name if letter.isprintable())[-200:].strip(". ")
    return name or default
