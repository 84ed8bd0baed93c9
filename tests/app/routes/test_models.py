import hashlib
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from app.shared.claims import claim_job
from app.shared.jobs import finish_job
from app.shared.models import record_model, settle_model
from app.shared.tables import Job, JobInput, Model
from tests.servers import keys_of_content, stored_bytes, stored_keys

CONTENT = b"PK\x03\x04 a model of its own"
STAGE = {"name": "layer1", "kind": "Sequential", "level": "stage", "stage": None, "depth": 0, "input_shape": [3, 8, 8],
         "output_shape": [4, 4, 4], "num_params": 9, "macs": 64, "latency_share": 0.5}  # fmt: skip
FOUND = {"format": "torchscript", "written_by": "torch 2.9", "num_parameters": 9, "input_shape": [3, 8, 8],
         "input_shape_source": "given", "blocks": [STAGE, STAGE | {"name": "layer1.0", "level": "block"}],
         "blocks_unknown": None}  # fmt: skip
ERROR = {"code": "model.frozen_graph", "detail": "no parameters", "hint": "do not freeze", "category": "user"}


def parts(content: bytes = CONTENT, **fields: str) -> list[tuple[str, tuple]]:
    files: list[tuple[str, tuple]] = [("model", ("resnet18.pt", content, "application/octet-stream"))]
    return files + [(name, (None, value)) for name, value in fields.items()]


@pytest.fixture
def register(gateway) -> Callable[..., dict[str, Any]]:
    """Registers a model over HTTP and gives it."""

    def register_one(content: bytes = CONTENT, **fields: str) -> dict[str, Any]:
        answer = gateway.client.post("/v1/models", files=parts(content, **fields))
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    return register_one


@pytest.fixture
def inspected(gateway_sessions: sessionmaker[Session]) -> Callable[..., None]:
    """Plays the worker that looks at a model: it finds something, or fails with `error`."""

    def inspect(model_id: str, found: dict[str, Any] | None = None, error: dict[str, Any] | None = None) -> None:
        with gateway_sessions.begin() as session:
            session.execute(update(Job).where(Job.model_id == model_id).values(priority=100))
        with gateway_sessions.begin() as session:
            held = claim_job(session, owner="test-worker", lease_seconds=60)
        assert held is not None
        assert held.model_id == model_id
        with gateway_sessions.begin() as session:
            assert error or record_model(session, held, found or FOUND)
            finish_job(session, held, status="failed" if error else "succeeded", error=error, cause="test")
        with gateway_sessions.begin() as session:
            settle_model(session, model_id)

    return inspect


def test_a_registered_model_is_answered_at_once_and_waits_for_inspection(gateway, register, gateway_sessions):
    answer = gateway.client.post("/v1/models", files=parts(input_shape="[3, 32, 32]"))
    model = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == model["links"]["self"] == f"/v1/models/{model['id']}"
    assert int(answer.headers["retry-after"]) > 0
    assert (model["object"], model["state"], model["done"], model["error"]) == ("model", "inspecting", False, None)
    assert (model["filename"], model["sha256"]) == ("resnet18.pt", hashlib.sha256(CONTENT).hexdigest())
    looked = gateway.client.get(f"/v1/models/{model['id']}")
    assert looked.json() == model
    assert int(looked.headers["retry-after"]) > 0
    assert gateway.client.get("/models", params={"limit": 1, "state": "inspecting"}).json()["data"] == [model]
    with gateway_sessions() as session:
        (job,) = session.scalars(select(Job).where(Job.model_id == model["id"])).all()
    assert (job.kind, job.spec) == ("inspect", {"kind": "inspect", "input_shape": [3, 32, 32]})


def test_inspections_are_listed_only_for_those_who_ask(gateway, register):
    model_id = register()["id"]
    assert gateway.client.get("/v1/jobs", params={"model_id": model_id}).json()["data"] == []
    (job,) = gateway.client.get("/v1/jobs", params={"model_id": model_id, "kind": "inspect"}).json()["data"]
    assert (job["kind"], job["status"], job["model_id"]) == ("inspect", "queued", model_id)
    assert gateway.client.get(job["links"]["self"]).status_code == 200


def test_a_ready_model_shows_facts_and_blocks(gateway, register, inspected):
    model_id = register()["id"]
    inspected(model_id)
    model = gateway.client.get(f"/v1/models/{model_id}").json()
    assert (model["state"], model["done"], model["num_parameters"], model["num_blocks"]) == ("ready", True, 9, 1)
    assert (model["format"], model["written_by"]) == ("torchscript", "torch 2.9")
    assert (model["input_shape"], model["input_shape_source"]) == ([3, 8, 8], "given")
    assert model["inspected_at"]
    tree = gateway.client.get(model["links"]["blocks"]).json()
    assert (tree["model_id"], tree["input_shape"], tree["input_shape_source"]) == (model_id, [3, 8, 8], "given")
    assert [(block["object"], block["name"], block["level"]) for block in tree["data"]] == [
        ("block", "layer1", "stage"),
        ("block", "layer1.0", "block"),
    ]
    assert {**tree["data"][0]} == STAGE | {"object": "block"}


