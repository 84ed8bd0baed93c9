import hashlib
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker

from app.shared.claims import claim_job
from app.shared.datasets import record_dataset, settle_datasets
from app.shared.jobs import finish_job
from app.shared.tables import Job
from tests.servers import keys_of_content, stored_keys

CONTENT = b"PK\x03\x04 images and labels"
HEX = "0" * 64
FACTS = {"format": "npz", "num_samples": 9, "image_shape": [8, 8, 1], "pixel_type": "uint8", "labelled": True,
         "num_classes": 2, "classes": {"0": 4, "1": 5}, "content_sha256": "f" * 64,
         "num_skipped": 1, "skipped": [{"row": 3, "name": "'0/3.png'", "reason": "cut off"}],
         "duplicates": {"exact": 2, "near": 1, "compared": 9}}  # fmt: skip
ERROR = {"code": "dataset.format_unknown", "detail": "no data", "hint": "send .npz", "category": "user"}


def form(content: bytes = CONTENT, **fields: str) -> list[tuple[str, tuple]]:
    files: list[tuple[str, tuple]] = [("file", ("signs.npz", content, "application/octet-stream"))]
    return files + [(name, (None, value)) for name, value in fields.items()]


def upload(client: httpx.Client, content: bytes, *, complete: bool = True) -> str:
    body = {"filename": "signs.npz", "size_bytes": len(content)}
    made = client.post("/v1/uploads", json=body).json()
    client.put(f"{made['links']['self']}/parts/1", content=content)
    if complete:
        assert client.post(made["links"]["complete"]).status_code == 200
    return str(made["id"])


@pytest.fixture
def register(gateway) -> Callable[..., dict[str, Any]]:
    def register_one(content: bytes = CONTENT, **fields: str) -> dict[str, Any]:
        answer = gateway.client.post("/v1/datasets", files=form(content, **fields))
        assert answer.status_code == 202, answer.text
        return dict(answer.json())

    return register_one


@pytest.fixture
def read(gateway_sessions: sessionmaker[Session]) -> Callable[..., None]:
    """Plays the worker that reads a dataset: it finds something, or fails with `error`."""

    def read_one(dataset: dict[str, Any], error: dict[str, Any] | None = None) -> None:
        with gateway_sessions.begin() as session:
            session.execute(update(Job).where(Job.id == dataset["job_id"]).values(priority=100))
        with gateway_sessions.begin() as session:
            claim = claim_job(session, owner="test-worker", lease_seconds=60)
        assert claim is not None
        assert (claim.job_id, claim.kind, claim.model_id) == (dataset["job_id"], "ingest", None)
        with gateway_sessions.begin() as session:
            assert error or record_dataset(session, claim, FACTS)
            finish_job(session, claim, status="failed" if error else "succeeded", error=error, cause="test")
        with gateway_sessions.begin() as session:
            settle_datasets(session)

    return read_one


def test_a_registered_file_is_read_and_shows_what_is_in_it(gateway, register, read):
    dataset = register(name="Signs", metadata='{"camera": "new"}')
    assert (dataset["object"], dataset["state"], dataset["done"]) == ("dataset", "resolving", False)
    assert (dataset["name"], dataset["metadata"], dataset["filename"]) == ("Signs", {"camera": "new"}, "signs.npz")
    assert dataset["sha256"] == hashlib.sha256(CONTENT).hexdigest()
    thread = threading.Timer(0.3, read, [dataset])
    thread.start()
    found = gateway.client.get(dataset["links"]["self"], params={"wait": 20}).json()
    thread.join()
    assert (found["state"], found["done"], found["error"]) == ("ready", True, None)
    assert {name: found[name] for name in FACTS} == FACTS
    assert gateway.client.get("/v1/datasets", params={"limit": 1, "state": "ready"}).json()["data"] == [found]
    job = gateway.client.get(found["links"]["job"]).json()
    assert (job["kind"], job["model_id"], job["status"]) == ("ingest", None, "succeeded")
    jobs = gateway.client.get("/v1/jobs", params={"limit": 100}).json()["data"]
    assert dataset["job_id"] not in [row["id"] for row in jobs]
    assert gateway.client.get(f"{found['links']['job']}/model").json()["code"] == "job.no_repaired_model"


