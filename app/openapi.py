"""The OpenAPI document: what FastAPI derives, plus the truth about streamed bodies and problems."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from app.limits import MAX_DIMENSIONS, MAX_INPUT_SIDE
from app.schemas.requests import (
    METADATA_KEYS,
    CancelRequest,
    DatasetCreate,
    JobCreate,
    ModelCreate,
    UploadComplete,
    UploadCreate,
    VerdictRequest,
)
from app.schemas.responses import Problem
from app.shared.references import DATA_PATTERN, MODEL_PATTERN
from archrepair_core.spec import SPLITS

BINARY = {"type": "string", "format": "binary"}
METADATA: dict[str, Any] = {
    "type": "object",
    "propertyNames": METADATA_KEYS,
    "additionalProperties": {"type": "string", "maxLength": 512},
    "maxProperties": 16,
}
SUBMIT_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["spec"],
                "properties": {
                    "spec": {"$ref": "#/components/schemas/JobCreate"},
                    "model": {
                        **BINARY,
                        "description": "The model: TorchScript (torch.jit.save) or .pt2 (torch.export.save).",
                    },
                },
                "additionalProperties": {
                    **BINARY,
                    "description": "Dataset files: the part NAME is `upload:NAME` in the spec.",
                },
                "description": "The part `spec` must come first, so that it is checked before a file is read.",
            },
            "encoding": {"spec": {"contentType": "application/json"}},
        },
        "application/json": {"schema": {"$ref": "#/components/schemas/JobCreate"}},
    },
}
REGISTER_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["model"],
                "properties": {
                    "model": {
                        **BINARY,
                        "description": "The model: TorchScript (torch.jit.save) or .pt2 (torch.export.save).",
                    },
                    "input_shape": {
                        "type": "array",
                        "items": {"type": "integer", "minimum": 1, "maximum": MAX_INPUT_SIDE},
                        "minItems": 1,
                        "maxItems": MAX_DIMENSIONS,
                        "description": "Of one input, as JSON, e.g. [3, 224, 224]; without it, it is worked out.",
                    },
                },
                "additionalProperties": False,
            },
            "encoding": {"input_shape": {"contentType": "application/json"}},
        },
        "application/json": {"schema": {"$ref": "#/components/schemas/ModelCreate"}},
    },
}
DATASET_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {"schema": {"$ref": "#/components/schemas/DatasetCreate"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {**BINARY, "description": "The data: .npz, Parquet, or a zip or tar of images."},
                    "name": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": r"^[^\x00-\x1f\x7f]*$"},
                    "metadata": METADATA,
                },
                "additionalProperties": False,
            },
            "encoding": {"metadata": {"contentType": "application/json"}},
        },
    },
}
CANCEL_BODY: dict[str, Any] = {
    "required": False,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/CancelRequest"}}},
}
VERDICT_BODY: dict[str, Any] = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/VerdictRequest"}}},
}
UPLOAD_BODY: dict[str, Any] = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/UploadCreate"}}},
}
COMPLETE_BODY: dict[str, Any] = {
    "required": False,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/UploadComplete"}}},
}
PART_BODY: dict[str, Any] = {
    "parameters": [
        {
            "name": "Content-Digest",
            "in": "header",
            "required": False,
            "schema": {"type": "string", "pattern": "^sha-256=:[A-Za-z0-9+/]{43}=:$"},
            "description": "RFC 9530: the part is kept only if it has this sha256.",
        }
    ],
    "requestBody": {
        "required": True,
        "description": "The bytes of the part and nothing else, exactly as many as the part has.",
        "content": {"application/octet-stream": {"schema": BINARY}},
    },
}
DESCRIPTION = """Repair as a service for trained classifiers: send a TorchScript or `.pt2` model and the inputs it fails
on, get back a repaired model with the evidence that it is better. Every path also answers without `/v1`."""


BODIES = (JobCreate, CancelRequest, VerdictRequest, UploadCreate, UploadComplete, ModelCreate, DatasetCreate)


def install_openapi(app: FastAPI) -> None:
    """Make `app.openapi()` tell the whole truth."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
            _add_schemas(document)
            _leave_out_null(document)
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _add_schemas(document: dict[str, Any]) -> None:
    """Add the schemas no route names in its signature, and drop FastAPI's error schemas, which are never sent."""
    _, added = models_json_schema(
        [(body, "validation") for body in BODIES] + [(Problem, "serialization")],
        ref_template="#/components/schemas/{model}",
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(added.get("$defs", {}))
    _add_patterns(schemas["Model"]["properties"]["reference"], MODEL_PATTERN)
    for split in SPLITS:
        _add_patterns(schemas["DatasetReferences"]["properties"][split], DATA_PATTERN)
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)


def _add_patterns(schema: dict[str, Any], pattern: str) -> None:
    """Say of a string, or one that may be null, what the engine leaves to the service to know."""
    for branch in (schema, *schema.get("anyOf", [])):
        if branch.get("type") == "string":
            branch["pattern"] = pattern


def _leave_out_null(document: dict[str, Any]) -> None:
    """A parameter that may be left out is not one that may be null: in a URL or a header there is no null."""
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    for parameter in (parameter for operation in operations for parameter in operation.get("parameters", [])):
        schema = parameter["schema"]
        branches = [branch for branch in schema.get("anyOf", []) if branch != {"type": "null"}]
        if len(branches) == 1:
            del schema["anyOf"]
            schema.update(branches[0])
