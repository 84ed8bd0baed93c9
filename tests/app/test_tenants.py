"""Another project's things are as absent as things that never were: tried on every path of the OpenAPI document.

A new route is tried by itself. One with a parameter that MAKERS does not know fails until somebody adds it.
"""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import obstore
import pytest
from sqlalchemy.orm import Session

from app.keys import add_api_key, ensure_project
from app.shared.ids import new_id
from app.shared.jobs import submit_job
from app.shared.storage import open_store
from app.shared.tables import Artifact, Dataset, Job, Model, Upload, WebhookDelivery, WebhookEndpoint

SHA256 = "0" * 64
FACTS = {"format": "torchscript", "num_blocks": 0, "input_shape": [3, 8, 8], "input_shape_source": "given"}
# Bodies that a route needs to come as far as the id, where the smallest one by its schema is not enough.
BODIES: dict[str, Any] = {}
VARYING_HEADERS = {"date", "x-request-id", "content-length", "ratelimit", "connection"}


def make_model(session: Session, project_id: str, _made: dict[str, str]) -> str:
    key = f"blobs/{new_id('mdl')}"
    row = Model(id=new_id("mdl"), project_id=project_id, filename="m.pt", sha256=SHA256, size_bytes=4, storage_key=key,
                state="ready", facts=FACTS)  # fmt: skip
    session.add(row)
    session.flush()
    return row.id


def make_job(session: Session, project_id: str, made: dict[str, str]) -> str:
    model_id = make_model(session, project_id, made)
    return submit_job(session, project_id=project_id, spec={}, kind="repair", model_id=model_id).id


def make_artifact(session: Session, project_id: str, made: dict[str, str]) -> str:
    job_id = made.get("job_id") or make_job(session, project_id, made)
    row = Artifact(id=new_id("art"), job_id=job_id, attempt=1, name="engine.log", kind="log", media_type="text/plain",
                   size_bytes=3, sha256=SHA256, storage_key="tests/artifact")  # fmt: skip
    session.add(row)
    session.flush()
    return row.id


def make_key(session: Session, project_id: str, _made: dict[str, str]) -> str:
    return add_api_key(session, project_id=project_id, name="made")[0].id


def make_upload(session: Session, project_id: str, _made: dict[str, str]) -> str:
    row = Upload(id=new_id("upl"), project_id=project_id, filename="u.bin", size_bytes=3, part_bytes=3,
                 expires_at=2.0**32)  # fmt: skip
    session.add(row)
    session.flush()
    return row.id


def make_dataset(session: Session, project_id: str, _made: dict[str, str]) -> str:
    row = Dataset(id=new_id("ds"), project_id=project_id, name="made", reference="builtin:digits", state="ready")
    session.add(row)
    session.flush()
    return row.id


def make_endpoint(session: Session, project_id: str, _made: dict[str, str]) -> str:
    row = WebhookEndpoint(id=new_id("whk"), project_id=project_id, url="https://hooks.example/x", events=["job.failed"])
    session.add(row)
    session.flush()
    return row.id


def make_delivery(session: Session, project_id: str, made: dict[str, str]) -> str:
    owner = (
        made if "job_id" in made or "endpoint_id" in made else {"endpoint_id": make_endpoint(session, project_id, made)}
    )
    of = {name: owner[name] for name in ("job_id", "endpoint_id") if name in owner}
    row = WebhookDelivery(id=new_id("whd"), **of, project_id=project_id, event="job.failed",
                          url="https://hooks.example/x", payload={}, state="failed")  # fmt: skip
    session.add(row)
    session.flush()
    return row.id


# In the order of the path: a later one belongs to the earlier ones, by their names in `made`.
MAKERS: dict[str, Callable[[Session, str, dict[str, str]], str]] = {
    "job_id": make_job,
    "model_id": make_model,
    "artifact_id": make_artifact,
    "key_id": make_key,
    "upload_id": make_upload,
    "dataset_id": make_dataset,
    "endpoint_id": make_endpoint,
    "delivery_id": make_delivery,
}
# Parameters that name no thing of a project.
PLAIN = {"number": "1"}


@pytest.fixture
def document(gateway) -> dict[str, Any]:
    return dict(gateway.client.get("/openapi.json").json())


@pytest.fixture
def stranger(gateway, stranger_key) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=gateway.url, headers={"Authorization": f"Bearer {stranger_key}"}, timeout=30) as client:
        yield client


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def path_parameters(operation: dict[str, Any]) -> list[str]:
    return [item["name"] for item in operation.get("parameters", []) if item["in"] == "path"]