def test_a_dataset_that_is_none_is_rejected_wherever_it_is_used(gateway, register, read):
    dataset = register(b"not data")
    read(dataset, error=ERROR)
    shown = gateway.client.get(dataset["links"]["self"]).json()
    assert (shown["state"], shown["error"]["code"]) == ("rejected", "dataset.format_unknown")
    spec = {"datasets": {"repair": dataset["id"]}}
    answer = gateway.client.post("/v1/jobs", params={"validate_only": True}, json=spec | {"model_id": None})
    assert (answer.status_code, answer.json()["code"]) == (422, "dataset.rejected")
    assert answer.json()["errors"][0]["pointer"] == "#/datasets/repair"
    assert answer.json()["hint"] == "send .npz"


def submit_with(gateway, submission, repair: str, **files: bytes) -> httpx.Response:
    spec = {"datasets": {"repair": repair}}
    return gateway.client.post("/v1/jobs", files=submission(spec, model=b"PK\x03\x04 model", **files))


def test_datasets_and_uploads_are_inputs_of_jobs_and_outlive_their_deletion(gateway, register, read, submission):
    content = b"PK\x03\x04 shared by a job"
    dataset, upload_id = register(content), upload(gateway.client, content)
    early = submit_with(gateway, submission, dataset["id"])
    assert (early.status_code, early.json()["code"]) == (409, "dataset.resolving")
    assert int(early.headers["retry-after"]) > 0
    read(dataset)
    for reference in (dataset["id"], upload_id):
        job = submit_with(gateway, submission, reference)
        assert job.status_code == 202, job.text
        assert job.json()["spec"]["datasets"]["repair"] == reference
    for path in (dataset["links"]["self"], f"/v1/uploads/{upload_id}"):
        assert gateway.client.delete(path).status_code == 204
    assert len(keys_of_content(gateway.settings, content)) == 1


def test_an_upload_becomes_a_dataset_and_a_model_that_share_its_bytes(gateway):
    content = b"PK\x03\x04 three of one"
    upload_id = upload(gateway.client, content)
    dataset = gateway.client.post("/v1/datasets", json={"reference": upload_id}).json()
    model = gateway.client.post("/v1/models", json={"upload_id": upload_id, "input_shape": [3, 8, 8]})
    assert model.status_code == 202, model.text
    assert (model.json()["filename"], model.json()["size_bytes"]) == ("signs.npz", len(content))
    assert dataset["name"] == "signs.npz"
    for path in (f"/v1/uploads/{upload_id}", dataset["links"]["self"], model.json()["links"]["self"]):
        assert len(keys_of_content(gateway.settings, content)) == 1
        assert gateway.client.delete(path).status_code == 204
    assert keys_of_content(gateway.settings, content) == []


