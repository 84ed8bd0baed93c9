"""What the OpenAPI document cannot say, told to schemathesis; imported by its process (`test_contract.py`).

Requests that are valid by the schema are completed to ones that mean something: a model that is an archive, the spec
before the files, references to data that is there. And the refusals of valid requests are listed, each with the rule of
the service that no schema can state and the operations it is of; any other refusal fails the run.
"""

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

import jsonschema
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
CALLABLE = "http://127.0.0.1:9/"
SPLITS = ("repair", "validation", "test", "replay", "regression")

JOBS, MODELS, DATASETS = "POST /v1/jobs", "POST /v1/models", "POST /v1/datasets"
UPLOADS, COMPLETE = "POST /v1/uploads", "POST /v1/uploads/{upload_id}/complete"
PART = "PUT /v1/uploads/{upload_id}/parts/{number}"
# Code of a refusal to the operations that may answer it to a valid request, and what of it no schema can say.
BEYOND_SCHEMA = {
    "model.missing": ({JOBS}, "a model_id in JSON, which no file comes with, unless the query has validate_only"),
    "model.unknown_id": ({JOBS}, "whether there is such a model"),
    "model.rejected": ({JOBS}, "whether the inspection of that model found it fit"),
    "upload.unknown_id": ({MODELS}, "whether there is such an upload"),
    "upload.not_completed": ({MODELS}, "whether its parts were sent and completed before"),
    "upload.wrong_part_size": ({PART}, "the size that the upload said before"),
    "upload.parts_missing": ({COMPLETE}, "whether its parts were sent before"),
    "upload.digest_mismatch": ({COMPLETE}, "the digest of what was sent before"),
    "upload.no_signed_urls": ({UPLOADS, "GET /v1/uploads/{upload_id}"}, "what the operator's store can do"),
    "job.gate_not_measured": ({"POST /v1/jobs/{job_id}/verdict"}, "what the job measured"),
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
    """A key per request: the same request twice is a replay, and no key comes with another request."""
    request = repr((case.operation.label, case.path_parameters, case.query, case.media_type, case.body))
    return hashlib.sha256(request.encode("utf-8", "surrogatepass")).hexdigest()


def _registration(body: dict[str, Any]) -> dict[str, Any]:
    """A model that is an archive: of what it holds, the inspection says what it thinks."""
    return body | {"model": Binary(ARCHIVE)}


def _submission(form: dict[str, Any]) -> dict[str, Any]:
    """The form in its order: the spec, then the model, then the file the spec refers to."""
    spec = {name: value for name, value in _spec(form["spec"]).items() if name != "model_id"}
    spec["datasets"] = {**spec["datasets"], "repair": "upload:repair"}
    return {"spec": spec, "model": Binary(ARCHIVE), "repair": Binary(ARCHIVE)}


def _spec(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec with references to what there is and may be read, and with as many means as deviations."""
    datasets = {name: "builtin:digits" if name in SPLITS and value is not None else value
                for name, value in spec["datasets"].items()}  # fmt: skip
    spec = {**spec, "datasets": datasets}
    if isinstance(spec.get("preprocessing"), dict):
        spec["preprocessing"] = {**spec["preprocessing"], "mean": [0.5], "std": [0.5]}
    if isinstance(spec.get("model"), dict):
        spec["model"] = {**spec["model"], "reference": None}
    if isinstance(spec.get("webhook"), dict):
        spec["webhook"] = {**spec["webhook"], "url": CALLABLE}
    return spec


def _key(body: dict[str, Any]) -> dict[str, Any]:
    """One that expires in the future, which no schema knows of."""
    return {**body, "expires_at": "2999-01-01T00:00:00Z"} if body.get("expires_at") else body


def _endpoint(body: dict[str, Any]) -> dict[str, Any]:
    """At an address that the operator lets be called and where nobody listens."""
    return {**body, "url": CALLABLE} if body.get("url") else body


def _upload(body: dict[str, Any]) -> dict[str, Any]:
    """One of a single part, which `PUT …/parts/1` sends: how large files may be is the operator's choice."""
    return body | {"size_bytes": len(ARCHIVE), "part_bytes": None, "sha256": None}


def _dataset(body: dict[str, Any]) -> dict[str, Any]:
    """Data that every service has, which needs no sha256: what else may be read is the operator's choice."""
    return {**body, "reference": "builtin:digits", "sha256": None}


FORM, JSON, BYTES = "multipart/form-data", "application/json", "application/octet-stream"
COMPLETIONS = {
    (JOBS, FORM): _submission,
    (JOBS, JSON): _spec,
    (MODELS, FORM): _registration,
    (DATASETS, JSON): _dataset,
    (DATASETS, FORM): lambda body: {**body, "file": Binary(ARCHIVE)},
    ("POST /v1/api-keys", JSON): _key,
    ("POST /v1/webhook-endpoints", JSON): _endpoint,
    ("PATCH /v1/webhook-endpoints/{endpoint_id}", JSON): _endpoint,
    (UPLOADS, JSON): _upload,
    (PART, BYTES): lambda _: Binary(ARCHIVE),
}


@schemathesis.hook
def filter_path_parameters(context: HookContext, path_parameters: Any) -> bool:
    """Leave the key of the run alone."""
    return not isinstance(path_parameters, dict) or path_parameters.get("key_id") != OWN_KEY


def _arrives_as_valid(case: Any) -> bool:
    """Whether a dataset's form is valid as it reaches the service, where a list is its items one after the other, of
    none nothing, and every value but JSON is text."""
    if (case.operation.label, case.media_type) != (DATASETS, FORM) or not isinstance(case.body, dict):
        return False
    arrives = {}
    for name, value in case.body.items():
        sent = value if isinstance(value, list) else [value]
        if len(sent) > 1:
            return False
        if sent:
            arrives[name] = sent[0] if isinstance(sent[0], str | dict) else str(sent[0])
    schema = case.operation.schema.raw_schema["paths"]["/v1/datasets"]["post"]["requestBody"]["content"][FORM]["schema"]
    return bool(jsonschema.Draft202012Validator(schema).is_valid(arrives))


@schemathesis.hook
def filter_failure(context: HookContext, failure: Failure, case: Any, response: Any) -> bool:
    """Drop refusals by a rule that no schema can state, noting which; of lists too long as a body; and what is wrong
    with a form before it is sent only."""
    if isinstance(failure, AcceptedNegativeData) and (response.status_code == TOO_LARGE or _arrives_as_valid(case)):
        return False
    if not isinstance(failure, RejectedPositiveData):
        return True
    code = response.json().get("code")
    operations, _ = BEYOND_SCHEMA.get(code, (set(), ""))
    if case.operation.label not in operations:
        return True
    with Path(os.environ["CONTRACT_DROPPED"]).open("a") as file:
        file.write(f"{case.operation.label}: {code}\n")
    return False
