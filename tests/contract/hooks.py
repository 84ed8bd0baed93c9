"""What the OpenAPI document cannot say, told to schemathesis; imported by its process (`test_contract.py`).

Requests that are valid by the schema are completed to ones that mean something: a model that is an archive, the spec
before the files, references to data that is there. And the refusals of valid requests are listed, each with the rule of
the service that no schema can state; a refusal with any other code fails the run.
"""

import base64
import hashlib
import os
from typing import Any

import schemathesis
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.hooks import HookContext
from schemathesis.openapi.checks import RejectedPositiveData
from schemathesis.transport.serialization import Binary

ARCHIVE = b"PK\x03\x04" + bytes(range(256))
ARCHIVE_DIGEST = f"sha-256=:{base64.b64encode(hashlib.sha256(ARCHIVE).digest()).decode()}:"
# The run must not revoke the key it goes on with.
OWN_KEY = os.environ["CONTRACT_KEY_ID"]
LONGEST_WAIT_SECONDS = 0.05
TOO_LARGE = 413
SPLITS = ("repair", "validation", "test", "replay", "regression")

BEYOND_SCHEMA = {
    "request.idempotency_mismatch": "that the key came with another request before",
    "model.missing": "a model part or a model_id in the JSON of another part",
    "model.given_twice": "the same",
    "model.unknown_id": "whether there is such a model",
    "model.rejected": "whether that model can be repaired",
    "model.not_torchscript": "what the bytes of a file are",
    "webhook.url_refused": "which hosts the operator lets be called",
    "upload.too_large": "the operator's limit",
    "upload.part_too_large": "the operator's limit",
    "upload.too_many_parts": "size and part size, divided",
    "upload.wrong_part_size": "the size that the upload said before",
    "upload.parts_missing": "that the parts were sent before",
    "upload.digest_mismatch": "the digest of what was sent",
    "upload.no_signed_urls": "what the operator's store can do",
    "dataset.missing_upload": "a part of the form for each name in the JSON of another part",
    "dataset.unreferenced_upload": "the same, the other way round",
    "job.gate_not_measured": "what the job measured",
    "upload.unknown_id": "whether there is such an upload",
    "upload.not_completed": "whether its parts were sent and completed before",
    "dataset.reference_not_supported": "that a JSON body brings no files, so that it has no uploads to refer to",
}


@schemathesis.hook
def before_call(context: HookContext, case: Any, kwargs: Any) -> None:
    """Make a valid request mean something, and a waiting one short."""
    if isinstance(case.query, dict) and "wait" in case.query:
        case.query["wait"] = _shorter(case.query["wait"])
    if case.meta is not None and case.meta.generation.mode.is_positive:
        if "Idempotency-Key" in case.headers:
            case.headers["Idempotency-Key"] = _own_key(case)
        if "Content-Digest" in case.headers:
            case.headers["Content-Digest"] = ARCHIVE_DIGEST
        complete = COMPLETIONS.get((case.operation.label, case.media_type))
        if complete is not None:
            case.body = complete(case.body)
        case._record_starting_state()  # else the changed request is judged anew, and files are beyond its validator


def _shorter(wait: Any) -> Any:
    try:
        return LONGEST_WAIT_SECONDS if LONGEST_WAIT_SECONDS < float(wait) <= 60 else wait
    except (TypeError, ValueError):  # not a valid wait, and so to be refused
        return wait


def _own_key(case: Any) -> str:
    """A key per request, so that few keys are refused for another one's; the same request twice is a replay."""
    request = repr((case.operation.label, case.path_parameters, case.body))
    return hashlib.sha256(request.encode("utf-8", "surrogatepass")).hexdigest()


def _registration(body: dict[str, Any]) -> dict[str, Any]:
    """A model, and a shape that its inspection would try."""
    return body | {"model": Binary(ARCHIVE)} | ({"input_shape": [3, 8, 8]} if "input_shape" in body else {})


def _submission(form: dict[str, Any]) -> dict[str, Any]:
    """The form in its order: the spec, then the model, then a file for each reference."""
    spec = _spec(form["spec"]) if isinstance(form.get("spec"), dict) else form.get("spec")
    return {"spec": spec, "model": Binary(ARCHIVE)}


def _spec(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec on data that every service has, with as many means as deviations, and no reference model."""
    datasets = {name: "builtin:digits" if name in SPLITS and value is not None else value
                for name, value in spec["datasets"].items()}  # fmt: skip
    spec = {**spec, "datasets": datasets}
    if isinstance(spec.get("preprocessing"), dict):
        spec["preprocessing"] = {**spec["preprocessing"], "mean": [0.5], "std": [0.5]}
    if isinstance(spec.get("model"), dict):
        spec["model"] = {**spec["model"], "reference": None}
    return spec


def _without_model_id(spec: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name != "model_id"}


def _key(body: dict[str, Any]) -> dict[str, Any]:
    """One that expires in the future, which no schema knows of."""
    return {**body, "expires_at": "2999-01-01T00:00:00Z"} if body.get("expires_at") else body


def _endpoint(body: dict[str, Any]) -> dict[str, Any]:
    """At an address that may be called and where nobody listens."""
    return {**body, "url": "http://127.0.0.1:9/"} if body.get("url") else body


def _upload(body: dict[str, Any]) -> dict[str, Any]:
    """One of a single part, which `PUT …/parts/1` sends."""
    return body | {"size_bytes": len(ARCHIVE), "part_bytes": None, "sha256": None}


def _dataset(body: dict[str, Any]) -> dict[str, Any]:
    """Data that every service has, which needs no sha256."""
    return {**body, "reference": "builtin:digits", "sha256": None}


FORM, JSON, BYTES = "multipart/form-data", "application/json", "application/octet-stream"
COMPLETIONS = {
    ("POST /v1/jobs", FORM): lambda form: _submission({**form, "spec": _without_model_id(form["spec"])}),
    ("POST /v1/jobs", JSON): _spec,
    ("POST /v1/models", FORM): _registration,
    ("POST /v1/datasets", JSON): _dataset,
    ("POST /v1/datasets", FORM): lambda body: {**body, "file": Binary(ARCHIVE)},
    ("POST /v1/api-keys", JSON): _key,
    ("POST /v1/webhook-endpoints", JSON): _endpoint,
    ("PATCH /v1/webhook-endpoints/{endpoint_id}", JSON): _endpoint,
    ("POST /v1/uploads", JSON): _upload,
    ("PUT /v1/uploads/{upload_id}/parts/{number}", BYTES): lambda _: Binary(ARCHIVE),
}


@schemathesis.hook
def filter_path_parameters(context: HookContext, path_parameters: Any) -> bool:
    """Leave the key of the run alone."""
    return not isinstance(path_parameters, dict) or path_parameters.get("key_id") != OWN_KEY


@schemathesis.hook
def filter_failure(context: HookContext, failure: Failure, case: Any, response: Any) -> bool:
    """Drop refusals by a rule that no schema can state, and those of a list that is too long already as a body."""
    if isinstance(failure, AcceptedNegativeData) and response.status_code == TOO_LARGE:
        return False
    return not isinstance(failure, RejectedPositiveData) or response.json().get("code") not in BEYOND_SCHEMA
