"""`Idempotency-Key`: a POST that is sent again is answered again, and does nothing again.

A route takes `once: Once` and lets `answer_once` do the work, in one line:

    return answer_once(gateway, once, asked, partial(_cancel, …)).response()

where `_cancel(…, session)` does it all in that session and gives an `Answer`; whatever it raises is a refusal, and not
kept. In an `async` route the call goes through `run_in_threadpool`. Files are named in `files`, and those of a replay
are the route's to forget.

The row of the key is written in the transaction of the effect, and first: a second request with the key waits there
until the first has committed (then it is a replay) or has failed (then it is the first). So no request is ever seen
half done, and a crash leaves nothing to clean up.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from pydantic import BaseModel
from sqlalchemy import update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session
from starlette.responses import JSONResponse

from app.auth import Caller, authenticate
from app.deps import Gateway
from app.errors import ApiProblem
from app.shared.tables import ApiKey, Base, Dataset, IdempotencyKey, Job, Model, Upload, WebhookEndpoint

# A request's body as it was understood; files come apart.
Payload = BaseModel | Sequence[Any] | Mapping[str, Any] | None
# Printable ASCII; a space at either end would not survive HTTP.
KEY_PATTERN = r"^[!-~]([ -~]*[!-~])?$"
INSERTS: dict[str, Callable[..., Any]] = {"postgresql": postgresql.insert, "sqlite": sqlite.insert}
# What an answer can have made, by the prefix of its id: it may have been deleted since.
MADE: dict[str, type[Base]] = {
    "job": Job, "mdl": Model, "ds": Dataset, "upl": Upload, "whk": WebhookEndpoint, "key": ApiKey,
}  # fmt: skip
ENDED_BY = ("deleted_at", "revoked_at")


@dataclass(frozen=True)
class Answer:
    """What a POST that succeeded answers. The fields in `secrets` are shown now and never again, so not kept."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    replayed: bool = False

    def response(self) -> JSONResponse:
        """The answer as it goes out, the same for a replay but for the header that says so."""
        headers = self.headers | ({"Idempotent-Replayed": "true"} if self.replayed else {})
        return JSONResponse(self.body, self.status, headers)


@dataclass(frozen=True)
class OnceKey:
    """The key of a request, None without one, and what it is a key to."""

    key: str | None
    project_id: str
    target: str

    def fingerprint(self, payload: Payload, files: Mapping[str, str]) -> str:
        """sha256 over method, path, query and payload: its JSON as it was meant, and each file's part and sha256.

        Without defaults: a retry must not become another request because the service was upgraded in between.
        """
        data = payload.model_dump(mode="json", exclude_unset=True) if isinstance(payload, BaseModel) else payload
        canonical = json.dumps([self.target, data, dict(files)], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def _once(
    request: Request,
    caller: Annotated[Caller, Depends(authenticate)],
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=255,
            pattern=KEY_PATTERN,
            description="Makes it safe to send the request again: for a day, the same key is given the same answer.",
        ),
    ] = None,
) -> OnceKey:
    path = request.url.path.removeprefix("/v1")
    return OnceKey(idempotency_key, caller.project_id, f"{request.method} {path}?{request.url.query}")


Once = Annotated[OnceKey, Depends(_once)]


def was_answered(gateway: Gateway, once: OnceKey) -> bool:
    """Whether the key was used before: then the state of things today is no reason to refuse the request."""
    if once.key is None:
        return False
    with gateway.readers() as session:
        return _row(session, once) is not None


def answer_once(
    gateway: Gateway,
    once: OnceKey,
    payload: Payload,
    effect: Callable[[Session], Answer],
    *,
    files: Mapping[str, str] | None = None,
) -> Answer:
    """Do `effect` in one transaction and keep its answer, or replay the answer that was kept.

    `files` has the sha256 of each uploaded file by its part's name. Raises ApiProblem `request.idempotency_*`, and
    whatever `effect` raises.
    """
    with gateway.sessions.begin() as session:
        if once.key is None:
            return effect(session)
        fingerprint = once.fingerprint(payload, files or {})
        while not _reserve(session, once, fingerprint):
            if (known := _row(session, once)) is not None:  # else it was a day old, and is gone since
                return _kept(session, known, fingerprint)
        answer = effect(session)
        kept_body = {name: None if name in answer.secrets else value for name, value in answer.body.items()}
        row = (IdempotencyKey.project_id == once.project_id, IdempotencyKey.key == once.key)
        values = {"status": answer.status, "headers": answer.headers, "body": kept_body}
        session.execute(update(IdempotencyKey).where(*row).values(**values))
        return answer


def _reserve(session: Session, once: OnceKey, fingerprint: str) -> bool:
    """Take the key, or wait for the request that has it; False when that one has committed."""
    insert_row = INSERTS[session.get_bind().dialect.name](IdempotencyKey)
    unanswered = {"status": 0, "headers": {}, "body": {}}
    row = insert_row.values(project_id=once.project_id, key=once.key, fingerprint=fingerprint, **unanswered)
    taken = session.execute(row.on_conflict_do_nothing().returning(IdempotencyKey.key))
    return taken.one_or_none() is not None


def _row(session: Session, once: OnceKey) -> IdempotencyKey | None:
    return session.get(IdempotencyKey, (once.project_id, once.key))


def _kept(session: Session, row: IdempotencyKey, fingerprint: str) -> Answer:
    if row.fingerprint != fingerprint:
        detail = f"The Idempotency-Key {row.key!r} came with another request before."
        raise ApiProblem("request.idempotency_mismatch", detail, hint="Use a new key for a new request.")
    made = row.body.get("id") or row.body.get("job_id", "")
    if not _is_there(session, made):
        detail = f"The request with the Idempotency-Key {row.key!r} made {made}, which was deleted since."
        raise ApiProblem("request.idempotency_gone", detail, hint="To make it anew, use a new key.")
    return Answer(row.status, row.body, row.headers, replayed=True)


def _is_there(session: Session, made: str) -> bool:
    table = MADE.get(made.partition("_")[0])
    row = session.get(table, made) if table is not None else None
    return table is None or (row is not None and all(getattr(row, name, None) is None for name in ENDED_BY))
