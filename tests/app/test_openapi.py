import pytest

from app.errors import PROBLEM_MEDIA_TYPE, PROBLEMS
from app.schemas.requests import JobCreate

FAMILIES = {
    "auth",
    "request",
    "spec",
    "model",
    "dataset",
    "upload",
    "job",
    "artifact",
    "key",
    "quota",
    "webhook",
    "endpoint",
    "delivery",
    "worker",
    "platform",
}


@pytest.fixture
def document(gateway) -> dict:
    return gateway.client.get("/openapi.json").json()


def test_only_versioned_paths_are_shown(document):
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) >= {"/v1/jobs", "/v1/jobs/{job_id}/cancel", "/v1/artifacts/{artifact_id}/content"}
    assert all(path.startswith("/v1/") for path in document["paths"])


def test_the_streamed_body_is_described(document):
    content = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    form = content["multipart/form-data"]
    assert form["schema"]["required"] == ["spec"]
    assert form["encoding"]["spec"]["contentType"] == "application/json"
    assert content["application/json"]["schema"]["$ref"] == "#/components/schemas/JobCreate"
    assert set(document["components"]["schemas"]["JobCreate"]["properties"]) == set(JobCreate.model_fields)


def test_every_refusal_is_a_problem(document):
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    refusals = [
        response
        for operation in operations
        for status, response in operation["responses"].items()
        if status >= "400" and operation["operationId"] != "readyz_v1_readyz_get"
    ]
    assert len(refusals) > 50
    assert all(list(response["content"]) == [PROBLEM_MEDIA_TYPE] for response in refusals)


def test_no_parameter_may_be_null(document):
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    parameters = [parameter for operation in operations for parameter in operation.get("parameters", [])]
    assert len(parameters) > 30
    assert not [parameter for parameter in parameters if {"type": "null"} in parameter["schema"].get("anyOf", [])]


def test_every_reference_leads_somewhere(document):
    def references(node: object) -> set[str]:
        if isinstance(node, dict):
            own = {node["$ref"]} if isinstance(node.get("$ref"), str) else set()
            return own.union(*map(references, node.values()))
        return set().union(*map(references, node)) if isinstance(node, list) else set()

    found = {reference.removeprefix("#/components/schemas/") for reference in references(document)}
    assert found <= set(document["components"]["schemas"])
    assert "HTTPValidationError" not in document["components"]["schemas"]


def test_every_code_belongs_to_a_family_and_a_refusal():
    for code, kind in PROBLEMS.items():
        assert code.partition(".")[0] in FAMILIES, code
        assert 400 <= kind.status < 600