def test_waiting_ends_with_the_inspection(gateway, register, inspected):
    model_id = register()["id"]
    thread = threading.Timer(0.5, inspected, [model_id])
    thread.start()
    started = time.monotonic()
    model = gateway.client.get(f"/v1/models/{model_id}", params={"wait": 20}).json()
    thread.join()
    assert model["state"] == "ready"
    assert 0.4 < time.monotonic() - started < 5


def test_a_model_under_inspection_shows_no_blocks_yet(gateway, register):
    answer = gateway.client.get(f"/v1/models/{register()['id']}/blocks")
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (409, "model.inspecting", True)
    assert int(answer.headers["retry-after"]) > 0
    assert "?wait=60" in answer.json()["hint"]


def test_a_rejected_model_says_why_wherever_it_is_used(gateway, register, inspected, submission):
    model_id = register()["id"]
    inspected(model_id, error=ERROR)
    model = gateway.client.get(f"/v1/models/{model_id}").json()
    assert (model["state"], model["done"], model["num_blocks"]) == ("rejected", True, None)
    assert (model["error"]["code"], model["error"]["detail"]) == ("model.frozen_graph", "no parameters")
    spec = {"model_id": model_id, "datasets": {"repair": "builtin:digits"}}
    refusals = [
        (gateway.client.get(f"/v1/models/{model_id}/blocks"), 409, "model.blocks_unknown"),
        (gateway.client.post("/v1/jobs", json=spec), 422, "model.rejected"),
        (gateway.client.post("/v1/jobs?validate_only=true", json=spec), 422, "model.rejected"),
    ]
    for answer, status, code in refusals:
        body = answer.json()
        assert (answer.status_code, body["code"], body["hint"]) == (status, code, "do not freeze")
        assert "model.frozen_graph: no parameters" in body["detail"]
    assert refusals[1][0].json()["errors"][0]["pointer"] == "#/model_id"


def test_blocks_that_no_input_could_show_are_a_409_with_the_reason(gateway, register, inspected):
    model_id = register()["id"]
    reason = {"code": "model.input_shape_unknown", "detail": "no usual shape fits", "hint": "give input_shape"}
    unknown = {"input_shape": None, "input_shape_source": None, "blocks": [], "blocks_unknown": reason}
    inspected(model_id, FOUND | unknown)
    model = gateway.client.get(f"/v1/models/{model_id}").json()
    assert (model["state"], model["num_blocks"], model["blocks_unknown"]) == ("ready", None, reason)
    answer = gateway.client.get(f"/v1/models/{model_id}/blocks")
    assert (answer.status_code, answer.json()["code"]) == (409, "model.blocks_unknown")
    assert "no usual shape fits" in answer.json()["detail"]
    assert answer.json()["hint"] == "give input_shape"


def test_a_job_may_be_submitted_before_its_model_is_inspected(gateway, register):
    model_id = register()["id"]
    answer = gateway.client.post("/v1/jobs", json={"model_id": model_id, "datasets": {"repair": "builtin:digits"}})
    assert (answer.status_code, answer.json()["model_id"]) == (202, model_id)


@pytest.mark.parametrize(
    ("sent", "status", "code", "said"),
    [
        (parts(b"\x80\x04 a pickle"), 422, "model.not_torchscript", "pickle"),
        (parts(b""), 422, "model.not_torchscript", "empty"),
        ([("input_shape", (None, "[3]"))], 422, "model.missing", "no model part"),
        (parts() + parts(), 422, "upload.duplicate_part", "'model'"),
        ([*parts(input_shape="[3]"), ("input_shape", (None, "[4]"))], 422, "upload.duplicate_part", "'input_shape'"),
        (parts(spec="{}"), 422, "request.invalid", "'spec'"),
        (parts(input_shape="3,224"), 422, "request.invalid", "'3,224'"),
        (parts(input_shape="[3, 0]"), 422, "request.invalid", "greater than or equal to 1"),
        (parts(input_shape="[3.5]"), 422, "request.invalid", "integer"),
        (parts(input_shape="[]"), 422, "request.invalid", "at least 1"),
        (parts(input_shape="[16777217]"), 422, "request.invalid", "16777216"),
        (parts(input_shape="9" * 70_000), 413, "request.too_large", "65,536"),
    ],
)
def test_a_wrong_registration_is_refused_and_leaves_nothing(gateway, gateway_sessions, sent, status, code, said):
    def kept() -> tuple[int, list]:
        with gateway_sessions() as session:
            rows = len(session.scalars(select(Model.id)).all())
        return rows, stored_keys(gateway.settings)

    before = kept()
    answer = gateway.client.post("/v1/models", files=sent)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert said in answer.json()["detail"]
    assert answer.json()["hint"]
    assert kept() == before