def smallest(schema: dict[str, Any], document: dict[str, Any]) -> Any:
    """A small value that fits a schema, as far as the bodies here go."""
    if "$ref" in schema:
        return smallest(document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document)
    if "anyOf" in schema:
        return smallest(schema["anyOf"][0], document)
    for name in ("const", "default"):
        if name in schema:
            return schema[name]
    if "enum" in schema:
        return schema["enum"][0]
    if schema.get("type") == "object":
        properties = schema.get("properties", {})
        return {name: smallest(properties[name], document) for name in schema.get("required", [])}
    if schema.get("type") == "array":
        return [smallest(schema["items"], document)] * schema.get("minItems", 0)
    smallest_of = {"string": "x" * schema.get("minLength", 1), "integer": max(schema.get("minimum", 1), 1)}
    return smallest_of.get(schema.get("type", ""))


def body_of(path: str, method: str, operation: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """What httpx needs to send a body of the kind the operation takes."""
    content = operation.get("requestBody", {}).get("content", {})
    if f"{method} {path}" in BODIES:
        return {"json": BODIES[f"{method} {path}"]}
    if "application/json" in content:
        return {"json": smallest(content["application/json"]["schema"], document)}
    return {"content": b"x"} if content else {}


def answer_to(client: httpx.Client, method: str, path: str, values: dict[str, str], body: dict[str, Any]) -> Any:
    """Status, headers and body, without what differs between any two answers and without the ids."""
    answer = client.request(method.upper(), path.format(**values), **body)
    text = answer.text
    for value in values.values():
        text = text.replace(value, "ID") if "_" in value else text
    text = text.replace(answer.headers["x-request-id"], "REQUEST")
    return answer.status_code, text, {name for name in answer.headers if name not in VARYING_HEADERS}


def test_on_every_path_another_projects_thing_is_as_absent_as_one_that_never_was(
    gateway, gateway_sessions, document, stranger
):
    obstore.put(open_store(gateway.settings.store_url), "tests/artifact", b"abc")
    with gateway_sessions() as session:
        project_id = ensure_project(session).id
    tried, wrong = 0, []
    for path, method, operation in operations(document):
        names = path_parameters(operation)
        if not set(names) & set(MAKERS):
            assert set(names) <= set(PLAIN), f"{path}: add a maker for {names} to this test"
            continue
        assert set(names) <= set(MAKERS) | set(PLAIN), f"{path}: add a maker for {names} to this test"
        made: dict[str, str] = {}
        with gateway_sessions.begin() as session:
            for name in names:
                made[name] = PLAIN.get(name) or MAKERS[name](session, project_id, made)
        never = {name: PLAIN.get(name) or new_id(value.partition("_")[0]) for name, value in made.items()}
        body = body_of(path, method, operation, document)
        theirs, absent = (answer_to(stranger, method, path, values, body) for values in (made, never))
        own = answer_to(gateway.client, method, path, made, body)
        tried += 1
        if theirs != absent or theirs[0] != 404 or ".not_found" not in theirs[1]:
            wrong.append(f"{method} {path}: another project's {theirs}, one that never was {absent}")
        if ".not_found" in own[1]:
            wrong.append(f"{method} {path}: its own project does not find it either: {own}")
    assert wrong == []
    assert tried >= 14


def test_no_list_shows_another_projects_things(gateway_sessions, document, stranger):
    with gateway_sessions.begin() as session:
        project_id = ensure_project(session).id
        made: dict[str, str] = {}
        for name, make in MAKERS.items():
            made[name] = make(session, project_id, made)
    lists = [path for path, method, operation in operations(document) if method == "get" and "{" not in path]
    assert {"/v1/jobs", "/v1/models", "/v1/api-keys"} <= set(lists)
    for path in lists:
        text = stranger.get(path).text
        assert not any(value in text for value in made.values()), path


def test_a_spec_cannot_tell_another_projects_model_from_none(gateway_sessions, stranger):
    with gateway_sessions.begin() as session:
        owned = make_model(session, ensure_project(session).id, {})
    answers = []
    for model_id in (owned, new_id("mdl")):
        spec = {"model_id": model_id, "datasets": {"repair": "builtin:digits"}}
        answer = stranger.post("/v1/jobs", json=spec)
        answers.append((answer.status_code, answer.json()["detail"].replace(model_id, "ID")))
        assert stranger.get(f"/v1/jobs?model_id={model_id}").json()["data"] == []
    assert answers[0] == answers[1]
    assert answers[0][0] == 422
    with gateway_sessions() as session:
        assert session.query(Job).where(Job.model_id == owned).count() == 0
