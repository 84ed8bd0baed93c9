"""What the gateway answers when it cannot do what was asked: RFC 9457 problems, for every 4xx and 5xx.

ApiProblem is the only error of the gateway: raised anywhere below a route, it carries the whole answer. `PROBLEMS`
lists the codes with status and title. The framework's own refusals (404, 405, a bad query) are turned into one here.
"""

import http
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.shared.metrics import PROBLEM_COUNT

PROBLEM_MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_SECONDS = 5


@dataclass(frozen=True)
class ProblemKind:
    """What all problems of one code share."""

    status: int
    title: str
    retryable: bool = False


PROBLEMS = {
    "auth.missing_key": ProblemKind(401, "No API key"),
    "auth.invalid_key": ProblemKind(401, "Unknown API key"),
    "auth.expired_key": ProblemKind(401, "The API key has expired"),
    "auth.foreign_page": ProblemKind(403, "Not asked by a page of this service"),
    "auth.missing_scope": ProblemKind(403, "The API key may not do this"),
    "request.invalid": ProblemKind(422, "The request is not valid"),
    "request.invalid_json": ProblemKind(422, "The body is not JSON"),
    "request.too_large": ProblemKind(413, "The body is too large"),
    "request.not_found": ProblemKind(404, "No such path"),
    "request.method_not_allowed": ProblemKind(405, "This path does not take this method"),
    "request.unsupported_media_type": ProblemKind(415, "The body is of a type this path does not take"),
    "request.not_acceptable": ProblemKind(406, "None of the accepted formats can be made"),
    "request.idempotency_mismatch": ProblemKind(422, "The Idempotency-Key belongs to another request"),
    "request.idempotency_gone": ProblemKind(409, "What the first request made is deleted"),
    "request.range_not_satisfiable": ProblemKind(416, "The range lies outside of the file"),
    "spec.missing": ProblemKind(422, "The request has no spec"),
    "spec.invalid_json": ProblemKind(422, "The spec is not JSON"),
    "spec.too_large": ProblemKind(413, "The spec is too large"),
    "spec.unknown_field": ProblemKind(422, "The spec has a field that does not exist"),
    "spec.invalid": ProblemKind(422, "The spec is not valid"),
    "spec.not_first": ProblemKind(422, "The spec part must come first"),
    "model.missing": ProblemKind(422, "The request has no model"),
    "model.given_twice": ProblemKind(422, "The request names two models"),
    "model.not_found": ProblemKind(404, "No such model"),
    "model.unknown_id": ProblemKind(422, "The spec names a model that does not exist"),
    "model.rejected": ProblemKind(422, "The model cannot be repaired"),
    "model.inspecting": ProblemKind(409, "The model is still being inspected", retryable=True),
    "model.blocks_unknown": ProblemKind(409, "The blocks of the model are not known"),
    "model.in_use": ProblemKind(409, "A job uses the model"),
    "model.inspection_cancelled": ProblemKind(422, "The inspection of the model was cancelled"),
    "model.not_torchscript": ProblemKind(422, "The model is neither a TorchScript archive nor a .pt2 file"),
    "dataset.missing_upload": ProblemKind(422, "A dataset file is missing"),
    "dataset.unreferenced_upload": ProblemKind(422, "A file no dataset refers to"),
    "dataset.reference_not_supported": ProblemKind(422, "A dataset reference of a kind not supported"),
    "dataset.reference_invalid": ProblemKind(422, "A dataset reference is not well formed"),
    "dataset.reference_not_allowed": ProblemKind(422, "A dataset reference to a place that may not be read"),
    "dataset.sha256_missing": ProblemKind(422, "A URL of data without its sha256"),
    "dataset.url_invalid": ProblemKind(422, "The URL of the data is not valid"),
    "dataset.url_refused": ProblemKind(422, "The URL of the data is not called"),
    "dataset.not_found": ProblemKind(404, "No such dataset"),
    "dataset.unknown_id": ProblemKind(422, "There is no such dataset"),
    "dataset.rejected": ProblemKind(422, "The dataset cannot be used"),
    "dataset.resolving": ProblemKind(409, "The dataset is still being read", retryable=True),
    "dataset.missing": ProblemKind(422, "The request has no dataset"),
    "upload.malformed": ProblemKind(422, "The multipart body is malformed"),
    "upload.truncated": ProblemKind(422, "The multipart body ended too early"),
    "upload.duplicate_part": ProblemKind(422, "Two parts have the same name"),
    "upload.too_large": ProblemKind(413, "The upload is too large"),
    "upload.not_found": ProblemKind(404, "No such upload"),
    "upload.no_such_part": ProblemKind(404, "The upload has no such part"),
    "upload.too_many_parts": ProblemKind(422, "The upload would have too many parts"),
    "upload.part_too_large": ProblemKind(422, "The parts are too large"),
    "upload.wrong_part_size": ProblemKind(422, "The part is not of its size"),
    "upload.digest_mismatch": ProblemKind(422, "The bytes are not those of the digest"),
    "upload.parts_missing": ProblemKind(422, "Parts of the upload are missing"),
    "upload.not_open": ProblemKind(409, "The upload takes no more parts"),
    "upload.not_completed": ProblemKind(422, "The upload is not completed"),
    "upload.unknown_id": ProblemKind(422, "There is no such upload"),
    "upload.no_signed_urls": ProblemKind(422, "The store of this service signs no URLs"),
    "job.not_found": ProblemKind(404, "No such job"),
    "job.already_done": ProblemKind(409, "The job has already ended"),
    "job.not_finished": ProblemKind(409, "The job has not ended yet", retryable=True),
    "job.kind_refused": ProblemKind(409, "Not for jobs of this kind"),
    "job.inputs_gone": ProblemKind(409, "What the job worked on is deleted"),
    "job.no_repaired_model": ProblemKind(404, "The job has no repaired model"),
    "job.no_such_format": ProblemKind(404, "The job has no file in this format"),
    "job.no_localization": ProblemKind(404, "The job has no localization"),
    "job.no_report": ProblemKind(404, "The job has no report"),
    "job.nothing_to_judge": ProblemKind(409, "The job left nothing that gates could judge"),
    "job.gate_not_measured": ProblemKind(422, "A gate speaks of what the job did not measure"),
    "key.not_found": ProblemKind(404, "No such API key"),
    "key.scope_not_held": ProblemKind(403, "The API key cannot grant what it may not do"),
    "key.last_one": ProblemKind(409, "No other API key of the project can make keys"),
    "artifact.not_found": ProblemKind(404, "No such artifact"),
    "quota.rate_limited": ProblemKind(429, "Too many requests", retryable=True),
    "quota.queued_jobs": ProblemKind(429, "The project has too many waiting jobs", retryable=True),
    "quota.stored_bytes": ProblemKind(429, "The project stores too much"),
    "quota.models": ProblemKind(429, "The project has too many models"),
    "quota.open_uploads": ProblemKind(429, "The project has too many open uploads"),
    "quota.event_streams": ProblemKind(429, "Too many open event streams", retryable=True),
    "quota.webhook_endpoints": ProblemKind(429, "The project has too many webhook endpoints"),
    "webhook.url_refused": ProblemKind(422, "The URL of a webhook is not called"),
    "endpoint.not_found": ProblemKind(404, "No such webhook endpoint"),
    "delivery.not_found": ProblemKind(404, "No such delivery"),
    "job.deadline_exceeded": ProblemKind(500, "The job was not done in time"),
    "job.max_runtime_exceeded": ProblemKind(500, "The job ran longer than a job may"),
    "worker.lost": ProblemKind(500, "The worker was lost", retryable=True),
    "worker.engine_crashed": ProblemKind(500, "The engine crashed"),
    "worker.engine_killed": ProblemKind(500, "The engine was killed"),
    "worker.out_of_memory": ProblemKind(500, "The engine ran out of memory"),
    "worker.disk_full": ProblemKind(500, "The disk of the worker was full", retryable=True),
    "platform.content_missing": ProblemKind(500, "A stored file is gone"),
    "platform.internal": ProblemKind(500, "Something broke on our side", retryable=True),
    "platform.database_unavailable": ProblemKind(503, "The database does not answer", retryable=True),
    "platform.sessions_unavailable": ProblemKind(503, "The store of sessions does not answer", retryable=True),
    "platform.store_unavailable": ProblemKind(503, "The object store does not answer", retryable=True),
}
CODES_OF_STATUS = {
    400: "request.invalid_json",  # FastAPI's answer to a body that is not UTF-8
    404: "request.not_found",
    405: "request.method_not_allowed",
    413: "request.too_large",
    415: "request.unsupported_media_type",
}