@pytest.mark.parametrize(
    ("body", "status", "code", "pointer"),
    [
        ({"reference": "https://example.org/a.npz"}, 422, "dataset.sha256_missing", "#/reference"),
        ({"reference": "https://10.0.0.1/a.npz", "sha256": HEX}, 422, "dataset.url_refused", "#/reference"),
        ({"reference": "file:///etc/passwd"}, 422, "dataset.reference_not_allowed", "#/reference"),
        ({"reference": "s3://acme/a.npz"}, 422, "dataset.reference_not_allowed", "#/reference"),
        ({"reference": "upload:repair"}, 422, "dataset.reference_not_supported", "#/reference"),
        ({"reference": "upl_" + "0" * 26}, 422, "upload.unknown_id", "#/reference"),
        ({"reference": "builtin:digits", "name": "a\x00b"}, 422, "request.invalid", "#/name"),
        ({"referense": "builtin:digits"}, 422, "request.invalid", "#/reference"),
    ],
)
def test_a_wrong_registration_is_refused_and_says_where(gateway, body, status, code, pointer):
    answer = gateway.client.post("/v1/datasets", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.json()["errors"][0]["pointer"] == pointer
    assert answer.json()["hint"]


@pytest.mark.parametrize(
    ("parts", "status", "code"),
    [
        ([("name", (None, "x"))], 422, "dataset.missing"),
        (form() + form(), 422, "upload.duplicate_part"),
        (form(other="x"), 422, "request.invalid"),
        (form(metadata="[]"), 422, "request.invalid"),
        (form(metadata='{}, "name": "y"'), 422, "request.invalid_json"),
        (form(name=""), 422, "request.invalid"),
        (form(metadata="}"), 422, "request.invalid_json"),
    ],
)
def test_a_form_is_read_strictly_and_leaves_nothing_when_refused(gateway, parts, status, code):
    before = stored_keys(gateway.settings)
    answer = gateway.client.post("/v1/datasets", files=parts)
    assert answer.status_code == status, answer.text
    assert answer.json()["code"] == code
    assert stored_keys(gateway.settings) == before


def test_references_of_a_spec_are_refused_all_at_once_and_with_their_place(gateway, stranger_key):
    open_upload = upload(gateway.client, b"open", complete=False)
    wrong = {
        "https://example.org/a.npz": "dataset.sha256_missing",
        "file:///etc/passwd": "dataset.reference_not_allowed",
        "gs://acme/a.npz": "dataset.reference_not_allowed",
        "ds_" + "0" * 26: "dataset.unknown_id",
        "upl_" + "0" * 26: "upload.unknown_id",
        open_upload: "upload.not_completed",
        "s3:/acme": "dataset.reference_invalid",
    }
    for reference, code in wrong.items():
        spec = {"datasets": {"repair": "builtin:digits", "test": reference}}
        answer = gateway.client.post("/v1/jobs?validate_only=true", json=spec)
        body = answer.json()
        assert (answer.status_code, body["code"]) == (422, code)
        assert [error["pointer"] for error in body["errors"]] == ["#/datasets/test"]
        assert body["hint"]
    spec = {"datasets": {"repair": "nowhere"}, "model": {"reference": "builtin:digits"}}
    errors = gateway.client.post("/v1/jobs?validate_only=true", json=spec).json()["errors"]
    assert [error["pointer"] for error in errors] == ["#/datasets/repair", "#/model/reference"]


def test_another_projects_dataset_and_upload_are_as_absent_as_none(gateway, register, stranger_key, submission):
    dataset, upload_id = register(), upload(gateway.client, CONTENT)
    headers = {"Authorization": f"Bearer {stranger_key}"}
    for method in ("GET", "DELETE"):
        answer = gateway.client.request(method, dataset["links"]["self"], headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (404, "dataset.not_found")
    for reference, code in ((dataset["id"], "dataset.unknown_id"), (upload_id, "upload.unknown_id")):
        spec = {"datasets": {"repair": reference}}
        files = submission(spec, model=b"PK\x03\x04 model")
        assert gateway.client.post("/v1/jobs", files=files, headers=headers).json()["code"] == code
    for path, body in (("/v1/models", {"upload_id": upload_id}), ("/v1/datasets", {"reference": upload_id})):
        assert gateway.client.post(path, json=body, headers=headers).json()["code"] == "upload.unknown_id"


def test_the_same_idempotency_key_registers_one_dataset(gateway):
    headers = {"Idempotency-Key": "one dataset"}
    body = {"reference": "builtin:digits"}
    answers = [gateway.client.post("/v1/datasets", json=body, headers=headers) for _ in range(2)]
    assert answers[0].status_code == 202
    assert json.loads(answers[0].content) == json.loads(answers[1].content)


def test_an_uploaded_model_must_be_one(gateway):
    upload_id = upload(gateway.client, b"\x80\x04 a pickle")
    answer = gateway.client.post("/v1/models", json={"upload_id": upload_id})
    assert (answer.status_code, answer.json()["code"]) == (422, "model.not_torchscript")
    answer = gateway.client.post("/v1/models", json={"upload_id": upload_id, "input_shape": [0]})
    assert answer.json()["errors"][0]["pointer"] == "#/input_shape/0"