def test_a_model_that_is_no_form_is_refused(gateway):
    for headers in ({"Content-Type": "text/plain"}, {}):
        answer = gateway.client.post("/v1/models", content=b"{}", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (415, "request.unsupported_media_type")
    answer = gateway.client.post("/v1/models", files=parts(b"PK\x03\x04" + bytes(9_000_000)))
    assert (answer.status_code, answer.json()["code"]) == (413, "upload.too_large")


def test_a_deleted_model_is_gone_with_its_bytes_and_its_inspection(gateway, register):
    content = b"PK\x03\x04 to be deleted"
    model = register(content)
    assert len(keys_of_content(gateway.settings, content)) == 1
    answer = gateway.client.delete(model["links"]["self"])
    assert (answer.status_code, answer.content) == (204, b"")
    assert keys_of_content(gateway.settings, content) == []
    for again in (gateway.client.delete(model["links"]["self"]), gateway.client.get(model["links"]["blocks"])):
        assert (again.status_code, again.json()["code"]) == (404, "model.not_found")
    spec = {"model_id": model["id"], "datasets": {"repair": "builtin:digits"}}
    assert gateway.client.post("/v1/jobs", json=spec).json()["code"] == "model.unknown_id"
    assert model["id"] not in [row["id"] for row in gateway.client.get("/v1/models?limit=100").json()["data"]]
    jobs = gateway.client.get("/v1/jobs", params={"model_id": model["id"], "kind": "inspect"}).json()["data"]
    assert [job["status"] for job in jobs] == ["cancelled"]


def test_bytes_that_something_else_refers_to_stay(gateway, register, submit):
    content = b"PK\x03\x04 shared by several"
    first, second = register(content), register(content)
    submit(model=b"PK\x03\x04 another", repair=content)
    for model in (first, second):
        assert gateway.client.delete(model["links"]["self"]).status_code == 204
        assert len(keys_of_content(gateway.settings, content)) == 1


def test_a_model_in_use_is_not_deleted_until_its_job_is_done(gateway, submit, finish):
    job = submit(model=b"PK\x03\x04 in use", repair=b"r")
    path = f"/v1/models/{job['model_id']}"
    answer = gateway.client.delete(path)
    assert (answer.status_code, answer.json()["code"]) == (409, "model.in_use")
    assert job["id"] in answer.json()["detail"]
    finish(job["id"], files=[("repaired.pt", "model", b"repaired")])
    assert gateway.client.delete(path).status_code == 204
    repaired = gateway.client.get(f"/v1/jobs/{job['id']}/model")
    assert repaired.content == b"repaired"
    assert 'filename="resnet18.repaired.pt"' in repaired.headers["content-disposition"]


def test_an_equal_upload_during_a_deletion_keeps_its_bytes(gateway, register, gateway_sessions):
    """Many times both at once: whoever comes second must see what the first did."""
    content = b"PK\x03\x04 uploaded and deleted at once"
    model = register(content)
    with httpx.Client(base_url=gateway.url, headers=gateway.client.headers, timeout=30) as other:
        for _ in range(15):
            thread = threading.Thread(target=other.delete, args=(model["links"]["self"],))
            thread.start()
            model = register(content)
            thread.join()
            with gateway_sessions() as session:
                key = session.get_one(Model, model["id"]).storage_key
            assert stored_bytes(gateway.settings, key) == content


def test_models_are_listed_page_by_page(gateway, submit, register):
    ids = [register()["id"], submit()["model_id"], register()["id"]]
    first = gateway.client.get("/v1/models", params={"limit": 2}).json()
    pages = [first]
    while pages[-1]["has_more"]:
        query = {"limit": 100, "cursor": pages[-1]["next_cursor"]}
        pages.append(gateway.client.get("/v1/models", params=query).json())
    found = [model["id"] for page in pages for model in page["data"]]
    assert (first["has_more"], found[:3], len(set(found))) == (True, ids[::-1], len(found))


def test_an_unknown_model_is_a_404(gateway):
    for path in ("/v1/models/mdl_nothing", "/v1/models/mdl_nothing/blocks", "/v1/models/%00"):
        answer = gateway.client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (404, "model.not_found")


def test_another_projects_model_is_as_absent_as_none(gateway, register, stranger_key):
    path = register()["links"]["self"]
    headers = {"Authorization": f"Bearer {stranger_key}"}
    for answer in (gateway.client.get(path, headers=headers), gateway.client.delete(path, headers=headers)):
        assert (answer.status_code, answer.json()["code"]) == (404, "model.not_found")
    assert gateway.client.get(path).status_code == 200


def test_registering_and_deleting_need_their_scope(gateway, register, read_only_key):
    headers = {"Authorization": f"Bearer {read_only_key}"}
    path = register()["links"]["self"]
    for answer in (
        gateway.client.post("/v1/models", files=parts(), headers=headers),
        gateway.client.delete(path, headers=headers),
    ):
        assert (answer.status_code, answer.json()["code"]) == (403, "auth.missing_scope")
        assert "models:write" in answer.json()["detail"]


def test_the_file_of_a_job_input_is_named_as_it_was_sent(gateway, submit, gateway_sessions):
    job = submit()
    with gateway_sessions() as session:
        assert session.scalars(select(JobInput.filename).where(JobInput.job_id == job["id"])).all() == ["repair.npz"]