class ApiProblem(Exception):
    """One answer of the gateway that is not a success. `errors` point into the body: `{"pointer", "detail"}` each."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        hint: str = "",
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.hint = hint
        self.errors = [dict(error) for error in errors]
        self.headers = dict(headers or {})


def problem_type(code: str) -> str:
    """The `type` URI of a code: a stable name that needs no web page."""
    return f"urn:archrepair:problem:{code}"


def problem_response(request: Request, problem: ApiProblem, *, status: int | None = None) -> JSONResponse:
    """The problem as RFC 9457 JSON."""
    kind = PROBLEMS[problem.code]
    PROBLEM_COUNT.labels(problem.code).inc()
    headers = dict(problem.headers)
    if kind.retryable:
        headers.setdefault("Retry-After", str(RETRY_AFTER_SECONDS))
    body = {
        "type": problem_type(problem.code),
        "title": kind.title,
        "status": status or kind.status,
        "detail": problem.detail,
        "instance": request.url.path,
        "code": problem.code,
        "hint": problem.hint,
        "retryable": kind.retryable,
        "request_id": getattr(request.state, "request_id", ""),
        "errors": problem.errors,
    }
    return JSONResponse(body, status or kind.status, headers, media_type=PROBLEM_MEDIA_TYPE)


def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiProblem)
    return problem_response(request, error)


def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = CODES_OF_STATUS.get(error.status_code, "request.invalid")
    if error.status_code >= 500:
        code = "platform.internal"
    details = {
        404: f"There is nothing at {request.url.path}.",
        405: f"{request.url.path} does not take {request.method}.",
    }
    detail = details.get(error.status_code) or str(error.detail or http.HTTPStatus(error.status_code).phrase)
    headers = {"Allow": _allowed_methods(request)} if error.status_code == 405 else error.headers
    problem = ApiProblem(code, detail, hint="See /docs for what there is.", headers=headers)
    return problem_response(request, problem, status=None if error.status_code == 400 else error.status_code)


def _allowed_methods(request: Request) -> str:
    """All methods of a path: the framework only names those of the first route that fits it."""
    path = request.url.path.removeprefix("/v1")
    routes = request.app.state.api_routes
    # A path with its own name before those in whose place of an id that name would fit, as OpenAPI has it.
    fitting = [route for route in routes if route.path == path] or [
        route for route in routes if route.path_regex.match(path)
    ]
    return ", ".join(sorted({method for route in fitting for method in route.methods})) or "GET"


def _on_invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [_request_error(item) for item in error.errors()]
    code = "request.invalid_json" if error.errors()[0]["type"] == "json_invalid" else "request.invalid"
    detail = "; ".join(f"{item.get('parameter') or item.get('pointer')}: {item['detail']}" for item in found)
    return problem_response(request, ApiProblem(code, detail, hint="See /docs for what is allowed.", errors=found))


def _request_error(error: Mapping[str, Any]) -> dict[str, str]:
    place, *path = error["loc"]
    message = str(error.get("ctx", {}).get("error") or error["msg"])
    if place == "body":
        return {"pointer": "#/" + "/".join(map(str, path)), "detail": message}
    return {"parameter": f"{place} {'.'.join(map(str, path))}", "detail": message}


def _on_database_error(request: Request, error: Exception) -> Response:
    structlog.get_logger().error("the database does not answer", error=str(error))
    problem = ApiProblem(
        "platform.database_unavailable", "The database does not answer.", hint="Try again in a moment."
    )
    return problem_response(request, problem)


def _on_crash(request: Request, error: Exception) -> Response:
    problem = ApiProblem("platform.internal", "The gateway failed on this request.", hint="Quote the request_id.")
    return problem_response(request, problem)


HANDLERS: Mapping[type[Exception], Callable[[Request, Exception], Response]] = {
    ApiProblem: _on_problem,
    HTTPException: _on_http_exception,
    RequestValidationError: _on_invalid_request,
    OperationalError: _on_database_error,
    Exception: _on_crash,
}


def install_error_handlers(app: FastAPI, answer: Callable[[Request, Exception], Response] | None = None) -> None:
    """Make every refusal of `app` a problem, or what `answer` makes of one."""
    for kind, handler in HANDLERS.items():
        app.add_exception_handler(kind, answer or handler)


def answer_to(request: Request, error: Exception) -> Response:
    """The problem that an error is; one that nobody foresaw tells nothing of itself."""
    return next(handler for kind, handler in HANDLERS.items() if isinstance(error, kind))(request, error)


def problem_responses(*codes: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI `responses` for these statuses; the schema `Problem` is added by app.openapi."""
    content = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {code: {"description": http.HTTPStatus(code).phrase, "content": content} for code in sorted(codes)}
